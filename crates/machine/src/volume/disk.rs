//! A volume that the guest has as a disk.

use belljar_guest_spec::{DiskBus, DiskTraits, Word};

use super::Plugging;
use crate::{
    qemu::args::{Disk, Node},
    template::Unkeyable,
};

#[derive(Clone, Debug)]
pub(super) struct DiskFront {
    pub(super) bus: DiskBus,
    pub(super) serial: Option<String>,
    pub(super) role: Role,
    pub(super) traits: DiskTraits,
}

/// What a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The guest boots from it.
    Boot,
    /// The same, where a medium comes before it.
    BootBehindMedium,
    /// The firmware starts what is on it, which starts what is on the disk that the guest boots from.
    Medium,
    /// What is on it is the guest's from the start, and nobody boots from it.
    Fixed,
    /// The user's, or a seed.
    Further,
}

impl DiskFront {
    /// One of which nothing else is said.
    pub(super) fn new(bus: DiskBus, serial: Option<String>, role: Role) -> Self {
        Self { bus, serial, role, traits: DiskTraits::default() }
    }

    /// See [`super::Volume::plugging`].
    pub(super) fn plugging(&self) -> Plugging {
        match self.bus {
            _ if self.role != Role::Further => Plugging::Never,
            // Its bytes are at hand from the start, and its device comes when a test says so.
            _ if self.traits.unplugged => Plugging::Never,
            DiskBus::Ide | DiskBus::Sata | DiskBus::Usb => Plugging::Never,
            // Its controllers share a slot, which has to be known from the start.
            _ if self.traits.paths() > 1 => Plugging::Never,
            DiskBus::Virtio | DiskBus::Scsi => Plugging::Frozen,
            DiskBus::Nvme => Plugging::Late,
        }
    }

    /// What it is plugged into.
    pub(super) fn kind(&self) -> &'static str {
        if self.traits.paths() > 1 { "several paths" } else { self.bus.word() }
    }

    /// Whether it has a place of its own on the PCI bus.
    fn is_on_pci(&self) -> bool {
        matches!(self.bus, DiskBus::Virtio | DiskBus::Nvme)
    }

    /// Whether it takes a slot among those of further disks.
    pub(super) fn takes_slot(&self) -> bool {
        self.is_on_pci() && (self.role == Role::Further || self.role == Role::Medium)
    }

    /// Rank among what the firmware tries to boot.
    fn boot_index(&self) -> Option<u32> {
        match self.role {
            Role::Boot | Role::Medium => Some(0),
            Role::BootBehindMedium => Some(1),
            Role::Fixed | Role::Further => None,
        }
    }

    /// Whether a machine that has it can be frozen.
    pub(super) fn check_key(&self) -> Result<(), Unkeyable> {
        if self.bus == DiskBus::Nvme && !self.traits.unplugged {
            return Err(Unkeyable::Impossible("QEMU cannot freeze an NVMe disk".into()));
        }
        Ok(())
    }

    /// The disk for QEMU.
    pub(super) fn device(&self, node: Node, attached: bool) -> Disk {
        let node = Node { write_protected: self.traits.read_only, ..node };
        Disk {
            bus: self.bus,
            serial: self.serial.clone(),
            boot_index: self.boot_index(),
            attached: attached && !self.traits.unplugged,
            removable: self.role == Role::Further,
            traits: self.traits.clone(),
            ..Disk::new(node)
        }
    }
}
