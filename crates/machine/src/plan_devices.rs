//! Devices that a guest has only where they are asked for: which of QEMU's they are, and why one cannot be had.

use std::path::PathBuf;

use belljar_guest_spec::{
    Accel, Devices, Display, GuestSpec, MAX_SERIAL_PORTS, Sound, Topology, Watchdog, Word, check_numa, check_pmem,
};

use crate::{
    plan_choices::Choices,
    qemu::{
        args::{Device, Further, KeyVal, Pmem, SerialLog},
        platform::{Platform, Transport},
        probe::QemuInfo,
    },
};

/// Why a guest cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum NoDevice {
    /// No machine for this processor has it.
    #[error("machines for {arch} have no {key} {word}; {there}, or leave {key} out")]
    Platform {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        word: &'static str,
        /// The processor.
        arch: String,
        /// What to ask for instead.
        there: String,
    },
    /// It is part of another type of machine.
    #[error(
        "the {key} {word} is part of the machine type {wanted}, and this machine is {machine:?}; say --machine {wanted} (machine = \"{wanted}\"), or take another {key}"
    )]
    Machine {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        word: &'static str,
        /// Of which type the machine has to be.
        wanted: &'static str,
        /// Which it is.
        machine: String,
    },
    /// The processors are not as many as they are said to be put together.
    #[error(
        "cpu-topology makes {made} processors (sockets * cores * threads), and the guest has {cpus}, with those that can be plugged in; say cpus = {made} (--cpus {made}), or another topology"
    )]
    Topology {
        /// How many that makes.
        made: u32,
        /// How many there are.
        cpus: u32,
    },
    /// More processors than a machine of this type has places for.
    #[error(
        "the guest is to have {cpus} processors, with those that can be plugged in, and a machine {machine:?} has {most} at most; ask for fewer (cpus, \
         spare-cpus), or take another machine type"
    )]
    Processors {
        /// How many are asked for.
        cpus: u32,
        /// How many there can be.
        most: u32,
        /// The machine.
        machine: String,
    },
    /// The machine has no bus for what every guest has.
    #[error(
        "a machine {machine:?} has no PCI bus, which Belljar's own devices are on, such as the agent's port; leave machine out, or take another machine type"
    )]
    NoBus {
        /// The machine.
        machine: String,
    },
    /// Nodes that do not fit the machine.
    #[error("numa: {0}")]
    Numa(String),
    /// Modules of persistent memory that cannot be.
    #[error("pmem: {0}")]
    Pmem(String),
    /// More serial ports than a guest finds, or two of one name.
    #[error("serial-ports: {0}")]
    SerialPorts(String),
    /// QEMU was built without it.
    #[error("{} has no device {device:?}, which {key} asks for; name another QEMU with --qemu, or leave {key} out", path.display())]
    Qemu {
        /// The setting.
        key: &'static str,
        /// The device, in QEMU's words.
        device: String,
        /// The program.
        path: PathBuf,
    },
}

/// Types of QEMU's machines without a PCI bus, or, for `microvm`, without one where nobody asks for it.
const BUSLESS: [&str; 4] = ["microvm", "isapc", "xenpv", "none"];

/// How many processors the machine of a type may have, where that is the same with every QEMU (`max_cpus` in its `hw/`).
const MOST_CPUS: [(&str, u32); 2] = [("pc", 255), ("s390-ccw-virtio", 248)];

/// The CPU model for processors with several threads, where that is to be another than the usual one.
///
/// The usual one without KVM is AMD's, of which a guest believes several threads of a core only with the feature `topoext`, and that QEMU does not translate
/// (`TCG_EXT3_FEATURES`). Intel's are told by what every model has.
pub(crate) fn cpu_with_threads(asked: &Devices, platform: &Platform, accel: Accel) -> Option<String> {
    let has_threads = asked.topology.is_some_and(|topology| topology.threads > 1);
    let is_translated = platform.processor.name == "x86_64" && accel == Accel::Tcg;
    (has_threads && is_translated).then(|| format!("{},vendor=GenuineIntel", (platform.cpu)(accel)))
}

/// How processors are put together where nodes are asked for and nothing is said of that: what is in one socket is in one node, as in hardware. QEMU would
/// put all of a PC's into one socket, which Linux warns of (`topology_sane`).
pub(crate) fn sockets_of_nodes(asked: &Devices, platform: &Platform) -> Option<Topology> {
    let with_cpus: Vec<_> = asked.numa.iter().map(|node| &node.cpus[..]).filter(|cpus| !cpus.is_empty()).collect();
    if platform.processor.name != "x86_64" || with_cpus.len() < 2 {
        return None;
    }
    let count = |cpus: &[(u32, u32)]| cpus.iter().map(|(first, last)| last - first + 1).sum::<u32>();
    let cores = count(with_cpus[0]);
    let begins = (0..).step_by(cores as usize);
    let are_even = with_cpus
        .iter()
        .zip(begins)
        .all(|(cpus, first)| matches!(cpus, [range] if *range == (first, first + cores - 1)));
    let cores = if are_even { cores } else { 1 };
    let all: u32 = with_cpus.iter().map(|cpus| count(cpus)).sum();
    Some(Topology { sockets: all / cores, cores, threads: 1 })
}

/// For which machine devices are looked for.
struct Ground<'a> {
    platform: &'static Platform,
    /// As `-machine` names it.
    machine: &'a str,
    qemu: &'a QemuInfo,
}

/// QEMU's devices for what was asked for.
///
/// # Errors
/// Where one cannot be had.
pub(crate) fn further(
    spec: &GuestSpec,
    platform: &'static Platform,
    machine: &str,
    qemu: &QemuInfo,
    choices: &mut Choices,
) -> Result<Vec<Further>, NoDevice> {
    let asked = &spec.devices;
    // Those that can be plugged in have their places, too.
    let cpus = spec.hardware.cpus + spec.hardware.spare_cpus;
    if let Some(topology) = asked.topology.filter(|topology| topology.processors() != cpus) {
        return Err(NoDevice::Topology { made: topology.processors(), cpus });
    }
    let kind = machine.split(',').next().unwrap_or_default();
    if BUSLESS.contains(&kind) {
        return Err(NoDevice::NoBus { machine: kind.to_owned() });
    }
    let most = MOST_CPUS.iter().find(|(name, _)| *name == platform.machine_type(machine).name).map(|(_, most)| *most);
    if let Some(most) = most.filter(|most| cpus > *most) {
        return Err(NoDevice::Processors { cpus, most, machine: kind.to_owned() });
    }
    check_numa(&asked.numa, spec.hardware.memory, cpus).map_err(NoDevice::Numa)?;
    if platform.processor.name == "riscv64"
        && let Some(at) = asked.numa.iter().position(|node| node.cpus.is_empty())
    {
        return Err(NoDevice::Numa(format!(
            "node {at} has no processor, and a node is a socket of processors in this machine; give it some"
        )));
    }
    check_pmem(&asked.pmem).map_err(NoDevice::Pmem)?;
    let ground = Ground { platform, machine, qemu };
    let mut all = Vec::new();
    if let Some(watchdog) = asked.watchdog {
        all.push(ground.watchdog(watchdog, choices)?);
    }
    if asked.balloon {
        // QEMU punches a hole into the file behind the memory, also where the guest has that for itself (`ram_block_discard_range`).
        let uncopied = Some("what the guest's balloon gives to the host would be taken from the template, too");
        all.push(Further { uncopied, ..ground.on_bus(ground.virtio("balloon", "virtio-balloon")?) });
    }
    if let Some(display) = asked.display {
        all.push(ground.display(display)?);
    }
    if let Some(sound) = asked.sound {
        all.push(ground.sound(sound)?);
    }
    if asked.serial_ports.len() > MAX_SERIAL_PORTS {
        let why = format!("there are {}, and a guest finds {MAX_SERIAL_PORTS} at most", asked.serial_ports.len());
        return Err(NoDevice::SerialPorts(why));
    }
    for (at, name) in asked.serial_ports.iter().enumerate() {
        if asked.serial_ports[..at].contains(name) {
            return Err(NoDevice::SerialPorts(format!("two are called {name:?}; give each its own name")));
        }
        all.push(ground.serial_port(name, choices)?);
    }
    for (number, size) in asked.pmem.iter().enumerate() {
        all.push(ground.pmem(Pmem { number, size: *size, file: None })?);
    }
    Ok(all)
}

impl Ground<'_> {
    /// A device of QEMU's, if this one has it.
    fn device(&self, key: &'static str, name: &str) -> Result<Device, NoDevice> {
        if self.qemu.devices.iter().any(|known| known == name) {
            return Ok(Device::new(name));
        }
        Err(NoDevice::Qemu { key, device: name.to_owned(), path: self.qemu.path.clone() })
    }

    /// A virtio device, if this QEMU has it.
    fn virtio(&self, key: &'static str, name: &str) -> Result<Device, NoDevice> {
        self.device(key, &self.transport().device(name))
    }

    fn transport(&self) -> Transport {
        self.platform.machine_type(self.machine).transport
    }

    /// A device on the bus on which virtio's are.
    fn on_bus(&self, device: Device) -> Further {
        match self.transport() {
            Transport::Pci => Further::on_pci(device),
            Transport::Ccw => Further::elsewhere(Some(device)),
        }
    }

    /// That there is a PCI bus, which a device wants that is on no other.
    fn wants_pci(&self, key: &'static str, word: &'static str, there: &str) -> Result<(), NoDevice> {
        if self.transport() == Transport::Pci {
            return Ok(());
        }
        let arch = self.platform.processor.arch.to_string();
        Err(NoDevice::Platform { key, word, arch, there: there.to_owned() })
    }

    fn display(&self, asked: Display) -> Result<Further, NoDevice> {
        const KEY: &str = "display";
        if asked != Display::Virtio {
            self.wants_pci(KEY, asked.word(), "take virtio")?;
        }
        let further = match asked {
            Display::Std => Further::on_pci(self.device(KEY, "VGA")?),
            Display::Bochs => Further::on_pci(self.device(KEY, "bochs-display")?),
            Display::Cirrus => Further::on_pci(self.device(KEY, "cirrus-vga")?),
            // The firmware of a PC writes to VGA.
            Display::Virtio if self.platform.has_isa_screen => Further::on_pci(self.device(KEY, "virtio-vga")?),
            Display::Virtio => self.on_bus(self.virtio(KEY, "virtio-gpu")?),
        };
        Ok(Further { is_screen: true, ..further })
    }

    fn sound(&self, asked: Sound) -> Result<Further, NoDevice> {
        const KEY: &str = "sound";
        /// The name of what plays and records it, which is nothing.
        const NOBODY: &str = "sound0";
        if asked != Sound::Virtio {
            self.wants_pci(KEY, asked.word(), "take virtio, or leave it out")?;
        }
        let heard = |device: Device| device.text("audiodev", NOBODY);
        let further = match asked {
            Sound::Hda => {
                let codec = heard(self.device(KEY, "hda-duplex")?);
                Further { within: vec![codec], ..Further::on_pci(self.device(KEY, "intel-hda")?) }
            }
            Sound::Ac97 => Further::on_pci(heard(self.device(KEY, "AC97")?)),
            Sound::Es1370 => Further::on_pci(heard(self.device(KEY, "ES1370")?)),
            Sound::Virtio => self.on_bus(heard(self.virtio(KEY, "virtio-sound")?)),
        };
        Ok(further.with("-audiodev", KeyVal::new("none").set("id", NOBODY)))
    }

    fn pmem(&self, pmem: Pmem) -> Result<Further, NoDevice> {
        const KEY: &str = "pmem";
        // A property of these types, which has the firmware's tables tell of it.
        if !["pc", "q35"].contains(&self.platform.machine_type(self.machine).name) {
            let there = "there is some on a PC, of the machine type pc or q35".to_owned();
            let arch = format!("{} of the type {:?}", self.platform.processor.arch, self.machine);
            return Err(NoDevice::Platform { key: KEY, word: "(NVDIMM)", arch, there });
        }
        let device =
            self.device(KEY, "nvdimm")?.text("id", format!("nvdimm{}", pmem.number)).text("memdev", pmem.backend());
        let uncopied =
            Some("the guest's persistent memory is in a file of its own, which a copy would share with the template");
        Ok(Further { pmem: Some(pmem), uncopied, ..Further::elsewhere(Some(device)) })
    }

    fn serial_port(&self, name: &str, choices: &mut Choices) -> Result<Further, NoDevice> {
        const KEY: &str = "serial-ports";
        self.wants_pci(KEY, "on it", "there is no PCI bus for them: take a PCI machine")?;
        let log = SerialLog { name: name.to_owned(), file: None };
        choices.add(
            "serial port",
            format!("{name}: a 16550A on the PCI bus"),
            format!("what the guest writes to it is in {}", log.file_name()),
        );
        let device = self.device(KEY, "pci-serial")?.text("chardev", log.chardev());
        Ok(Further { log: Some(log), ..Further::on_pci(device) })
    }

    fn watchdog(&self, asked: Watchdog, choices: &mut Choices) -> Result<Further, NoDevice> {
        const KEY: &str = "watchdog";
        let there = self.platform.watchdogs;
        let chosen = if asked == Watchdog::Auto { there.first().copied().unwrap_or_default() } else { asked };
        if !there.contains(&chosen) {
            let words: Vec<&str> = there.iter().map(|watchdog| watchdog.word()).collect();
            let arch = self.platform.processor.arch.to_string();
            return Err(NoDevice::Platform {
                key: KEY,
                word: chosen.word(),
                arch,
                there: format!("take {}", words.join(" or ")),
            });
        }
        if asked == Watchdog::Auto {
            choices.add(KEY, chosen.word(), format!("what is usual on {}", self.platform.processor.arch));
        }
        let further = match chosen {
            Watchdog::Auto | Watchdog::I6300esb => Further::on_pci(self.device(KEY, "i6300esb")?),
            Watchdog::Ib700 => Further::elsewhere(Some(self.device(KEY, "ib700")?)),
            Watchdog::Diag288 => Further::elsewhere(Some(self.device(KEY, "diag288")?)),
            Watchdog::Itco => {
                const Q35: &str = "q35";
                if self.platform.machine_type(self.machine).name != Q35 {
                    let machine = self.machine.to_owned();
                    return Err(NoDevice::Machine { key: KEY, word: chosen.word(), wanted: Q35, machine });
                }
                // The strap by which a board keeps its chipset from resetting it; on before QEMU 8.0.
                let strap = KeyVal::new("ICH9-LPC.noreboot=false");
                Further::elsewhere(None).with("-global", strap)
            }
        };
        // QEMU's default, which a bite depends on: the reset ends QEMU, as each does (`-no-reboot`).
        Ok(further.with("-action", KeyVal::empty().set("watchdog", "reset")))
    }
}

#[cfg(test)]
mod tests {
    use belljar_guest_spec::{NumaNode, Source};

    use super::*;
    use crate::qemu::{
        args::MachineConfig,
        platform::{self, PLATFORMS},
    };

    fn of(name: &str) -> &'static Platform {
        PLATFORMS.iter().copied().find(|platform| platform.processor.name == name).unwrap()
    }

    fn qemu(devices: &[&str]) -> QemuInfo {
        QemuInfo { devices: devices.iter().map(|&device| device.to_owned()).collect(), ..QemuInfo::of_nothing() }
    }

    /// What QEMU is told, or why it is not.
    fn told(devices: Devices, platform: &'static Platform, machine: &str, known: &[&str]) -> String {
        let mut choices = Choices::default();
        let spec = GuestSpec { devices, ..GuestSpec::new(Source::host()) };
        match further(&spec, platform, machine, &qemu(known), &mut choices) {
            Ok(all) => {
                let base = MachineConfig { platform, machine: machine.to_owned(), ..MachineConfig::default() };
                let without = base.to_args().unwrap();
                let words = MachineConfig { further: all, ..base }.to_args().unwrap();
                let words: Vec<_> = words[without.len()..].iter().map(|word| word.to_string_lossy()).collect();
                words.join(" ")
            }
            Err(why) => why.to_string(),
        }
    }

    #[test]
    fn each_platform_has_its_watchdogs() {
        let watchdog = |word| Devices { watchdog: Some(word), ..Devices::default() };
        let known = ["i6300esb", "ib700", "diag288"];
        let on = |name: &str, word, machine| told(watchdog(word), of(name), machine, &known);
        let reset = "-action watchdog=reset -device";
        assert_eq!(on("x86_64", Watchdog::Auto, "pc"), format!("{reset} i6300esb"));
        assert_eq!(on("x86_64", Watchdog::Ib700, "pc"), format!("{reset} ib700"));
        assert_eq!(on("s390x", Watchdog::Auto, "s390-ccw-virtio"), format!("{reset} diag288"));
        assert_eq!(on("aarch64", Watchdog::Auto, "virt"), format!("{reset} i6300esb"));
        assert_eq!(
            on("x86_64", Watchdog::Itco, "pc-q35-7.2"),
            "-global ICH9-LPC.noreboot=false -action watchdog=reset"
        );
        let said = on("x86_64", Watchdog::Itco, "pc");
        assert!(said.contains("is part of the machine type q35, and this machine is \"pc\""), "{said}");
        let said = on("s390x", Watchdog::I6300esb, "s390-ccw-virtio");
        assert!(said.contains("have no watchdog i6300esb; take diag288"), "{said}");
        let said = told(watchdog(Watchdog::Auto), platform::default(), "pc", &[]);
        assert!(said.contains("has no device \"i6300esb\", which watchdog asks for"), "{said}");
    }

    #[test]
    fn screens_sound_and_balloons() {
        let known = [
            "VGA",
            "virtio-vga",
            "virtio-gpu-pci",
            "virtio-gpu-ccw",
            "intel-hda",
            "hda-duplex",
            "AC97",
            "virtio-balloon-pci",
            "virtio-balloon-ccw",
        ];
        let on = |name: &str, devices| {
            let platform = of(name);
            told(devices, platform, platform.machine, &known)
        };
        let display = |display| Devices { display: Some(display), ..Devices::default() };
        let sound = |sound| Devices { sound: Some(sound), ..Devices::default() };
        let balloon = || Devices { balloon: true, ..Devices::default() };
        assert_eq!(on("x86_64", display(Display::Std)), "-device VGA");
        assert_eq!(on("x86_64", display(Display::Virtio)), "-device virtio-vga");
        assert_eq!(on("aarch64", display(Display::Virtio)), "-device virtio-gpu-pci");
        assert_eq!(on("s390x", display(Display::Virtio)), "-device virtio-gpu-ccw");
        assert!(on("s390x", display(Display::Std)).contains("have no display std; take virtio"));
        assert_eq!(
            on("x86_64", sound(Sound::Hda)),
            "-audiodev none,id=sound0 -device intel-hda -device hda-duplex,audiodev=sound0"
        );
        assert_eq!(on("x86_64", sound(Sound::Ac97)), "-audiodev none,id=sound0 -device AC97,audiodev=sound0");
        assert!(
            on("x86_64", sound(Sound::Virtio)).contains("has no device \"virtio-sound-pci\", which sound asks for")
        );
        assert_eq!(on("x86_64", balloon()), "-device virtio-balloon-pci");
        assert_eq!(on("s390x", balloon()), "-device virtio-balloon-ccw");
        let topology = Topology { sockets: 2, cores: 2, threads: 1 };
        let said = on("x86_64", Devices { topology: Some(topology), ..Devices::default() });
        assert!(said.contains("makes 4 processors (sockets * cores * threads), and the guest has 1"), "{said}");
    }

    /// Behind all disks, so that these stay where they are; in their order, in which a guest numbers serial ports.
    #[test]
    fn those_on_the_bus_have_the_last_places_of_disks() {
        let all = ["a", "b"].map(|name| Further::on_pci(Device::new(name)));
        let isa = Further::elsewhere(Some(Device::new("c")));
        let config = MachineConfig {
            slots: platform::default().default_machine().slots,
            further: vec![all[0].clone(), isa, all[1].clone()],
            ..MachineConfig::default()
        };
        let words = config.to_args().unwrap();
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        assert!(
            words.join(" ").ends_with("-device a,bus=pci.0,addr=0x1e -device c -device b,bus=pci.0,addr=0x1f"),
            "{words:?}"
        );
        assert_eq!(config.further_slots(), 2);
    }

    #[test]
    fn ports_and_nodes_fit_the_machine() {
        let ports = |names: &[&str]| Devices {
            serial_ports: names.iter().map(|&name| name.to_owned()).collect(),
            ..Devices::default()
        };
        let on = |name: &str, devices| told(devices, of(name), of(name).machine, &["pci-serial"]);
        assert_eq!(
            on("x86_64", ports(&["modem"])),
            "-chardev null,id=serial-modem -device pci-serial,chardev=serial-modem"
        );
        assert!(on("x86_64", ports(&["a", "a"])).contains("two are called \"a\""));
        assert!(on("x86_64", ports(&["a", "b", "c"])).contains("a guest finds 2 at most"));
        assert!(on("s390x", ports(&["a"])).contains("there is no PCI bus for them"));
        let pmem = |name| {
            told(Devices { pmem: vec![16 << 20], ..Devices::default() }, of(name), of(name).machine, &["nvdimm"])
        };
        assert!(pmem("x86_64").ends_with(
            "-object memory-backend-file,id=pmem0,size=16777216,mem-path=pmem0.raw,share=on -device nvdimm,id=nvdimm0,memdev=pmem0"
        ));
        assert!(pmem("aarch64").contains("there is some on a PC"));
        let numa = vec![NumaNode { memory: 1 << 20, ..NumaNode::default() }];
        assert!(on("x86_64", Devices { numa, ..Devices::default() }).starts_with("numa: its nodes have 1 MiB"));
    }

    #[test]
    fn what_the_machine_has_no_room_for_is_refused() {
        let on = |machine: &str| told(Devices::default(), platform::default(), machine, &[]);
        for without in ["microvm", "microvm,pcie=off", "isapc", "none"] {
            assert!(on(without).contains("has no PCI bus"), "{without}");
        }
        assert_eq!(on("pc"), "");
        let many = |machine: &str, cpus, spare_cpus| {
            let mut spec = GuestSpec::new(Source::host());
            (spec.hardware.cpus, spec.hardware.spare_cpus) = (cpus, spare_cpus);
            let all = further(&spec, of("x86_64"), machine, &qemu(&[]), &mut Choices::default());
            all.map(|_| ()).map_err(|why| why.to_string())
        };
        assert_eq!(many("pc-i440fx-7.2", 200, 55), Ok(()));
        let said = many("pc", 200, 56).unwrap_err();
        assert!(said.contains("to have 256 processors") && said.contains("255 at most"), "{said}");
        let numa = ["0", ""].map(|cpus| NumaNode {
            cpus: NumaNode::cpus(cpus).unwrap_or_default(),
            memory: 512 << 20,
            ..NumaNode::default()
        });
        let numa = || Devices { numa: numa.to_vec(), ..Devices::default() };
        assert_eq!(told(numa(), of("x86_64"), "pc", &[]), "");
        assert!(told(numa(), of("riscv64"), "virt", &[]).contains("node 1 has no processor"));
    }

    #[test]
    fn sockets_follow_nodes() {
        let put = |nodes: &[&str]| {
            let node = |cpus: &&str| NumaNode { cpus: NumaNode::cpus(cpus).unwrap_or_default(), ..NumaNode::default() };
            let asked = Devices { numa: nodes.iter().map(node).collect(), ..Devices::default() };
            sockets_of_nodes(&asked, of("x86_64")).map(|Topology { sockets, cores, threads }| (sockets, cores, threads))
        };
        assert_eq!(put(&["0-1", "2-3"]), Some((2, 2, 1)));
        assert_eq!(put(&["0-1", "", "2-3"]), Some((2, 2, 1)));
        assert_eq!(put(&["0-3", ""]), None);
        // Else each processor is in a socket of its own.
        for uneven in [&["0-1", "2"][..], &["0,2", "1"], &["2", "0-1"]] {
            assert_eq!(put(uneven), Some((3, 1, 1)), "{uneven:?}");
        }
        assert_eq!(put(&["0,2", "1,3"]), Some((4, 1, 1)));
    }

    #[test]
    fn threads_are_seen_without_kvm() {
        let topology =
            |threads| Devices { topology: Some(Topology { sockets: 1, cores: 2, threads }), ..Devices::default() };
        let cpu = |threads, name: &str, accel| cpu_with_threads(&topology(threads), of(name), accel);
        assert_eq!(cpu(1, "x86_64", Accel::Tcg), None);
        assert_eq!(cpu(2, "x86_64", Accel::Kvm), None);
        assert_eq!(cpu(2, "aarch64", Accel::Tcg), None);
        assert!(cpu(2, "x86_64", Accel::Tcg).unwrap().ends_with(",vendor=GenuineIntel"));
    }

    #[test]
    fn what_is_usual_can_be_had() {
        for platform in PLATFORMS {
            assert!(!platform.watchdogs.contains(&Watchdog::Auto), "{}", platform.processor.name);
        }
    }
}
