//! Where on the PCI bus each device is.
//!
//! Left to itself QEMU gives slots in the order of the command line, so that one disk more moves all that comes after it. With [`Slots`]
//! each device has its slot whatever else there is: a device that is plugged into a running machine is where it would have been from
//! the boot on, and a machine without it is the same otherwise.

use super::{Device, Disk, DiskBus, MachineConfig};
use crate::qemu::platform::Transport;

/// Where each device is in machines of one type.
#[derive(Debug)]
pub struct Slots {
    /// QEMU's name of the bus.
    pub bus: &'static str,
    /// Of the device that has the agent's port.
    pub agent_port: u8,
    /// Of the disk that is booted from, or of its controller.
    pub boot_disk: u8,
    /// Of the network card.
    pub card: u8,
    /// Of shares, in this order.
    pub shares: &'static [u8],
    /// Of the source of randomness.
    pub rng: u8,
    /// Of a controller for SATA disks that are not booted from.
    pub ahci: u8,
    /// The same for SCSI disks.
    pub scsi: u8,
    /// The same for USB disks, a free function of what has this slot anyway.
    pub usb: (u8, u8),
    /// The first of those of further virtio and NVMe disks, in order.
    pub first_disk: u8,
    /// The last of those; what else takes a slot has the last ones.
    pub last_disk: u8,
}

impl Slots {
    /// Whether this many further virtio and NVMe disks, and what else takes a slot, have one.
    #[must_use]
    pub fn has_room(&self, disks: usize) -> bool {
        disks <= usize::from(self.last_disk - self.first_disk) + 1
    }
}

/// A slot of the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    bus: &'static str,
    number: u8,
    /// Of several devices that are in one slot, which it is.
    function: u8,
}

impl Slot {
    /// QEMU's name of the bus.
    pub(super) fn bus(self) -> &'static str {
        self.bus
    }

    /// As QEMU takes it.
    pub(super) fn address(self) -> String {
        match self.function {
            0 => format!("{:#04x}", self.number),
            function => format!("{:#04x}.{function}", self.number),
        }
    }

    /// That of a further device in the same slot, of which the first has to say that it is not alone.
    pub(super) fn with_function(self, function: u8) -> Self {
        Self { function, ..self }
    }

    /// The device's name in the guest's `/sys/bus/pci/devices`.
    #[must_use]
    pub fn in_guest(self) -> String {
        format!("0000:00:{:02x}.{}", self.number, self.function)
    }
}

/// How a virtio device is connected, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// How.
    pub transport: Transport,
    /// Where, unless that is left to QEMU.
    pub slot: Option<Slot>,
}

impl MachineConfig {
    /// The virtio device of this name, such as `virtio-blk`.
    pub(super) fn virtio(&self, name: &str) -> Device {
        Device::new(&self.machine_type().transport.device(name))
    }

    fn slot(&self, number: impl FnOnce(&Slots) -> Option<u8>) -> Option<Slot> {
        let slots = self.slots?;
        Some(Slot { bus: slots.bus, number: number(slots)?, function: 0 })
    }

    pub(super) fn ports_slot(&self) -> Option<Slot> {
        self.slot(|slots| Some(slots.agent_port))
    }

    /// Of the network card.
    #[must_use]
    pub fn nic_slot(&self) -> Option<Slot> {
        self.slot(|slots| Some(slots.card))
    }

    pub(super) fn share_seat(&self, at: usize) -> Seat {
        let slot = self.slot(|slots| slots.shares.get(at).copied());
        Seat { transport: self.machine_type().transport, slot }
    }

    pub(super) fn rng_slot(&self) -> Option<Slot> {
        self.slot(|slots| Some(slots.rng))
    }

    /// Of a device of [`MachineConfig::further`] that takes one, after so many others: the last of those of disks are theirs, in their order, in which a
    /// guest finds them.
    pub(super) fn further_slot(&self, before: usize) -> Option<Slot> {
        let after = u8::try_from(self.further_slots().checked_sub(before + 1)?).ok()?;
        self.slot(|slots| slots.last_disk.checked_sub(after).filter(|&number| number >= slots.first_disk))
    }

    /// Of the controller that all disks of this bus share.
    pub(super) fn controller_slot(&self, bus: DiskBus) -> Option<Slot> {
        let boots = self.disks.iter().any(|disk| disk.bus == bus && disk.boot_index.is_some());
        match bus {
            DiskBus::Scsi | DiskBus::Sata if boots => self.slot(|slots| Some(slots.boot_disk)),
            DiskBus::Scsi => self.slot(|slots| Some(slots.scsi)),
            DiskBus::Sata => self.slot(|slots| Some(slots.ahci)),
            DiskBus::Usb => {
                let (number, function) = self.slots?.usb;
                self.slot(|_| Some(number)).map(|slot| slot.with_function(function))
            }
            DiskBus::Virtio | DiskBus::Ide | DiskBus::Nvme => None,
        }
    }

    /// Of a disk that is a PCI device itself.
    pub(super) fn disk_slot(&self, at: usize) -> Option<Slot> {
        let own = |disk: &Disk| matches!(disk.bus, DiskBus::Virtio | DiskBus::Nvme);
        self.disks.get(at).filter(|disk| own(disk))?;
        // One from which only something is started that boots the guest from this one comes behind it.
        let boots = self.disks.iter().position(|disk| disk.boot_index.is_some());
        if boots == Some(at) {
            return self.slot(|slots| Some(slots.boot_disk));
        }
        let before = self.disks[..at].iter().enumerate().filter(|&(i, d)| own(d) && boots != Some(i)).count();
        self.slot(|slots| {
            let number = u8::try_from(before).ok()?.checked_add(slots.first_disk)?;
            (number <= slots.last_disk).then_some(number)
        })
    }
}
