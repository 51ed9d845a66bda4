//! Devices of a machine beside its disks, its network card and its TPM, as they are asked for.

use crate::words;

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

words! {
    /// A graphics card, of whose frame buffer pictures can be taken.
    Display {
        /// QEMU's own, with VGA (`bochs-drm` in Linux).
        Std = "std",
        /// virtio-gpu; on a PC with VGA.
        Virtio = "virtio",
        /// The same as `std`, without VGA.
        Bochs = "bochs",
        /// Cirrus Logic's GD5446.
        Cirrus = "cirrus",
    }
}

words! {
    /// A sound card. What is played is heard by nobody, and what is recorded is silence.
    Sound {
        /// Intel's High Definition Audio, with a codec that plays and records.
        Hda = "hda",
        /// Intel's 82801AA.
        Ac97 = "ac97",
        /// Ensoniq's AudioPCI.
        Es1370 = "es1370",
        /// virtio-sound.
        Virtio = "virtio",
    }
}

/// How processors are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Processor packages.
    pub sockets: u32,
    /// Cores of each package.
    pub cores: u32,
    /// Threads of each core.
    pub threads: u32,
}

impl Topology {
    /// How many processors that makes.
    #[must_use]
    pub fn processors(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// Devices of a machine that it has only where they are asked for, and one that it lacks only then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    /// The watchdog, if there is to be one.
    pub watchdog: Option<Watchdog>,
    /// Whether there is a balloon, by which memory is taken from the guest.
    pub balloon: bool,
    /// The graphics card, if there is to be one.
    pub display: Option<Display>,
    /// The sound card, if there is to be one.
    pub sound: Option<Sound>,
    /// Whether there is a source of randomness.
    pub rng: bool,
    /// How its processors are put together; none is QEMU's choice.
    pub topology: Option<Topology>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { watchdog: None, balloon: false, display: None, sound: None, rng: true, topology: None }
    }
}
