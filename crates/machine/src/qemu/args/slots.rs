//! Where on the PCI bus each device is.
//!
//! Left to itself QEMU gives slots in the order of the command line, so that one disk more moves all that comes after it. With [`Layout::Pc`]
//! each device has its slot whatever else there is: a device that is plugged into a running machine is where it would have been from
//! the boot on, and a machine without it is the same otherwise.
//!
//! ```text
//! 00 host bridge   01 ISA, IDE   02 agent's port   03 the disk that is booted from, or its controller   04 network card
//! 05 to 07 shares  08 random numbers  09 AHCI  0a to 0e further shares  0f SCSI  10 to 1f further virtio and NVMe disks, in order
//! ```
//!
//! These are the slots that QEMU itself gives to a machine with one disk.

use super::{Disk, DiskBus, MachineConfig};

/// The bus of a `pc` machine.
pub(super) const PCI_BUS: &str = "pci.0";

const PORTS: u8 = 0x02;
const BOOT_DISK: u8 = 0x03;
const NIC: u8 = 0x04;
const SHARES: u8 = 0x05;
const RNG: u8 = 0x08;
const AHCI: u8 = 0x09;
const FURTHER_SHARES: u8 = 0x0a;
const SCSI: u8 = 0x0f;
const DISKS: u8 = 0x10;
const LAST: u8 = 0x1f;

/// Who decides where devices are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// QEMU, for each machine anew.
    #[default]
    Auto,
    /// The table of this module, for a machine of type `pc`.
    Pc,
}

/// A slot of the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

impl Slot {
    /// As QEMU takes it.
    pub(super) fn address(self) -> String {
        format!("{:#04x}", self.0)
    }

    /// The device's name in the guest's `/sys/bus/pci/devices`.
    #[must_use]
    pub fn in_guest(self) -> String {
        format!("0000:00:{:02x}.0", self.0)
    }
}

/// Whether this many further virtio and NVMe disks have slots.
#[must_use]
pub fn has_room(disks: usize) -> bool {
    disks <= usize::from(LAST - DISKS) + 1
}

impl MachineConfig {
    fn slot(&self, number: u8) -> Option<Slot> {
        (self.layout == Layout::Pc).then_some(Slot(number))
    }

    pub(super) fn ports_slot(&self) -> Option<Slot> {
        self.slot(PORTS)
    }

    /// Of the network card.
    #[must_use]
    pub fn nic_slot(&self) -> Option<Slot> {
        self.slot(NIC)
    }

    pub(super) fn share_slot(&self, at: usize) -> Option<Slot> {
        self.slot((SHARES..RNG).chain(FURTHER_SHARES..SCSI).nth(at)?)
    }

    pub(super) fn rng_slot(&self) -> Option<Slot> {
        self.slot(RNG)
    }

    /// Of the controller that all disks of this bus share.
    pub(super) fn controller_slot(&self, bus: DiskBus) -> Option<Slot> {
        let boots = self.disks.iter().any(|disk| disk.bus == bus && disk.boot_index.is_some());
        match bus {
            DiskBus::Scsi | DiskBus::Sata if boots => self.slot(BOOT_DISK),
            DiskBus::Scsi => self.slot(SCSI),
            DiskBus::Sata => self.slot(AHCI),
            DiskBus::Virtio | DiskBus::Ide | DiskBus::Nvme => None,
        }
    }

    /// Of a disk that is a PCI device itself.
    pub(super) fn disk_slot(&self, at: usize) -> Option<Slot> {
        let own = |disk: &Disk| matches!(disk.bus, DiskBus::Virtio | DiskBus::Nvme);
        let disk = self.disks.get(at).filter(|disk| own(disk))?;
        if disk.boot_index.is_some() {
            return self.slot(BOOT_DISK);
        }
        let before = self.disks[..at].iter().filter(|d| own(d) && d.boot_index.is_none()).count();
        let number = u8::try_from(before).ok()?.checked_add(DISKS).filter(|number| *number <= LAST)?;
        self.slot(number)
    }
}
