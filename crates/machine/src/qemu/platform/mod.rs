//! What differs between the machines of one processor and those of another, in one table.
//!
//! A platform is data, in a file of its own, and a line in [`PLATFORMS`]. Which one a guest has follows from the processor that its
//! kernel, its root or the system on its disk is for ([`of`]); where that is not known, it has that of the host ([`default`]).

mod aarch64;
mod arm;
mod ppc64le;
mod riscv64;
mod s390x;
mod x86_64;

use belljar_agent_binary::Agent;
use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::args::Slots;

/// Every platform.
pub static PLATFORMS: &[&Platform] =
    &[&x86_64::X86_64, &aarch64::AARCH64, &riscv64::RISCV64, &s390x::S390X, &ppc64le::PPC64LE, &arm::ARM];

/// A processor, the machines that QEMU makes for it, and what these have.
#[derive(Clone, Debug)]
pub struct Platform {
    /// What its guests run.
    pub processor: Processor,
    /// QEMU's programs for it, in the order in which they are tried.
    pub programs: &'static [&'static str],
    /// Where distributions keep one that is not for people's `PATH`.
    pub places: &'static [&'static str],
    /// The packages that have one, for a person.
    pub packages: &'static str,
    /// `-machine` where none is asked for: the first of its types, with properties where it needs some.
    pub machine: &'static str,
    /// Machine types. The first is the default, and its name is complete; the last is for all whose names no other knows.
    pub machines: &'static [MachineType],
    /// Properties of `-machine` that name no file. Of others it is not known.
    pub properties: &'static [&'static str],
    /// A property of `-machine` by which the firmware speaks on the serial line, with its value.
    pub talkative: Option<(&'static str, &'static str)>,
    /// Whether its machines can have a graphics card on the ISA bus that the firmware and every kernel write text to.
    pub has_isa_screen: bool,
    /// Whether its guests find SMBIOS tables, so that they can be told something by these.
    pub has_smbios: bool,
    /// What starts a disk where no UEFI firmware does, for a person; none if a disk is started by UEFI alone.
    pub own_firmware: Option<&'static str>,
    /// What QEMU loads into a machine that boots from a disk or a kernel: names of files in its data directories.
    pub firmware: &'static [&'static str],
    /// Such directories of distributions, beside QEMU's own.
    pub firmware_dirs: &'static [&'static str],
    /// The packages that have UEFI firmware, for a person; none if there is no such firmware for it.
    pub uefi_packages: Option<&'static str>,
    /// `-cpu` where none is asked for.
    pub cpu: fn(Accel) -> &'static str,
    /// The first serial port, as its guests call it.
    pub console: &'static str,
    /// The second serial port, if there is one.
    pub second_serial: Option<&'static str>,
    /// The device by which a guest's kernel tells of its panic.
    pub panic_device: Option<&'static str>,
    /// The device by which a resumed guest notices that it is a copy.
    pub generation_device: Option<&'static str>,
    /// The watchdogs that its machines can have, the usual one first.
    pub watchdogs: &'static [Watchdog],
    /// Why a machine's copies are not to be trusted, if they are not: none is kept as a template then.
    pub uncopied: Option<&'static str>,
    /// KVM on such a processor; `None` where it is not used.
    pub kvm: Option<Kvm>,
}

/// A type of machine, as `-machine` names it.
#[derive(Clone, Debug)]
pub struct MachineType {
    /// Its name: that of the newest version.
    pub name: &'static str,
    /// How the names of its versions begin.
    pub versions: &'static str,
    /// How virtio devices are connected.
    pub transport: Transport,
    /// What there is for IDE disks.
    pub ide: Ide,
    /// Where devices are, where that is known for whatever there is in the machine.
    pub slots: Option<&'static Slots>,
    /// Words for a kernel that is started without KVM and without firmware between, in a machine with no other properties.
    pub words_without_kvm: &'static str,
}

impl MachineType {
    /// One without IDE disks, of whose slots nothing is known.
    const fn plain(name: &'static str, versions: &'static str, transport: Transport) -> Self {
        Self { name, versions, transport, ide: Ide::Channels(0), slots: None, words_without_kvm: "" }
    }
}

/// How virtio devices are connected: the end of their names in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// On a PCI bus.
    Pci,
    /// Behind channels, as all of an IBM Z machine's devices are.
    Ccw,
}

impl Transport {
    /// QEMU's name of a virtio device, such as `virtio-blk`.
    #[must_use]
    pub fn device(self, virtio: &str) -> String {
        match self {
            Self::Pci => format!("{virtio}-pci"),
            Self::Ccw => format!("{virtio}-ccw"),
        }
    }
}

/// What there is for IDE disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ide {
    /// Channels, `ide.0` and up, with two disks each.
    Channels(usize),
    /// An AHCI controller of the machine's own, of this name: IDE disks are SATA disks.
    Ahci(&'static str),
}

/// KVM on a host's processor.
#[derive(Clone, Debug)]
pub struct Kvm {
    /// What a firmware calls that which it needs.
    pub switches: &'static str,
    /// The kernel's modules that have it.
    pub modules: &'static str,
    /// By which it is tried whether it works.
    pub probe: ProbeGuest,
}

/// A guest of a few instructions, which QEMU boots from a disk and which ends QEMU.
#[derive(Clone, Debug)]
pub struct ProbeGuest {
    /// The machine type.
    pub machine: &'static str,
    /// Bytes of the disk.
    pub disk: fn() -> Vec<u8>,
    /// For `-device`: the disk, whose node is `disk`, and what the guest ends QEMU by.
    pub devices: &'static [&'static str],
    /// QEMU's exit code if all went well.
    pub exit_code: i32,
}

impl Platform {
    /// The machine type where none is asked for.
    #[must_use]
    pub fn default_machine(&self) -> &'static MachineType {
        &self.machines[0]
    }

    /// The type of a machine that `-machine` describes so.
    #[must_use]
    pub fn machine_type(&self, machine: &str) -> &'static MachineType {
        let name = machine.split(',').next().unwrap_or_default();
        let is = |kind: &&MachineType| name == kind.name || name.starts_with(kind.versions);
        self.machines.iter().find(is).unwrap_or(&self.machines[self.machines.len() - 1])
    }

    /// By which names firmware may know the machine that `-machine` describes so: it speaks of versions, a user perhaps of the newest one.
    #[must_use]
    pub fn machine_names<'a>(&self, machine: &'a str) -> Vec<&'a str> {
        let name = machine.split(',').next().unwrap_or_default();
        let newest =
            self.machines.iter().filter(|kind| kind.name == name && !name.is_empty()).map(|kind| kind.versions);
        newest.chain([name]).collect()
    }

    /// Whether it is this host's, so that the host's processor can run its guests.
    #[must_use]
    pub fn is_hosts(&self) -> bool {
        self.processor.name == std::env::consts::ARCH
    }

    /// How to have an agent for it, for a person; none if there is one, or there can be none.
    #[must_use]
    pub fn how_to_have_agent(&self) -> Option<String> {
        belljar_agent_binary::how_to_have(self.processor.name)
    }

    /// The agent, if there is one for it.
    #[must_use]
    pub fn agent(&self) -> Option<Agent> {
        belljar_agent_binary::agent_for(self.processor.name)
    }
}

/// The platform whose guests run what is for `arch`.
#[must_use]
pub fn of(arch: Arch) -> Option<&'static Platform> {
    let made_for = PLATFORMS.iter().find(|platform| platform.processor.arch == arch);
    made_for.or_else(|| PLATFORMS.iter().find(|platform| platform.processor.runs(arch))).copied()
}

/// The platform of a guest of which nothing else is known: the host's, if it is in the table.
#[must_use]
pub fn default() -> &'static Platform {
    PLATFORMS.iter().find(|platform| platform.is_hosts()).unwrap_or(&PLATFORMS[0])
}

/// What guests can run on.
#[must_use]
pub fn processors() -> Vec<&'static Processor> {
    PLATFORMS.iter().map(|platform| &platform.processor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_platform_is_whole() {
        for platform in PLATFORMS {
            let default = platform.default_machine();
            assert_eq!(platform.machine_type(platform.machine).name, default.name);
            let properties = platform.machine.split(',').skip(1).filter_map(|property| property.split('=').next());
            for property in properties {
                assert!(
                    platform.properties.contains(&property),
                    "{property}: machines that nobody changed have templates"
                );
            }
            assert_eq!(platform.machine_type(default.name).name, default.name);
            assert_eq!(platform.machine_type(&format!("{},x=y", default.name)).name, default.name);
            let other = platform.machine_type("no-machine-of-this-name");
            assert!(other.slots.is_none(), "{other:?}: nothing is known of it");
            assert_eq!(of(platform.processor.arch).map(|p| p.processor.name), Some(platform.processor.name));
            assert!(!platform.programs.is_empty() && !platform.packages.is_empty());
        }
    }

    #[test]
    fn what_starts_a_disk_is_known_of_each() {
        for platform in PLATFORMS {
            assert!(
                platform.own_firmware.is_some() || platform.uefi_packages.is_some(),
                "{}: nothing would start an image",
                platform.processor.name
            );
        }
    }

    #[test]
    fn each_has_one_name_of_its_devices() {
        let device = |name: &str| {
            let found = PLATFORMS.iter().find(|platform| platform.processor.name == name).unwrap();
            found.default_machine().transport.device("virtio-blk")
        };
        assert_eq!(["x86_64", "aarch64", "s390x"].map(device), ["virtio-blk-pci", "virtio-blk-pci", "virtio-blk-ccw"]);
    }

    #[test]
    fn versions_of_a_machine_are_of_its_type() {
        let name = |machine| default().machine_type(machine).name;
        assert_eq!(["pc", "pc-i440fx-7.2,usb=on", "pc,graphics=off"].map(name), ["pc"; 3]);
        assert_eq!(["q35", "pc-q35-7.2", "q35,usb=on"].map(name), ["q35"; 3]);
        assert_eq!(["microvm", "pcx", "isapc"].map(name), [""; 3]);
    }
}
