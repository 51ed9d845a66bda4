//! Disks: the block graph behind each and the device in front of it.
//!
//! The graph is given whole (`-blockdev`), formats included: QEMU never guesses a format from an
//! image's contents, which the guest of an earlier run may have written.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::keyval::KeyVal;
use super::{ArgsError, MachineConfig};

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
    /// A set of descriptors, see [`super::FdSet`]: a file that may have no name any more.
    FdSet(u32),
}

impl DiskSource {
    fn file_name(&self) -> OsString {
        match self {
            Self::Path(path) => path.clone().into_os_string(),
            Self::FdSet(set) => format!("/dev/fdset/{set}").into(),
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

/// What a disk is plugged into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// virtio-blk: `vda`.
    #[default]
    Virtio,
    /// virtio-scsi: `sda`.
    Scsi,
    /// IDE; on q35, which has none, SATA.
    Ide,
    /// SATA (AHCI).
    Sata,
    /// NVMe: `nvme0n1`.
    Nvme,
}

impl DiskBus {
    /// The name the command line uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Ide => "ide",
            Self::Sata => "sata",
            Self::Nvme => "nvme",
        }
    }
}

impl fmt::Display for DiskBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Disks that fit on IDE: two channels of two.
const IDE_MAX: usize = 4;
/// Ports of an AHCI controller.
const SATA_MAX: usize = 6;

/// Appends the options for all disks of a machine.
pub(super) fn push_disks(config: &MachineConfig, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
    // q35 has an AHCI controller of its own where pc has IDE, under the same name.
    let q35 = config.machine.starts_with("q35") || config.machine.starts_with("pc-q35");
    let place = |bus| if q35 && bus == DiskBus::Ide { DiskBus::Sata } else { bus };
    let count = |bus| config.disks.iter().filter(|d| place(d.bus) == bus).count();
    for (bus, max) in [(DiskBus::Ide, IDE_MAX), (DiskBus::Sata, SATA_MAX)] {
        if count(bus) > max {
            return Err(ArgsError::TooManyDisks { bus, count: count(bus), max, machine: config.machine.clone() });
        }
    }
    if count(DiskBus::Scsi) > 0 {
        push(out, "-device", KeyVal::new("virtio-scsi-pci").set("id", "scsi0"));
    }
    if count(DiskBus::Sata) > 0 && !q35 {
        push(out, "-device", KeyVal::new("ich9-ahci").set("id", "sata0"));
    }

    let (mut scsi, mut ide, mut sata) = (0, 0, 0);
    for (i, disk) in config.disks.iter().enumerate() {
        check(disk)?;
        let node = format!("disk{i}");
        push(out, "-blockdev", node_options(disk, &node));

        let device = match place(disk.bus) {
            DiskBus::Virtio => KeyVal::new("virtio-blk-pci"),
            DiskBus::Scsi => {
                scsi += 1;
                KeyVal::new("scsi-hd")
                    .set("bus", "scsi0.0")
                    .set("channel", "0")
                    .set("scsi-id", (scsi - 1).to_string())
                    .set("lun", "0")
            }
            DiskBus::Ide => {
                ide += 1;
                let at = ide - 1;
                KeyVal::new("ide-hd").set("bus", format!("ide.{}", at / 2)).set("unit", (at % 2).to_string())
            }
            DiskBus::Sata => {
                sata += 1;
                let controller = if q35 { "ide" } else { "sata0" };
                KeyVal::new("ide-hd").set("bus", format!("{controller}.{}", sata - 1))
            }
            DiskBus::Nvme => KeyVal::new("nvme"),
        };
        // An NVMe disk has to have a serial number.
        let unnamed = (disk.bus == DiskBus::Nvme).then(|| node.clone());
        let device = device
            .set("id", format!("{node}-device"))
            .set("drive", &node)
            .set_some("serial", disk.serial.as_ref().or(unnamed.as_ref()))
            .set_some("bootindex", disk.boot_index.map(|n| n.to_string()));
        push(out, "-device", device);
    }
    Ok(())
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

pub(super) fn push(out: &mut Vec<OsString>, option: &str, value: KeyVal) {
    out.push(option.into());
    out.push(value.finish());
}
