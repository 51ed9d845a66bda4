//! A volume that the guest has as a disk.

use belljar_guest_spec::{DiskBus, Word};

use super::Plugging;
use crate::{
    qemu::args::{Disk, Node},
    template::Unkeyable,
};

#[derive(Clone, Debug)]
pub(super) struct DiskFront {
    pub(super) bus: DiskBus,
    pub(super) serial: Option<String>,
    pub(super) boot_index: Option<u32>,
}

impl DiskFront {
    /// See [`super::Volume::plugging`].
    pub(super) fn plugging(&self) -> Plugging {
        match self.bus {
            _ if self.boot_index.is_some() => Plugging::Never,
            DiskBus::Ide | DiskBus::Sata => Plugging::Never,
            DiskBus::Virtio | DiskBus::Scsi => Plugging::Frozen,
            DiskBus::Nvme => Plugging::Late,
        }
    }

    /// What it is plugged into.
    pub(super) fn kind(&self) -> &'static str {
        self.bus.word()
    }

    /// Whether it has a place of its own on the PCI bus.
    pub(super) fn is_on_pci(&self) -> bool {
        matches!(self.bus, DiskBus::Virtio | DiskBus::Nvme)
    }

    /// Whether a machine that has it can be frozen.
    pub(super) fn check_key(&self) -> Result<(), Unkeyable> {
        if self.bus == DiskBus::Nvme {
            return Err(Unkeyable::Impossible("QEMU cannot freeze an NVMe disk".into()));
        }
        Ok(())
    }

    /// The disk for QEMU.
    pub(super) fn device(&self, node: Node, attached: bool) -> Disk {
        Disk { bus: self.bus, serial: self.serial.clone(), boot_index: self.boot_index, attached, ..Disk::new(node) }
    }
}
