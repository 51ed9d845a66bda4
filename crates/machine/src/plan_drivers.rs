//! What an image's kernel has drivers for, and so what its disks are plugged into, which network card it has, and whether virtio's ports are there.
//!
//! A machine has virtio unless the image is known to have none. What the user asks for stays as it was asked for.

use std::collections::HashSet;

use belljar_disk_reader::{Description, System, SystemKernel, all_known};
use belljar_guest_spec::{BusChoice, DiskBus, NicMode, Word};
use belljar_image::modules::{Feature, Presence};
use serde::{Deserialize, Serialize};

use crate::{
    plan_choices::Choices,
    qemu::platform::{Ide, MachineType, Platform, Transport},
};

/// Buses of disks in the order in which they are taken, and what a kernel needs for each.
const BUSES: &[(DiskBus, &[Feature])] = &[
    (DiskBus::Virtio, &[Feature::VirtioPci, Feature::VirtioBlk]),
    (DiskBus::Sata, &[Feature::Ahci]),
    (DiskBus::Ide, &[Feature::Piix]),
    (DiskBus::Nvme, &[Feature::Nvme]),
    (DiskBus::Scsi, &[Feature::VirtioPci, Feature::VirtioScsi]),
];

/// Network cards in the place of virtio's, by QEMU's names, the first choice first.
const CARDS: &[(&str, Feature)] = &[("e1000e", Feature::E1000e), ("e1000", Feature::E1000)];

/// What the kernel that an image boots is known to have drivers for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Drivers {
    /// Whether it has the driver of a bus when it looks for its root, where that is known.
    at_start: Vec<(DiskBus, bool)>,
    /// Why it is not known what is in its initramfs, if it was looked for.
    initramfs_unread: Option<String>,
    /// Whether it has virtio disks when it has found its root, if that is known.
    virtio_disks: Option<bool>,
    /// The same of virtio ports.
    virtio_ports: Option<bool>,
    /// The same of virtio network cards.
    virtio_network: Option<bool>,
    /// Which of [`CARDS`] it has.
    cards: Vec<String>,
}

/// What is chosen for an image's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buses {
    /// Of the disk that is booted from, and of what Belljar adds.
    pub(crate) boot: DiskBus,
    /// Of further disks where nobody says which.
    pub(crate) further: DiskBus,
}

impl Default for Buses {
    fn default() -> Self {
        Self { boot: DiskBus::Virtio, further: DiskBus::Virtio }
    }
}

impl Drivers {
    /// Of the kernel that the boot loader starts, else the newest.
    pub(crate) fn of(found: &Description, system: &System) -> Self {
        let Some(kernel) = found.booting_kernel(system).or(system.kernels.first()) else { return Self::default() };
        let mut initramfs = None;
        let mut initramfs_unread = None;
        // A kernel that has virtio by itself needs nothing else.
        if at_start(kernel, &[Feature::VirtioPci, Feature::VirtioBlk], None) != Some(true)
            && let Some(entry) = found.default_entry()
        {
            match found.initramfs_modules(entry) {
                Ok(modules) => initramfs = Some(modules),
                Err(why) => initramfs_unread = Some(why),
            }
        }
        let known =
            |(bus, features): &(DiskBus, &[Feature])| Some((*bus, at_start(kernel, features, initramfs.as_ref())?));
        let has = |feature| kernel.feature(feature).map(|presence| presence != Presence::Absent);
        let all = |features: &[Feature]| all_known(features.iter().map(|feature| has(*feature)));
        Self {
            at_start: BUSES.iter().filter_map(known).collect(),
            initramfs_unread,
            virtio_disks: all(&[Feature::VirtioPci, Feature::VirtioBlk]),
            virtio_ports: all(&[Feature::VirtioPci, Feature::VirtioConsole]),
            virtio_network: all(&[Feature::VirtioPci, Feature::VirtioNet]),
            cards: CARDS
                .iter()
                .filter(|(_, card)| has(*card) == Some(true))
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        }
    }

    fn starts_from(&self, bus: DiskBus) -> Option<bool> {
        self.at_start.iter().find(|(known, _)| *known == bus).map(|(_, has)| *has)
    }

    /// Whether it is known to have no port of virtio's, from which the agent could be read.
    pub(crate) fn lacks_ports(&self) -> bool {
        self.virtio_ports == Some(false)
    }

    /// The bus from which it boots, and why.
    fn boot_bus(&self, machine: &MachineType) -> (DiskBus, String) {
        if machine.transport != Transport::Pci {
            return (DiskBus::Virtio, "such a machine has no other disks".to_owned());
        }
        match self.starts_from(DiskBus::Virtio) {
            Some(true) => (DiskBus::Virtio, "the image's kernel has its driver when it looks for its root".to_owned()),
            None => {
                let why = self.initramfs_unread.as_ref().map_or_else(String::new, |why| format!(", for {why}"));
                (DiskBus::Virtio, format!("what the image's kernel has drivers for is not known{why}"))
            }
            Some(false) => {
                let is_there = |bus| !(bus == DiskBus::Ide && matches!(machine.ide, Ide::Ahci(_) | Ide::Channels(0)));
                let others = BUSES.iter().map(|(bus, _)| *bus).filter(|bus| is_there(*bus));
                let lacking = "the image's kernel has no virtio disks when it looks for its root";
                let has_virtio_later =
                    if self.virtio_disks == Some(true) { ", for they are not in its initramfs" } else { "" };
                match others.into_iter().find(|bus| self.starts_from(*bus) == Some(true)) {
                    Some(bus) => (bus, format!("{lacking}{has_virtio_later}, and a driver for {bus}")),
                    None => (
                        DiskBus::Virtio,
                        format!("{lacking}{has_virtio_later}, nor a driver for any other disk of such a machine"),
                    ),
                }
            }
        }
    }

    /// The network card in the place of virtio's, if it is to be another, and why.
    fn card(&self) -> Option<(&'static str, String)> {
        if self.virtio_network != Some(false) {
            return None;
        }
        let (name, _) = CARDS.iter().find(|(name, _)| self.cards.iter().any(|card| card == name))?;
        Some((name, format!("the image's kernel has no virtio network, and a driver for {name}")))
    }
}

/// Whether a kernel has all of these when it looks for its root, if that is known.
fn at_start(kernel: &SystemKernel, features: &[Feature], initramfs: Option<&HashSet<String>>) -> Option<bool> {
    all_known(features.iter().map(|feature| kernel.feature_at_start(*feature, initramfs)))
}

/// The buses of an image's disks. `unknown`: why nothing is known of it.
pub(crate) fn buses(
    asked: BusChoice,
    drivers: Result<&Drivers, &str>,
    machine: &MachineType,
    choices: &mut Choices,
) -> Buses {
    let boot = match (asked.asked(), drivers) {
        (Some(bus), _) => bus,
        (None, Ok(drivers)) => {
            let (bus, why) = drivers.boot_bus(machine);
            choices.add("boot bus", bus.word(), why);
            bus
        }
        (None, Err(why)) => {
            choices.add(
                "boot bus",
                DiskBus::Virtio.word(),
                format!("what the image has drivers for is not known: {why}"),
            );
            DiskBus::Virtio
        }
    };
    let no_virtio = drivers.is_ok_and(|drivers| drivers.virtio_disks == Some(false));
    Buses { boot, further: if no_virtio { boot } else { DiskBus::Virtio } }
}

/// The network card of an image that has no driver for virtio's.
pub(crate) fn card(drivers: Option<&Drivers>, mode: NicMode, choices: &mut Choices) -> Option<String> {
    let (model, why) = drivers.filter(|_| mode != NicMode::None)?.card()?;
    choices.add("network card", model, why);
    Some(model.to_owned())
}

/// Where an agent speaks whose guest has no virtio ports.
pub(crate) fn port_of_agent(platform: &Platform) -> &'static str {
    match platform.second_serial {
        Some(_) => "speaks on the second serial port",
        None => {
            "has no port to speak on, for such a machine has no second serial port, and a shell on the console does all"
        }
    }
}

/// What a machine of this platform's usual type would have for this disk's system that is not virtio, and the bus of its disk in any case; each with the reason.
#[must_use]
pub fn hardware_for(found: &Description, system: &System, platform: &Platform) -> Vec<(&'static str, String)> {
    let drivers = Drivers::of(found, system);
    let (bus, why) = drivers.boot_bus(platform.default_machine());
    let mut all = vec![("bus", format!("its disk would be on {bus}: {why}"))];
    all.extend(drivers.card().map(|(card, why)| ("network", format!("its card would be {card}: {why}"))));
    // What was asked of the kernel is whether it has virtio on a PCI bus.
    if platform.default_machine().transport == Transport::Pci && platform.agent().is_some() && drivers.lacks_ports() {
        let port = port_of_agent(platform);
        all.push((
            "agent",
            format!("it would come on the disk of shares, and {port}: the image's kernel has no virtio ports"),
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::platform;

    fn machine(name: &str) -> &'static MachineType {
        let platform: &'static Platform = platform::default();
        platform.machine_type(name)
    }

    fn has(buses: &[(DiskBus, bool)]) -> Drivers {
        Drivers { at_start: buses.to_vec(), ..Drivers::default() }
    }

    #[test]
    fn virtio_unless_it_is_known_to_be_missing() {
        use DiskBus::{Ide, Nvme, Sata, Scsi, Virtio};
        let bus = |known: &[(DiskBus, bool)]| has(known).boot_bus(machine("pc")).0;
        assert_eq!(bus(&[]), Virtio, "nothing is guessed");
        assert_eq!(bus(&[(Sata, true)]), Virtio);
        assert_eq!(bus(&[(Virtio, true), (Sata, true)]), Virtio);
        let none = (Virtio, false);
        assert_eq!(bus(&[none, (Scsi, true), (Nvme, true), (Ide, true), (Sata, true)]), Sata);
        assert_eq!(bus(&[none, (Sata, false), (Nvme, true), (Ide, true)]), Ide);
        assert_eq!(bus(&[none, (Sata, false), (Ide, false), (Nvme, true)]), Nvme);
        assert_eq!(bus(&[none, (Scsi, true)]), Scsi);
        let (nothing, why) = has(&[none, (Sata, false)]).boot_bus(machine("pc"));
        assert!(nothing == Virtio && why.contains("nor a driver for any other disk"), "{why}");
        // On q35 there is no such controller: what is asked for on it is SATA's.
        assert_eq!(has(&[none, (Ide, true), (Nvme, true)]).boot_bus(machine("q35")).0, Nvme);
        let late = Drivers { virtio_disks: Some(true), ..has(&[none, (Sata, true)]) };
        assert!(late.boot_bus(machine("pc")).1.contains("not in its initramfs"));
        let unread = Drivers { initramfs_unread: Some("/initrd: it is packed with lzop".into()), ..has(&[]) };
        assert!(unread.boot_bus(machine("pc")).1.contains("for /initrd: it is packed with lzop"));
    }

    #[test]
    fn what_was_asked_for_stays_and_is_no_choice() {
        let mut choices = Choices::default();
        let drivers = Drivers { virtio_disks: Some(false), ..has(&[(DiskBus::Virtio, false), (DiskBus::Sata, true)]) };
        let asked = buses(BusChoice::Ide, Ok(&drivers), machine("pc"), &mut choices);
        assert_eq!(asked, Buses { boot: DiskBus::Ide, further: DiskBus::Ide });
        assert!(choices.0.is_empty());
        let found = buses(BusChoice::Auto, Ok(&drivers), machine("pc"), &mut choices);
        assert_eq!(found, Buses { boot: DiskBus::Sata, further: DiskBus::Sata });
        let unknown = buses(BusChoice::Auto, Err("it is cut short"), machine("pc"), &mut choices);
        assert_eq!(unknown, Buses::default());
        let said = format!("{:?}", choices.0);
        assert!(said.contains("a driver for sata") && said.contains("not known: it is cut short"), "{said}");
        // An image that has virtio, on another bus: its further disks are on virtio as ever.
        let drivers = Drivers { virtio_disks: Some(true), ..has(&[(DiskBus::Virtio, true)]) };
        let asked = buses(BusChoice::Sata, Ok(&drivers), machine("pc"), &mut choices);
        assert_eq!(asked, Buses { boot: DiskBus::Sata, further: DiskBus::Virtio });
    }

    #[test]
    fn another_card_only_where_virtios_has_no_driver() {
        let with = |virtio_network, cards: &[&str]| {
            let cards = cards.iter().map(ToString::to_string).collect();
            let drivers = Drivers { virtio_network, cards, ..Drivers::default() };
            drivers.card().map(|(name, _)| name)
        };
        assert_eq!(with(Some(false), &["e1000", "e1000e"]), Some("e1000e"));
        assert_eq!(with(Some(false), &["e1000"]), Some("e1000"));
        assert_eq!(with(Some(false), &[]), None);
        assert_eq!(with(Some(true), &["e1000e"]), None);
        assert_eq!(with(None, &["e1000e"]), None);
        let drivers = Drivers { virtio_network: Some(false), cards: vec!["e1000e".into()], ..Drivers::default() };
        assert_eq!(card(Some(&drivers), NicMode::None, &mut Choices::default()), None);
    }
}
