//! Disks: the device in front of each [`Node`].

use std::ffi::OsString;

use belljar_guest_spec::{DiskBus, DiskTraits, Word};
use belljar_proto::message::DeviceSign;

use super::keyval::{Device, KeyVal, on_off};
use super::node::Node;
use super::slots::Slot;
use super::{ArgsError, CARD, MachineConfig};
use crate::qemu::platform::Ide;

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its bytes.
    pub node: Node,
    /// What it is plugged into.
    pub bus: DiskBus,
    /// Its serial number: the guest finds it under `/dev/disk/by-id`. At most 20 bytes, 36 on SCSI.
    pub serial: Option<String>,
    /// Rank among what the firmware tries to boot; 0 first.
    pub boot_index: Option<u32>,
    /// Whether its device is in the machine from the start. Else only its bytes are at hand, for [`MachineConfig::plugged`].
    pub attached: bool,
    /// Whether it may go out of a machine that runs, and come into it: nothing else of the guest is on it.
    pub removable: bool,
    /// Which kind of disk it is.
    pub traits: DiskTraits,
}

impl Disk {
    /// Whether what it is plugged into has to be there from the machine's start.
    fn has_controller(&self) -> bool {
        self.attached || self.traits.unplugged
    }

    /// A disk on virtio.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self {
            node,
            bus: DiskBus::Virtio,
            serial: None,
            boot_index: None,
            attached: true,
            removable: false,
            traits: DiskTraits::default(),
        }
    }
}

/// Disks of an IDE channel.
const DISKS_OF_CHANNEL: usize = 2;
/// Ports of an AHCI controller.
const SATA_MAX: usize = 6;
/// Ports of an xHCI controller (QEMU's `p2` and `p3`).
const USB_MAX: usize = 15;
/// Revolutions a minute of a disk that turns.
const REVOLUTIONS: u32 = 7200;

/// Appends the options for all disks of a machine.
pub(super) fn push_disks(config: &MachineConfig, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
    let disks: Vec<&Disk> = config.all_disks().collect();
    let ide = config.machine_type().ide;
    let place = |bus| place_on(config, bus);
    let count = |bus| disks.iter().filter(|d| place(d.bus) == bus).count();
    let ide_max = match ide {
        Ide::Channels(channels) => channels * DISKS_OF_CHANNEL,
        Ide::Ahci(_) => SATA_MAX,
    };
    for (bus, max) in [(DiskBus::Ide, ide_max), (DiskBus::Sata, SATA_MAX), (DiskBus::Usb, USB_MAX)] {
        if count(bus) > max {
            return Err(ArgsError::TooManyDisks { bus, count: count(bus), max, machine: config.machine.clone() });
        }
    }
    for bus in [DiskBus::Scsi, DiskBus::Sata, DiskBus::Usb] {
        if disks.iter().any(|d| d.has_controller() && place(d.bus) == bus)
            && !(bus == DiskBus::Sata && matches!(ide, Ide::Ahci(_)))
        {
            for path in 0..paths_on(config, bus) {
                push(out, "-device", controller(config, bus, path).key_val());
            }
        }
    }
    for (at, disk) in disks.iter().enumerate() {
        check(disk)?;
        push(out, "-blockdev", disk.node.options(&node(at)));
        for (path, further) in (1..).zip(disk.node.by_further_paths()) {
            push(out, "-blockdev", further.options(&path_node(&node(at), path)));
        }
        if disk.attached {
            for path in 0..disk.traits.paths() {
                for device in devices(config, at, disk, path) {
                    push(out, "-device", device.key_val());
                }
            }
        }
    }
    Ok(())
}

/// How many controllers of this bus there are: as many as the disk with the most paths has, those that are plugged in later having one.
fn paths_on(config: &MachineConfig, bus: DiskBus) -> u32 {
    let disks = config.all_disks().filter(|disk| disk.has_controller() && place_on(config, disk.bus) == bus);
    disks.map(|disk| disk.traits.paths()).max().unwrap_or(1)
}

fn node(at: usize) -> String {
    format!("disk{at}")
}

/// What a further path of a disk leads to, where that is told apart.
fn path_node(node: &str, path: u32) -> String {
    format!("{node}-path{path}")
}

/// The node that a path of a disk leads to.
fn drive_of(at: usize, disk: &Disk, path: u32) -> String {
    let is_told_apart = path > 0 && !disk.node.further_paths.is_empty();
    if is_told_apart { path_node(&node(at), path) } else { node(at) }
}

/// Where a disk that is to be on this bus is in this machine.
fn place_on(config: &MachineConfig, bus: DiskBus) -> DiskBus {
    match (bus, config.machine_type().ide) {
        (DiskBus::Ide, Ide::Ahci(_)) => DiskBus::Sata,
        (bus, _) => bus,
    }
}

/// What disks of this bus are plugged into; those with several paths into one for each of these.
fn controller(config: &MachineConfig, bus: DiskBus, path: u32) -> Device {
    let slot = config.controller_slot(bus);
    match bus {
        DiskBus::Sata => Device::new("ich9-ahci").text("id", "sata0").at(slot),
        // Without enough ports QEMU puts hubs between.
        DiskBus::Usb => {
            let ports = [("p2", USB_MAX), ("p3", USB_MAX)];
            let device = Device::new("qemu-xhci").text("id", "usb0").at(slot);
            ports
                .into_iter()
                .fold(device, |device, (key, count)| device.number(key, u64::try_from(count).unwrap_or_default()))
        }
        _ => {
            let function = u8::try_from(path).unwrap_or(u8::MAX);
            let device = config.virtio("virtio-scsi").text("id", format!("scsi{path}"));
            let device = device.at(slot.map(|slot| slot.with_function(function)));
            // Else a system does not look for the others.
            let first_of_many = path == 0 && slot.is_some() && paths_on(config, bus) > 1;
            if first_of_many { device.flag("multifunction", true) } else { device }
        }
    }
}

/// QEMU's name of what a disk on USB is behind.
fn usb_name(node: &str) -> String {
    format!("{node}-usb")
}

/// What a disk on USB is behind, which has the serial number that a guest names it by. `usb-storage` would be both in one, and gives its disk no traits.
fn usb_adapter(node: &str, disk: &Disk) -> Device {
    Device::new("usb-bot").text("id", usb_name(node)).text("bus", "usb0.0").some_text("serial", disk.serial.clone())
}

/// All that one of the disks is made of, for one of its paths, in the order in which it comes into the machine.
fn devices(config: &MachineConfig, at: usize, disk: &Disk, path: u32) -> Vec<Device> {
    let adapter = (disk.bus == DiskBus::Usb).then(|| usb_adapter(&node(at), disk));
    adapter.into_iter().chain([device(config, at, disk, path)]).collect()
}

/// The device of one of the disks, for one of its paths.
fn device(config: &MachineConfig, at: usize, disk: &Disk, path: u32) -> Device {
    let bus = place_on(config, disk.bus);
    let before = config.all_disks().take(at).filter(|d| place_on(config, d.bus) == bus).count();
    let number = u32::try_from(before).unwrap_or(u32::MAX);
    let device = match bus {
        DiskBus::Virtio => config.virtio("virtio-blk").at(config.disk_slot(at)),
        DiskBus::Scsi => Device::new("scsi-hd")
            .text("bus", format!("scsi{path}.0"))
            .number("channel", 0u32)
            .number("scsi-id", number)
            .number("lun", 0u32),
        DiskBus::Ide => Device::new("ide-hd").text("bus", format!("ide.{}", number / 2)).number("unit", number % 2),
        DiskBus::Sata => {
            let controller = match config.machine_type().ide {
                Ide::Ahci(own) => own,
                Ide::Channels(_) => "sata0",
            };
            Device::new("ide-hd").text("bus", format!("{controller}.{number}"))
        }
        DiskBus::Nvme => Device::new("nvme").at(config.disk_slot(at)),
        DiskBus::Usb => Device::new("scsi-hd").text("bus", format!("{}.0", usb_name(&node(at)))),
    };
    let node = node(at);
    // An NVMe disk has to have a serial number.
    let unnamed = (disk.bus == DiskBus::Nvme).then(|| node.clone());
    let drive = drive_of(at, disk, path);
    let device = device
        .text("id", device_name(&node, path))
        .text("drive", drive)
        .some_text("serial", disk.serial.clone().or(unnamed));
    let device = with_traits(device, &disk.traits, bus);
    // Two devices write to the same bytes, which is what the guest is to know of.
    let device = if disk.traits.paths() > 1 { device.flag("share-rw", true) } else { device };
    // An error is the guest's to see; else some would stop the machine. NVMe has no such choice, and tells of all.
    let device = if disk.node.is_served() && disk.bus != DiskBus::Nvme {
        device.text("werror", "report".to_owned()).text("rerror", "report".to_owned())
    } else {
        device
    };
    // A kernel that is given is the first to be booted, and QEMU takes each rank once.
    match disk.boot_index.filter(|_| config.kernel.is_none()) {
        Some(index) => device.number("bootindex", index),
        None => device,
    }
}

/// QEMU's name of the device of a disk, for one of its paths.
fn device_name(node: &str, path: u32) -> String {
    if path == 0 { format!("{node}-device") } else { format!("{node}-device-path{path}") }
}

/// A disk's device that is of this kind, on a bus that has such.
fn with_traits(mut device: Device, traits: &DiskTraits, bus: DiskBus) -> Device {
    if let Some((logical, physical)) = traits.sectors() {
        device = device.number("logical_block_size", logical.bytes()).number("physical_block_size", physical.bytes());
    }
    if let Some(wwn) = traits.wwn {
        device = device.hex("wwn", wwn.number());
    }
    // A disk that does not turn has the number of revolutions 1 (SBC-3, 6.5.3; ACS-3, 7.12.7.71).
    match traits.rotational.filter(|_| bus != DiskBus::Nvme) {
        Some(true) => device = device.number("rotation_rate", REVOLUTIONS),
        Some(false) => device = device.number("rotation_rate", 1u32),
        None => {}
    }
    if let Some(has) = traits.write_cache {
        device = device.text("write-cache", on_off(has));
    }
    // The others' is what it is, and nobody can have it otherwise.
    if let Some(has) = traits.fua.filter(|_| matches!(bus, DiskBus::Scsi | DiskBus::Usb)) {
        device = device.flag("dpofua", has);
    }
    match (traits.discard, bus) {
        (Some(takes), DiskBus::Virtio) => device = device.flag("discard", takes),
        // Units of nothing are how the others say that they take none.
        (Some(false), _) => device = device.number("discard_granularity", 0u32),
        _ => {}
    }
    if let Some(bytes) = traits.discard_granularity {
        device = device.number("discard_granularity", bytes);
    }
    if traits.removable {
        device = device.flag("removable", true);
    }
    device
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
    /// All disks, the last one being that of shares.
    fn all_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().chain(&self.share_disk)
    }

    /// QEMU's names of the disks that a server of Belljar's has.
    #[must_use]
    pub fn served_disks(&self) -> Vec<String> {
        let disks = self.all_disks().enumerate().filter(|(_, disk)| disk.node.is_served());
        let nodes = disks.flat_map(|(at, disk)| {
            let further = (1..).zip(&disk.node.further_paths).map(move |(path, _)| path_node(&node(at), path));
            std::iter::once(node(at)).chain(further)
        });
        nodes.collect()
    }

    /// What is to be plugged in for the disks that are not attached, in this order. `None`: one of them has no slot of its own.
    #[must_use]
    pub fn plugged(&self) -> Option<Vec<Plugged>> {
        let mut all = Vec::new();
        let mut has_scsi = self.disks.iter().any(|d| d.has_controller() && d.bus == DiskBus::Scsi);
        for (at, disk) in self.disks.iter().enumerate().filter(|(_, disk)| !disk.attached && !disk.traits.unplugged) {
            let (slot, disks) = match disk.bus {
                DiskBus::Virtio | DiskBus::Nvme => (self.disk_slot(at)?, 1),
                DiskBus::Scsi => {
                    let slot = self.controller_slot(disk.bus)?;
                    if !std::mem::replace(&mut has_scsi, true) {
                        all.push(Plugged {
                            device: controller(self, disk.bus, 0),
                            name: "the SCSI adapter".to_owned(),
                            kind: disk.bus.word(),
                            slot,
                            sign: DeviceSign::ScsiHost,
                        });
                    }
                    let is_there = |d: &&Disk| d.bus == DiskBus::Scsi && !d.traits.unplugged;
                    let so_far = self.disks[..=at].iter().filter(is_there).count();
                    (slot, u32::try_from(so_far).unwrap_or(u32::MAX))
                }
                DiskBus::Ide | DiskBus::Sata | DiskBus::Usb => return None,
            };
            let serial = disk.serial.as_ref().map_or_else(String::new, |serial| format!(" {serial}"));
            all.push(Plugged {
                device: device(self, at, disk, 0),
                name: format!("the {} disk{serial}", disk.bus),
                kind: disk.bus.word(),
                slot,
                sign: DeviceSign::Disks(disks),
            });
        }
        Some(all)
    }
}

impl MachineConfig {
    /// What may go out of the machine while it runs, and come into it.
    #[must_use]
    pub fn removable(&self) -> Vec<Removable> {
        let disks = self.disks.iter().enumerate().filter(|(_, disk)| disk.removable).filter_map(|(at, disk)| {
            let path = |path| {
                let name = node(at);
                let id = if disk.bus == DiskBus::Usb { usb_name(&name) } else { device_name(&name, path) };
                let switch = (disk.bus == DiskBus::Usb).then(|| id.clone());
                let medium = disk
                    .traits
                    .removable
                    .then(|| Medium { device: device_name(&name, path), node: drive_of(at, disk, path) });
                RemovablePart { id, devices: devices(self, at, disk, path), switch, medium }
            };
            Some(Removable {
                name: Some(disk.serial.clone()?),
                parts: (0..disk.traits.paths()).map(path).collect(),
                goes_at_once: matches!(disk.bus, DiskBus::Scsi | DiskBus::Usb),
                is_served: disk.node.is_served(),
                is_in: !disk.traits.unplugged,
            })
        });
        let card = self.card().map(|card| Removable {
            name: None,
            parts: vec![RemovablePart { id: CARD.to_owned(), devices: vec![card], switch: None, medium: None }],
            goes_at_once: false,
            is_served: false,
            is_in: true,
        });
        disks.chain(card).collect()
    }
}

/// What may go out of a machine that runs, and come into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removable {
    /// A disk's serial number; the network card has none.
    pub name: Option<String>,
    /// A disk's paths.
    pub parts: Vec<RemovablePart>,
    /// Whether it goes without the guest having a say in it. On PCI the guest is asked to let go of it.
    pub goes_at_once: bool,
    /// Whether a server of Belljar's has its bytes.
    pub is_served: bool,
    /// Whether it is in the machine at first.
    pub is_in: bool,
}

/// One path of what may go out of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovablePart {
    /// QEMU's name of what is taken out.
    pub id: String,
    /// What comes in, in this order.
    pub devices: Vec<Device>,
    /// QEMU's name of what has to be switched on when all of them are in: `usb-bot` shows itself only then.
    pub switch: Option<String>,
    /// What can be taken out of it while it stays in.
    pub medium: Option<Medium>,
}

/// The medium of a removable disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Medium {
    /// QEMU's name of the device that it is in.
    pub device: String,
    /// QEMU's name of its bytes.
    pub node: String,
}

fn check(disk: &Disk) -> Result<(), ArgsError> {
    if disk.node.format.is_empty() {
        return Err(ArgsError::Empty { what: "a disk's format" });
    }
    if disk.node.refuses_writes() && matches!(disk.bus, DiskBus::Ide | DiskBus::Sata) {
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

pub(crate) fn push(out: &mut Vec<OsString>, option: &str, value: KeyVal) {
    out.push(option.into());
    out.push(value.finish());
}
