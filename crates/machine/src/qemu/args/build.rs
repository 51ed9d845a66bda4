//! From [`MachineConfig`] to arguments.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use belljar_guest_spec::Topology;
use belljar_proto::message::{PORT_NAME, PROGRAM_PORT_NAME, share_port};

use super::disk::{push, push_disks};
use super::keyval::{Device, KeyVal};
use super::{Accel, ArgsError, Chardev, HelperLine, MachineConfig, NicMode, ProgramPort, Ram, Tpm};

/// QEMU's seccomp filter at its tightest: no obsolete system calls, no change of user, no child
/// processes, no change of scheduling.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Id of the virtio port [`PORT_NAME`], as QEMU's events name it.
pub(crate) const AGENT_PORT_ID: &str = "agent-port";

/// Id of the virtio port of the share with this number, and of what is behind it.
fn share_port_id(number: usize) -> String {
    format!("share-port{number}")
}

/// Memory modules that can be plugged into a machine that runs.
const MEMORY_SLOTS: u32 = 16;

/// The network card's name.
pub const CARD: &str = "nic0";
/// The name of the network that the card is on.
pub const NETDEV: &str = "net0";

/// Network cards with an option ROM. Without it the firmware starts sooner and never
/// tries to boot from the network.
const CARDS_WITH_ROM: &[&str] = &[
    "virtio-net-pci",
    "virtio-net",
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "igb",
    "rtl8139",
    "ne2k_pci",
    "pcnet",
    "vmxnet3",
];

/// The name of what is in a machine's flash memory.
fn flash(at: usize) -> String {
    format!("flash{at}")
}

impl MachineConfig {
    /// QEMU's arguments, without the program's name.
    ///
    /// # Errors
    ///
    /// Where a value cannot be given to QEMU, or QEMU would cut or misread it.
    pub fn to_args(&self) -> Result<Vec<OsString>, ArgsError> {
        let mut out = Vec::new();
        self.push_frame(&mut out)?;
        self.push_channels(&mut out)?;
        self.push_kernel(&mut out);
        for set in &self.fd_sets {
            let value = KeyVal::empty().set("fd", set.fd.to_string()).set("set", set.set.to_string());
            push(&mut out, "-add-fd", value);
        }
        for (at, node) in self.flash.iter().enumerate() {
            push(&mut out, "-blockdev", node.options(&flash(at)));
        }
        push_disks(self, &mut out)?;
        self.push_nic(&mut out)?;
        self.push_shares(&mut out)?;
        self.push_rest(&mut out);
        out.extend(self.extra.iter().cloned());

        for pair in out.windows(2) {
            if pair[1].as_bytes().contains(&0) {
                return Err(ArgsError::Nul { what: format!("the value of QEMU's option {}", pair[0].display()) });
            }
        }
        Ok(out)
    }

    /// What there is in every machine.
    fn push_frame(&self, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
        let model = self.nic.model.as_ref();
        for (what, value) in [("the machine type", Some(&self.machine)), ("the network card's model", model)] {
            if value.is_some_and(String::is_empty) {
                return Err(ArgsError::Empty { what });
            }
        }
        if self.memory == 0 {
            return Err(ArgsError::Empty { what: "the guest's memory" });
        }
        if self.cpus == 0 {
            return Err(ArgsError::Empty { what: "the number of processors" });
        }

        push(out, "-name", KeyVal::empty().set("guest", &self.name));
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            out.push(flag.into());
        }
        if self.pause_on_panic {
            out.extend(["-action".into(), "panic=pause".into()]);
        }
        out.extend(["-display".into(), "none".into()]);
        if self.sandbox {
            out.extend(["-sandbox".into(), SANDBOX.into()]);
        }
        let mut machine = self.machine.clone();
        for at in 0..self.flash.len() {
            let _ = write!(machine, ",pflash{at}={}", flash(at));
        }
        if self.pmem_size() > 0 {
            machine.push_str(",nvdimm=on");
        }
        match self.ram {
            _ if !self.numa.is_empty() => {
                out.extend(["-machine".into(), machine.into()]);
                self.push_numa(out);
            }
            Ram::Anonymous => out.extend(["-machine".into(), machine.into()]),
            Ram::Lent => {
                let object =
                    KeyVal::new("memory-backend-memfd").set("id", "ram").set("size", self.ram_size().to_string());
                push(out, "-object", object.set("share", "on"));
                out.extend(["-machine".into(), format!("{machine},memory-backend=ram").into()]);
            }
            Ram::Shared(fd) | Ram::Private(fd) => {
                // By the descriptor's own name, since QEMU knows no other way to a file without one; a "memory-backend-memfd" would be
                // written to a frozen machine's state by QEMU 8.1 and later.
                let share = if matches!(self.ram, Ram::Shared(_)) { "on" } else { "off" };
                let object = KeyVal::new("memory-backend-file")
                    .set("id", "ram")
                    .set("size", self.ram_size().to_string())
                    .set("mem-path", fd.path())
                    .set("share", share);
                push(out, "-object", object);
                out.extend(["-machine".into(), format!("{machine},memory-backend=ram").into()]);
            }
        }
        if self.incoming.is_some() {
            out.extend(["-incoming".into(), "defer".into()]);
        }
        let accel = match self.accel {
            Accel::Kvm => KeyVal::new("kvm"),
            // One thread for each processor; QEMU takes cheaper atomics by itself where there is one.
            Accel::Tcg => KeyVal::new("tcg").set("thread", "multi"),
        };
        push(out, "-accel", accel);
        let cpu = self.cpu.as_deref().unwrap_or_else(|| (self.platform.cpu)(self.accel));
        out.extend(["-cpu".into(), cpu.into()]);
        let further =
            self.max_cpus.filter(|max| *max > self.cpus).map_or_else(String::new, |max| format!(",maxcpus={max}"));
        let topology = self.topology.map_or_else(String::new, |Topology { sockets, cores, threads }| {
            format!(",sockets={sockets},cores={cores},threads={threads}")
        });
        out.extend(["-smp".into(), format!("{}{further}{topology}", self.cpus).into()]);
        let whole = self.max_memory.unwrap_or_default().max(self.ram_size()) + self.pmem_size();
        let further = Some(whole).filter(|max| *max > self.ram_size());
        let further = further.map_or_else(String::new, |max| format!(",slots={MEMORY_SLOTS},maxmem={}M", max >> 20));
        out.extend(["-m".into(), format!("{}M{further}", self.ram_size() >> 20).into()]);
        Ok(())
    }

    /// Nodes of processors and memory.
    fn push_numa(&self, out: &mut Vec<OsString>) {
        for (at, node) in self.numa.iter().enumerate() {
            let id = format!("ram-node{at}");
            let lent = self.ram == Ram::Lent;
            let object = KeyVal::new(if lent { "memory-backend-memfd" } else { "memory-backend-ram" });
            let object = object.set("id", &id).set("size", node.memory.to_string());
            push(out, "-object", if lent { object.set("share", "on") } else { object });
            let word = KeyVal::new("node").set("nodeid", at.to_string()).set("memdev", &id);
            let ranges = node.cpus.iter().map(|(first, last)| format!("{first}-{last}"));
            push(out, "-numa", ranges.fold(word, |word, range| word.set("cpus", range)));
        }
        for (from, node) in self.numa.iter().enumerate() {
            for (to, distance) in node.distances.iter().enumerate() {
                let word = KeyVal::new("dist").set("src", from.to_string()).set("dst", to.to_string());
                push(out, "-numa", word.set("val", distance.to_string()));
            }
        }
    }

    fn push_channels(&self, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
        let mut channels = self.channels;
        if channels.serial1.is_some() && channels.console.is_none() {
            return Err(ArgsError::SecondSerialAlone);
        }
        channels.serial1 = channels.serial1.filter(|_| self.platform.second_serial.is_some());
        let mut chardev = |id: &str, end: Chardev| {
            let value = match end {
                Chardev::Fd(fd) => KeyVal::new("socket").set("id", id).set("fd", fd.to_string()),
                Chardev::Stdio => KeyVal::new("stdio").set("id", id),
                Chardev::Null => KeyVal::new("null").set("id", id),
            };
            push(out, "-chardev", value);
        };
        // `-serial` rather than `-device isa-serial`: every machine type knows what its serial port is.
        let serial = |id: &str| [OsString::from("-serial"), format!("chardev:{id}").into()];

        if let Some(end) = channels.qmp {
            chardev("qmp", end);
        }
        if let Some(end) = channels.console {
            chardev("console", end);
        }
        if let Some(end) = channels.serial1 {
            chardev("serial1", end);
        }
        if let Some(end) = channels.agent {
            chardev("agent", end);
            for (number, _, end) in self.share_ports() {
                chardev(&share_port_id(number), end);
            }
        }

        if channels.qmp.is_some() {
            push(out, "-mon", KeyVal::empty().set("chardev", "qmp").set("mode", "control"));
        }
        if channels.console.is_some() {
            out.extend(serial("console"));
        }
        if channels.serial1.is_some() {
            out.extend(serial("serial1"));
        }
        if channels.agent.is_some() {
            // The guest's driver sets up a pair of queues for each possible port, and 31 are the default.
            let of_shares: Vec<(usize, &str, Chardev)> = self.share_ports().collect();
            let count = 2 + of_shares.len() + usize::from(self.program.port.is_some());
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let ports = self.virtio("virtio-serial").text("id", "ports").number("max_ports", count);
            push(out, "-device", ports.at(self.ports_slot()).key_val());
            let port = KeyVal::new("virtserialport")
                .set("bus", "ports.0")
                .set("nr", "1")
                // QEMU reports that the guest opened or closed a port only of one that has an id.
                .set("id", AGENT_PORT_ID)
                .set("chardev", "agent")
                .set("name", PORT_NAME);
            push(out, "-device", port);
            for (at, (number, tag, _)) in of_shares.into_iter().enumerate() {
                let port = KeyVal::new("virtserialport")
                    .set("bus", "ports.0")
                    .set("nr", (2 + at).to_string())
                    .set("id", share_port_id(number))
                    .set("chardev", share_port_id(number))
                    .set("name", share_port(tag));
                push(out, "-device", port);
            }
        }
        if let Some(program) = self.program.port.as_ref().filter(|_| channels.agent.is_some()) {
            let back = match program {
                ProgramPort::Fed(fd) => KeyVal::new("socket").set("id", "program").set("fd", fd.to_string()),
                ProgramPort::Silent => KeyVal::new("null").set("id", "program"),
            };
            push(out, "-chardev", back);
            let port = KeyVal::new("virtserialport")
                .set("bus", "ports.0")
                .set("nr", (2 + self.share_ports().count()).to_string())
                .set("chardev", "program")
                .set("name", PROGRAM_PORT_NAME);
            push(out, "-device", port);
        }
        Ok(())
    }

    /// The ids of the ports of shares with these tags.
    #[must_use]
    pub(crate) fn share_port_ids(&self, tags: &[&str]) -> Vec<String> {
        let ports = self.share_ports().filter(|(_, tag, _)| tags.contains(tag));
        ports.map(|(number, ..)| share_port_id(number)).collect()
    }

    /// Ports of shares, each with the share's number and its tag.
    fn share_ports(&self) -> impl Iterator<Item = (usize, &str, Chardev)> {
        self.shares.iter().enumerate().filter_map(|(number, share)| Some((number, share.tag.as_str(), share.port?)))
    }

    fn push_kernel(&self, out: &mut Vec<OsString>) {
        let Some(kernel) = &self.kernel else { return };
        out.extend(["-kernel".into(), kernel.image.clone().into()]);
        if let Some(initrd) = &kernel.initrd {
            out.extend(["-initrd".into(), initrd.clone().into()]);
        }
        if !kernel.append.is_empty() {
            out.extend(["-append".into(), kernel.append.clone().into()]);
        }
    }

    fn push_nic(&self, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
        let Some(card) = self.card() else { return Ok(()) };
        let net = KeyVal::new("user").set("id", NETDEV);
        let net = match self.nic.mode {
            NicMode::None => return Ok(()),
            NicMode::Isolated => net.set("restrict", "on"),
            NicMode::User => net,
        };
        push(out, "-netdev", net);
        push(out, "-device", card.key_val());
        Ok(())
    }

    /// The network card, if there is one; on its network, if that is there.
    #[must_use]
    pub fn card(&self) -> Option<Device> {
        if self.nic.mode == NicMode::None {
            return None;
        }
        let of_virtio = || self.machine_type().transport.device("virtio-net");
        let model = self.nic.model.clone().unwrap_or_else(of_virtio);
        let rom = CARDS_WITH_ROM.contains(&model.as_str()).then_some("");
        let card = Device::new(&model)
            .text("id", CARD)
            .text("netdev", NETDEV)
            .some_text("mac", self.nic.mac.clone())
            .some_text("romfile", rom);
        Some(card.at(self.nic_slot()))
    }

    fn push_rest(&self, out: &mut Vec<OsString>) {
        if self.rng {
            push(out, "-object", KeyVal::new("rng-builtin").set("id", "rng0"));
            let device = self.virtio("virtio-rng").text("rng", "rng0").at(self.rng_slot());
            push(out, "-device", device.key_val());
        }
        if let Some(device) = self.platform.panic_device.filter(|_| self.pvpanic) {
            push(out, "-device", KeyVal::new(device));
        }
        if let Some(device) = self.platform.generation_device.filter(|_| self.vmgenid) {
            push(out, "-device", KeyVal::new(device).set("guid", "auto"));
        }
        if let Some(vga) = &self.vga {
            push(out, "-device", KeyVal::new(vga));
        }
        if let Some(Tpm { device, line }) = &self.tpm {
            let socket = KeyVal::new("socket").set("id", "tpm-line");
            let socket = match line {
                HelperLine::Fd(fd) => socket.set("fd", fd.to_string()),
                HelperLine::Path(path) => socket.set("path", path),
            };
            push(out, "-chardev", socket);
            push(out, "-tpmdev", KeyVal::new("emulator").set("id", "tpm0").set("chardev", "tpm-line"));
            push(out, "-device", KeyVal::new(device).set("tpmdev", "tpm0"));
        }
        self.push_further(out);
        for value in &self.smbios {
            push(out, "-smbios", KeyVal::empty().set("type", "11").set("value", value));
        }
        for (name, text) in &self.fw_cfg {
            push(out, "-fw_cfg", KeyVal::empty().set("name", name).set("string", text));
        }
    }

    fn push_shares(&self, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
        let shares = &self.shares;
        for (i, share) in shares.iter().enumerate() {
            if share.tag.is_empty() {
                return Err(ArgsError::Empty { what: "a share's tag" });
            }
            if shares[..i].iter().any(|other| other.tag == share.tag) {
                return Err(ArgsError::DuplicateTag { tag: share.tag.clone() });
            }
            if let Some(device) = share.device {
                device(share, &format!("share{i}"), self.share_seat(i), out)?;
            }
        }
        Ok(())
    }
}
