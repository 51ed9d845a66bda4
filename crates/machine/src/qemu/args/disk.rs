//! Disks: the block graph behind each and the device in front of it.
//!
//! The graph is given whole (`-blockdev`), formats included: QEMU never guesses a format from an
//! image's contents, which the guest of an earlier run may have written.

use std::ffi::OsString;
use std::path::PathBuf;

use belljar_guest_spec::{DiskBus, Word};
use belljar_proto::message::DeviceSign;

use super::keyval::{Device, KeyVal};
use super::slots::Slot;
use super::{ArgsError, MachineConfig};
use crate::qemu::{descriptors::FdSet, platform::Ide};

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where its bytes are.
    pub source: DiskSource,
    /// QEMU's name of its format: `raw`, `qcow2`, `vmdk`, `vdi`, `vhdx`, `vpc`.
    pub format: String,
    /// What `source` is an overlay of, if it is to be other than what its own header says.
    pub backing: Option<Box<Backing>>,
    /// What it is plugged into.
    pub bus: DiskBus,
    /// Its serial number: the guest finds it under `/dev/disk/by-id`. At most 20 bytes, 36 on SCSI.
    pub serial: Option<String>,
    /// Rank among what the firmware tries to boot; 0 first.
    pub boot_index: Option<u32>,
    /// Whether its device is in the machine from the start. Else only its bytes are at hand, for [`MachineConfig::plugged`].
    pub attached: bool,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether it ends with the machine: then the guest's flushes need not reach the host's disk.
    pub throw_away: bool,
}

impl Disk {
    /// A writable disk on virtio that ends with the machine.
    #[must_use]
    pub fn new(source: DiskSource, format: &str) -> Self {
        Self {
            source,
            format: format.to_owned(),
            backing: None,
            bus: DiskBus::Virtio,
            serial: None,
            boot_index: None,
            attached: true,
            read_only: false,
            throw_away: true,
        }
    }
}

/// Where bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// A file.
    Path(PathBuf),
    /// A set of descriptors: a file that may have no name any more.
    FdSet(FdSet),
}

impl DiskSource {
    fn file_name(&self) -> OsString {
        match self {
            Self::Path(path) => path.clone().into_os_string(),
            Self::FdSet(set) => set.path().into(),
        }
    }
}

/// What an overlay lies over. Always opened read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where its bytes are.
    pub source: DiskSource,
    /// Its format, as in [`Disk::format`].
    pub format: String,
    /// Whether it is a block device instead of a file.
    pub device: bool,
    /// What this one is an overlay of in turn, if it is to be other than what its own header says.
    pub backing: Option<Box<Self>>,
}

/// Disks of an IDE channel.
const DISKS_OF_CHANNEL: usize = 2;
/// Ports of an AHCI controller.
const SATA_MAX: usize = 6;

/// Appends the options for all disks of a machine.
pub(super) fn push_disks(config: &MachineConfig, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
    let ide = config.machine_type().ide;
    let place = |bus| place_on(config, bus);
    let count = |bus| config.disks.iter().filter(|d| place(d.bus) == bus).count();
    let ide_max = match ide {
        Ide::Channels(channels) => channels * DISKS_OF_CHANNEL,
        Ide::Ahci(_) => SATA_MAX,
    };
    for (bus, max) in [(DiskBus::Ide, ide_max), (DiskBus::Sata, SATA_MAX)] {
        if count(bus) > max {
            return Err(ArgsError::TooManyDisks { bus, count: count(bus), max, machine: config.machine.clone() });
        }
    }
    for bus in [DiskBus::Scsi, DiskBus::Sata] {
        if config.disks.iter().any(|d| d.attached && place(d.bus) == bus)
            && !(bus == DiskBus::Sata && matches!(ide, Ide::Ahci(_)))
        {
            push(out, "-device", controller(config, bus).key_val());
        }
    }
    for (at, disk) in config.disks.iter().enumerate() {
        check(disk)?;
        push(out, "-blockdev", node_options(disk, &node(at)));
        if disk.attached {
            push(out, "-device", device(config, at).key_val());
        }
    }
    Ok(())
}

fn node(at: usize) -> String {
    format!("disk{at}")
}

/// Where a disk that is to be on this bus is in this machine.
fn place_on(config: &MachineConfig, bus: DiskBus) -> DiskBus {
    match (bus, config.machine_type().ide) {
        (DiskBus::Ide, Ide::Ahci(_)) => DiskBus::Sata,
        (bus, _) => bus,
    }
}

/// What disks of this bus are plugged into.
fn controller(config: &MachineConfig, bus: DiskBus) -> Device {
    let slot = config.controller_slot(bus);
    match bus {
        DiskBus::Sata => Device::new("ich9-ahci").text("id", "sata0").at(slot),
        _ => config.virtio("virtio-scsi").text("id", "scsi0").at(slot),
    }
}

/// The device of one of the disks.
fn device(config: &MachineConfig, at: usize) -> Device {
    let disk = &config.disks[at];
    let bus = place_on(config, disk.bus);
    let before = config.disks[..at].iter().filter(|d| place_on(config, d.bus) == bus).count();
    let number = u32::try_from(before).unwrap_or(u32::MAX);
    let device = match bus {
        DiskBus::Virtio => config.virtio("virtio-blk").at(config.disk_slot(at)),
        DiskBus::Scsi => Device::new("scsi-hd")
            .text("bus", "scsi0.0")
            .number("channel", 0)
            .number("scsi-id", number)
            .number("lun", 0),
        DiskBus::Ide => Device::new("ide-hd").text("bus", format!("ide.{}", number / 2)).number("unit", number % 2),
        DiskBus::Sata => {
            let controller = match config.machine_type().ide {
                Ide::Ahci(own) => own,
                Ide::Channels(_) => "sata0",
            };
            Device::new("ide-hd").text("bus", format!("{controller}.{number}"))
        }
        DiskBus::Nvme => Device::new("nvme").at(config.disk_slot(at)),
    };
    let node = node(at);
    // An NVMe disk has to have a serial number.
    let unnamed = (disk.bus == DiskBus::Nvme).then(|| node.clone());
    let device = device
        .text("id", format!("{node}-device"))
        .text("drive", node)
        .some_text("serial", disk.serial.clone().or(unnamed));
    match disk.boot_index {
        Some(index) => device.number("bootindex", index),
        None => device,
    }
}

/// A device that is plugged into a machine that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// The device.
    pub device: Device,
    /// What it is, in a person's words.
    pub name: String,
    /// The kind of device, of which all can be plugged into a guest or none.
    pub kind: &'static str,
    /// Where the guest sees it, or what it is behind.
    pub slot: Slot,
    /// What the guest shows when it has taken it in.
    pub sign: DeviceSign,
}

impl MachineConfig {
    /// What is to be plugged in for the disks that are not attached, in this order. `None`: one of them has no slot of its own.
    #[must_use]
    pub fn plugged(&self) -> Option<Vec<Plugged>> {
        let mut all = Vec::new();
        let mut has_scsi = self.disks.iter().any(|d| d.attached && d.bus == DiskBus::Scsi);
        for (at, disk) in self.disks.iter().enumerate().filter(|(_, disk)| !disk.attached) {
            let (slot, disks) = match disk.bus {
                DiskBus::Virtio | DiskBus::Nvme => (self.disk_slot(at)?, 1),
                DiskBus::Scsi => {
                    let slot = self.controller_slot(disk.bus)?;
                    if !std::mem::replace(&mut has_scsi, true) {
                        all.push(Plugged {
                            device: controller(self, disk.bus),
                            name: "the SCSI adapter".to_owned(),
                            kind: disk.bus.word(),
                            slot,
                            sign: DeviceSign::ScsiHost,
                        });
                    }
                    let so_far = self.disks[..=at].iter().filter(|d| d.bus == DiskBus::Scsi).count();
                    (slot, u32::try_from(so_far).unwrap_or(u32::MAX))
                }
                DiskBus::Ide | DiskBus::Sata => return None,
            };
            let serial = disk.serial.as_ref().map_or_else(String::new, |serial| format!(" {serial}"));
            all.push(Plugged {
                device: device(self, at),
                name: format!("the {} disk{serial}", disk.bus),
                kind: disk.bus.word(),
                slot,
                sign: DeviceSign::Disks(disks),
            });
        }
        Some(all)
    }
}

fn check(disk: &Disk) -> Result<(), ArgsError> {
    if disk.format.is_empty() {
        return Err(ArgsError::Empty { what: "a disk's format" });
    }
    if disk.read_only && matches!(disk.bus, DiskBus::Ide | DiskBus::Sata) {
        return Err(ArgsError::ReadOnlyBus { bus: disk.bus });
    }
    if let Some(serial) = &disk.serial {
        // Past this QEMU refuses it, or the guest sees only its beginning.
        let max = if disk.bus == DiskBus::Scsi { 36 } else { 20 };
        if serial.is_empty() {
            return Err(ArgsError::Empty { what: "a disk's serial number" });
        }
        if serial.len() > max {
            return Err(ArgsError::TooLong {
                what: "the disk's serial number",
                value: serial.clone(),
                len: serial.len(),
                max,
            });
        }
    }
    Ok(())
}

fn node_options(disk: &Disk, node: &str) -> KeyVal {
    let on_off = |on| if on { "on" } else { "off" };
    let mut options =
        KeyVal::empty().set("driver", &disk.format).set("node-name", node).set("read-only", on_off(disk.read_only));
    if !disk.read_only {
        options = options.set("discard", "unmap");
        if disk.throw_away {
            options = options.set("cache.no-flush", "on");
        }
    }
    options = options
        .set("file.driver", "file")
        .set("file.filename", disk.source.file_name())
        .set("file.read-only", on_off(disk.read_only));
    if !disk.read_only {
        options = options.set("file.discard", "unmap");
        if disk.throw_away {
            options = options.set("file.cache.no-flush", "on");
        }
    }
    let mut prefix = String::new();
    let mut next = disk.backing.as_deref();
    while let Some(backing) = next {
        prefix.push_str("backing.");
        options = options
            .set(&format!("{prefix}driver"), &backing.format)
            .set(&format!("{prefix}read-only"), "on")
            .set(&format!("{prefix}file.driver"), if backing.device { "host_device" } else { "file" })
            .set(&format!("{prefix}file.filename"), backing.source.file_name())
            .set(&format!("{prefix}file.read-only"), "on")
            // Nobody else may be writing to it.
            .set(&format!("{prefix}file.locking"), "on");
        next = backing.backing.as_deref();
    }
    options
}

pub(crate) fn push(out: &mut Vec<OsString>, option: &str, value: KeyVal) {
    out.push(option.into());
    out.push(value.finish());
}
