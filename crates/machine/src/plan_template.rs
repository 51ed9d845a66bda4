//! What a plan says of templates: which one is this guest's, and the machines that make, change and copy it.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::{
    boot::Frame,
    launch::{CopyError, Launch, Predecessor},
    plan::{AgentPlace, Plan, PlanError},
    plan_shares::make_placeholder,
    qemu::{
        args::{Accel, DiskSource, MachineConfig, NicMode, Ram},
        descriptors::{Fd, Purpose},
        platform::Platform,
    },
    share,
    template::{KeyMaker, Making, Template, TemplateKey, Unkeyable, memory},
    volume::{Kept, Volume, VolumeError},
};

/// The hardware address that QEMU gives to the first network card.
pub(crate) const QEMU_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// How a guest's network card differs from that of its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CardChange {
    /// It is the same.
    None,
    /// There is to be none.
    Remove,
    /// There is to be one that reaches the outside world, and the guest has to notice.
    Replace,
}

impl Plan {
    /// The guest of which this one can be made by plugging devices in and out; `None` if it is that guest itself.
    pub(crate) fn base(&self) -> Option<Self> {
        let differs = self.config.slots.is_some()
            && (!self.volumes.plugged().is_empty() || self.card_change() != CardChange::None);
        differs.then(|| {
            let mut base = self.clone();
            base.volumes = self.volumes.without_plugged();
            base.config.nic.mode = NicMode::Isolated;
            base
        })
    }

    /// What becomes of the base's network card. One that nobody has used is on whatever network the machine says.
    pub(crate) fn card_change(&self) -> CardChange {
        match (self.config.slots, self.config.nic.mode, self.is_init()) {
            (None, ..) | (_, NicMode::Isolated, _) | (_, NicMode::User, true) => CardChange::None,
            (_, NicMode::None, _) => CardChange::Remove,
            (_, NicMode::User, false) => CardChange::Replace,
        }
    }

    /// The kind of the devices that go into each copy, if there are such.
    pub(crate) fn late_kind(&self) -> Option<&'static str> {
        self.volumes.late().first().map(Volume::kind)
    }

    /// The kinds of devices that are plugged in to make this guest's template.
    pub(crate) fn kinds_to_plug(&self) -> Vec<&'static str> {
        let of_disks = self.volumes.plugged().iter().map(Volume::kind);
        let of_card = (self.card_change() != CardChange::None).then_some(CARD_KIND);
        of_disks.chain(of_card).collect()
    }

    /// What the guest's template has beside that of its base, for a person.
    pub(crate) fn title_of_template(&self) -> String {
        let disks = match self.volumes.plugged().len() {
            0 => None,
            1 => Some("1 disk more".to_owned()),
            n => Some(format!("{n} disks more")),
        };
        let card = match self.config.nic.mode {
            NicMode::Isolated => None,
            NicMode::None => Some("no network card".to_owned()),
            NicMode::User if self.card_change() == CardChange::None => None,
            NicMode::User => Some("a way out of its network".to_owned()),
        };
        let all: Vec<String> = disks.into_iter().chain(card).collect();
        if all.is_empty() { self.title.clone() } else { format!("{}, with {}", self.title, all.join(" and ")) }
    }

    /// Names what this guest looks like when it has booted. What it can be told later is no part of that: its shares, its environment and
    /// its host name, nor the disks that each copy gets for itself.
    pub(crate) fn template_key(&self, layer: Option<&[u8; 32]>) -> Result<TemplateKey, Unkeyable> {
        // What is behind the port is the agent.
        let mut config = MachineConfig { program: self.config.program.read_already(), ..self.config_to_freeze() };
        if !config.extra.is_empty() {
            let why = "arguments that are passed to QEMU as they are may name what cannot be copied";
            return Err(Unkeyable::Impossible(why.into()));
        }
        names_no_file(&config)?;
        if config.tpm.is_some() {
            let why = "the state of the guest's TPM is in another process, and no copy has it";
            return Err(Unkeyable::Impossible(why.into()));
        }
        if !config.numa.is_empty() {
            let why = "the guest's memory is in parts, one for each NUMA node, and a template's is in one";
            return Err(Unkeyable::Impossible(why.into()));
        }
        if let Some(why) = config.further.iter().find_map(|further| further.uncopied) {
            return Err(Unkeyable::Impossible(why.into()));
        }
        if let Some(why) = config.platform.uncopied {
            return Err(Unkeyable::Impossible(why.into()));
        }
        if let Some(Err(why)) = self.kinds.iter().chain(&self.before_agent).map(|kind| kind.frozen).find(Result::is_err)
        {
            return Err(Unkeyable::Impossible(why.into()));
        }
        let mut key = KeyMaker::new();
        let program = self.qemu.path.canonicalize().unwrap_or_else(|_| self.qemu.path.clone());
        key.add_file("qemu", &program)?;
        key.add("qemu version", self.qemu.version.to_string().as_bytes());
        for file in firmware(self.platform(), &program) {
            key.add_file("firmware", &file)?;
        }
        for flash in &config.flash {
            if let DiskSource::Path(file) = &flash.source {
                key.add_file("flash", file)?;
            }
        }
        key.add("agent", self.platform().agent().map_or("none", |agent| agent.fingerprint).as_bytes());
        if self.accel() == Accel::Kvm {
            key.add("host", host_identity().as_bytes());
        }
        if let Some(kernel) = config.kernel.take() {
            key.add("kernel line", kernel.append.as_bytes());
            for file in [Some(kernel.image), kernel.initrd].into_iter().flatten() {
                match file.strip_prefix(&self.host.cache_dir) {
                    // Its name says what is in it.
                    Ok(name) => key.add("cached", name.as_os_str().as_encoded_bytes()),
                    Err(_) => key.add_file("file", &file)?,
                }
            }
        }
        self.volumes.add_to(&mut key, &mut config)?;
        // What the guest sees of a share is its tag, until it mounts it.
        for share in &mut config.shares {
            share.path = PathBuf::from("/");
            share.read_only = false;
        }
        if self.card_change() == CardChange::None && config.slots.is_some() {
            config.nic.mode = NicMode::Isolated;
        }
        let args = config.to_args().map_err(|e| Unkeyable::Impossible(e.to_string()))?;
        for arg in args {
            key.add("argument", arg.as_encoded_bytes());
        }
        for rung in &self.rungs {
            key.add("rung", rung.name.as_bytes());
        }
        key.add("agent's place", place_name(self.agent));
        if let Some(login) = &self.login {
            key.add("user", login.user.as_bytes());
            key.add("password", login.password.as_ref().map_or("", |p| p.expose()).as_bytes());
        }
        if let Some(layer) = layer {
            key.add("layer", layer);
            // In which the set-up ran.
            if let Some(system) = &self.system {
                key.add("host name", system.hostname.as_bytes());
                for variable in &system.env {
                    key.add("variable", variable.as_bytes());
                }
            }
        }
        Ok(key.finish())
    }

    /// The machine that is frozen, and those that are made of it. Memory and volumes aside.
    pub(crate) fn config_to_freeze(&self) -> MachineConfig {
        MachineConfig { vmgenid: true, ..self.config.clone() }
    }

    /// Makes what the boot of a template needs. Its memory is in `ram`.
    pub(crate) fn launch_to_freeze(&self, making: &Making, ram: OwnedFd) -> Result<Launch, PlanError> {
        let mut launch = Launch::of(self.config_to_freeze());
        self.volumes.boot_to_freeze(making, &mut launch).map_err(VolumeError::from)?;
        self.bring_agent(&mut launch)?;
        launch.config.ram = Ram::Shared(launch.descriptors.add(Purpose::Memory, ram));
        self.conceal(&mut launch)?;
        self.put_agent_on_disk(&mut launch);
        Ok(launch)
    }

    /// Makes what a copy of a template needs.
    pub(crate) fn launch_copy(&self, template: &Template) -> Result<Launch, CopyError> {
        let mut launch = Launch::of(self.config_to_go_on()?);
        self.volumes.copy(template.volumes()?, &self.dir, &mut launch)?;
        self.go_on(launch, template, Ram::Private, template.ram()?)
    }

    /// Makes what a copy of a template needs that is to become a template itself, its memory and volumes being copies already.
    pub(crate) fn launch_on_top(
        &self,
        template: &Template,
        ram: File,
        volumes: Vec<File>,
    ) -> Result<Launch, CopyError> {
        let mut launch = Launch::of(self.config_to_go_on()?);
        self.volumes.go_on(volumes, &mut launch)?;
        self.go_on(launch, template, Ram::Shared, ram)
    }

    /// The same for a copy of the base's template, into which this guest's devices are to be plugged.
    pub(crate) fn launch_to_plug(
        &self,
        base: &Template,
        making: &Making,
        ram: File,
        volumes: Vec<File>,
    ) -> Result<Launch, CopyError> {
        let mut launch = Launch::of(self.config_to_go_on()?);
        launch.config.nic.mode = NicMode::Isolated;
        self.volumes.go_on_to_plug(volumes, making, &mut launch)?;
        self.go_on(launch, base, Ram::Shared, ram)
    }

    /// Makes what a machine needs that goes on from the state of another of this guest's, with copies of its disks.
    pub(crate) fn launch_back(
        &self,
        kept: Vec<Kept>,
        predecessor: Predecessor,
        frame: Frame,
        state: File,
    ) -> Result<Launch, CopyError> {
        let config = MachineConfig { vmgenid: frame.vmgenid, ..self.config_to_go_on()? };
        let mut launch = Launch { predecessor: Some(predecessor), ..Launch::of(config) };
        self.volumes.again(kept, &self.dir, &mut launch)?;
        launch.config.ram = match frame.ram {
            // It has to have the same name for QEMU, and is filled from the state.
            Ram::Shared(_) | Ram::Private(_) => {
                Ram::Private(launch.descriptors.add(Purpose::Memory, memory(self.ram_size())?))
            }
            ram @ (Ram::Anonymous | Ram::Lent) => ram,
        };
        launch.config.incoming = Some(launch.descriptors.add(Purpose::State, state));
        self.conceal(&mut launch)?;
        Ok(launch)
    }

    /// Why there can be no snapshot of this guest's machine, if so.
    pub(crate) fn not_kept(&self) -> Option<String> {
        let why = if self.config.tpm.is_some() {
            "the state of the guest's TPM is in another process, and would not go back"
        } else if self.config.shares.iter().any(|share| share.tag == share::ROOT_TAG) {
            "its root is the host's own, which it uses all the time; take a guest with its system on an image"
        } else if self.volumes.are_on_nvme() {
            "QEMU cannot write down the state of an NVMe disk; take another bus"
        } else if let Some(why) = self.config.platform.uncopied {
            why
        } else {
            self.kinds.iter().chain(&self.before_agent).find_map(|kind| kind.frozen.err())?
        };
        Some(why.to_owned())
    }

    /// The copy of a template with this memory.
    fn go_on(
        &self,
        mut launch: Launch,
        template: &Template,
        kind: fn(Fd) -> Ram,
        ram: File,
    ) -> Result<Launch, CopyError> {
        let Launch { config, descriptors, .. } = &mut launch;
        config.ram = kind(descriptors.add(Purpose::Memory, ram));
        config.incoming = Some(descriptors.add(Purpose::State, template.state()?));
        self.conceal(&mut launch)?;
        Ok(launch)
    }

    /// The machine of a copy. Kernel and initramfs are in its memory already, and it is never reset.
    fn config_to_go_on(&self) -> std::io::Result<MachineConfig> {
        let program = self.config.program.read_already();
        let config = MachineConfig { kernel: None, program, ..self.config_to_freeze() };
        if let Some(control) = config.shares.iter().find(|s| s.tag == share::CONTROL_TAG) {
            // The agent is in memory too.
            fs_err::create_dir_all(&control.path)?;
        }
        make_placeholder(&config)?;
        Ok(config)
    }
}

/// The kind of the network card, beside those of disks.
pub(crate) const CARD_KIND: &str = "network card";

fn place_name(agent: AgentPlace) -> &'static [u8] {
    match agent {
        AgentPlace::ControlShare => b"a share",
        AgentPlace::Initramfs => b"the initramfs",
        AgentPlace::Nowhere => b"nowhere",
    }
}

/// Whether nothing in the machine's description may lead to a file, whose changes nobody would notice.
fn names_no_file(config: &MachineConfig) -> Result<(), Unkeyable> {
    for (at, property) in config.machine.split(',').enumerate() {
        let name = property.split('=').next().unwrap_or_default();
        let is_known = if at == 0 { name.len() == property.len() } else { config.platform.properties.contains(&name) };
        if !is_known {
            let what = format!("the machine's property {name} may name a file, whose changes would not be noticed");
            return Err(Unkeyable::Impossible(what));
        }
    }
    Ok(())
}

/// The firmware that there is for this QEMU.
fn firmware(platform: &Platform, qemu: &Path) -> Vec<PathBuf> {
    let own = qemu.parent().and_then(Path::parent).map(|prefix| prefix.join("share/qemu"));
    let dirs: Vec<PathBuf> = own.into_iter().chain(platform.firmware_dirs.iter().map(PathBuf::from)).collect();
    let files = platform.firmware.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    files.filter(|file| file.exists()).collect()
}

/// What a guest sees of the host's processor and kernel under KVM.
fn host_identity() -> String {
    let cpus = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = cpus.split("\n\n").next().unwrap_or_default();
    // These change with the moment.
    let lasting = first.lines().filter(|line| !line.starts_with("cpu MHz") && !line.starts_with("bogomips"));
    let release = rustix::system::uname();
    format!("{}\n{}", release.release().to_string_lossy(), lasting.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_may_name_a_file_has_no_template() {
        let names =
            |machine: &str| names_no_file(&MachineConfig { machine: machine.to_owned(), ..MachineConfig::default() });
        for good in ["pc", "pc,graphics=off", "pc-i440fx-7.2,usb=on,vmport=off", "q35"] {
            assert!(names(good).is_ok(), "{good}");
        }
        for bad in ["pc,firmware=/x", "pc,firmware=on", "pc,pflash0=x", "q35,dtb=x", "type=pc", "pc,usb=on,something"] {
            assert!(matches!(names(bad), Err(Unkeyable::Impossible(_))), "{bad}");
        }
    }
}
