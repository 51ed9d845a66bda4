//! Devices of a machine beside its disks, its network card and its TPM, as they are asked for.

use crate::{rules::Key, words};

words! {
    /// The device that resets a machine whose guest does not feed it in time.
    #[derive(Default)]
    Watchdog {
        /// What is usual on the guest's platform.
        #[default]
        Auto = "auto",
        /// Intel's 6300ESB, on a PCI bus.
        I6300esb = "i6300esb",
        /// iBASE's 700, on a PC's ISA bus.
        Ib700 = "ib700",
        /// That of the chipset of the machine type q35 (TCO).
        Itco = "itco",
        /// That of an IBM Z machine's hypervisor.
        Diag288 = "diag288",
    }
}

/// Devices of a machine that it has only where they are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// The watchdog, if there is to be one.
    pub watchdog: Option<Watchdog>,
}

impl Devices {
    /// The settings of them.
    pub const KEYS: &'static [Key] = &[Key::Watchdog];
}
