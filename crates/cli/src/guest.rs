//! The guest of `belljar run`, `belljar shell` and `belljar template make`: the options that describe it, and what they come to.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::{
    Accel, Access, BootSource, BusChoice, ContainerSource, Devices, Display, Firmware, Guards, GuestSpec, ImageRef,
    Login, NicMode, OopsPolicy, PullPolicy, ShareKind, Sound, Source, Surroundings, Watchdog, WorkspaceMode, in_home,
    port_name,
    rules::{self, DEVICES, Key, Notation},
};
use belljar_machine::bounds::Bounds;
use belljar_suite::config::{Config, ConfigError, Guest};
use clap::{Args, ValueHint};

use crate::{args::word, env, settings, specs, suite};

/// Which guest, and what machine it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Guest")]
pub(crate) struct GuestArgs {
    /// Take this guest of belljar.toml; options say what is to be different about it
    #[arg(short = 'g', long, value_name = "NAME",
          conflicts_with_all = ["container", "image", "image_format", "kernel", "rootfs", "initrd", "modules", "boot_bus"])]
    pub(crate) guest: Option<String>,

    /// The configuration with the guest [default: belljar.toml here, or in the nearest directory above]
    #[arg(short = 'c', long, value_name = "FILE", requires = "guest", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,

    /// Run in a container of this image (a name, or ./PATH of one on disk) of podman or docker, instead of a machine
    #[arg(long, value_name = "IMAGE")]
    pub(crate) container: Option<String>,

    /// Whether the engine may fetch the image of --container, or of --rootfs: never, missing or always [default: never]
    #[arg(long, value_name = "PULL", value_parser = word::<PullPolicy>())]
    pub(crate) pull: Option<PullPolicy>,

    /// Let the container's processes do what the engine's user may do on this host
    #[arg(long)]
    pub(crate) privileged: bool,

    /// Have the image's systemd as the container's first process, and begin when it says that the system is up
    #[arg(long)]
    pub(crate) systemd: bool,

    /// Boot this disk image (qcow2, raw, vmdk, vdi, vhdx, vpc), unmodified; nothing is written to it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,

    /// Take the image as being of this format instead of what qemu-img says
    #[arg(long, value_name = "FORMAT")]
    pub(crate) image_format: Option<String>,

    /// What starts the image's boot loader: the machine's BIOS, UEFI, or what the image has one for [default: auto]
    #[arg(long, value_name = "FIRMWARE", value_parser = word::<Firmware>())]
    pub(crate) firmware: Option<Firmware>,

    /// Boot this kernel: with --initrd its user space, else with --rootfs or the host's root directory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) kernel: Option<PathBuf>,

    /// The initramfs to boot the kernel with; its shell is looked for on the serial line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) initrd: Option<PathBuf>,

    /// Use this directory as the guest's root, read-only under a writable layer; or a container image: container:NAME, container:./PATH [default: /]
    #[arg(long, value_name = "DIR|container:IMAGE", value_hint = ValueHint::DirPath)]
    pub(crate) rootfs: Option<PathBuf>,

    /// The kernel's modules, such as /lib/modules/6.1.0-56-amd64 [default: found by the kernel's version]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) modules: Option<PathBuf>,

    /// Add to the kernel's command line
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(crate) append: Vec<String>,

    /// Log in on the serial console as USER with PASSWORD (better in the environment: BELLJAR_LOGIN)
    #[arg(long, value_name = "USER[:PASSWORD]", env = env::LOGIN, hide_env = true, hide_env_values = true)]
    pub(crate) login: Option<String>,

    /// Let the user of --login (root) in over SSH with this private key, where nothing else lets anybody in, or with --access ssh
    #[arg(long, value_name = "FILE")]
    pub(crate) ssh_key: Option<PathBuf>,

    /// How to get in; the manual, Getting in, tells of each way [default: what is there decides]
    #[arg(long, value_name = "ACCESS", value_parser = word::<Access>())]
    pub(crate) access: Option<Access>,

    /// The guest's memory, such as 512M or 2GiB [default: 1GiB]
    #[arg(short = 'm', long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,

    /// The guest's processors [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: Option<u32>,

    /// Processors that can be plugged in (belljar-ctl plug cpu)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) spare_cpus: Option<u32>,

    /// Memory that can be plugged in (belljar-ctl plug memory SIZE)
    #[arg(long, value_name = "SIZE")]
    pub(crate) spare_memory: Option<String>,

    /// QEMU machine type
    #[arg(long, value_name = "TYPE")]
    pub(crate) machine: Option<String>,

    /// QEMU CPU model
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,

    /// KVM or emulation [default: KVM if a probe shows that it runs a guest]
    #[arg(long, value_name = "ACCEL", value_parser = word::<Accel>(), env = env::ACCEL, hide_env = true)]
    pub(crate) accel: Option<Accel>,

    /// Add a disk: size=1G, file=IMAGE or directory=DIR (a file system of its files), with serial=NAME, bus=auto|virtio|scsi|sata|ide|nvme, lab for one that can be made to fail, and unplugged for one that a test plugs in; thrown away at the end
    #[arg(long = "disk", value_name = "SPEC")]
    pub(crate) disks: Vec<String>,

    /// How the boot disk is attached [default: auto: virtio, or what the image has a driver for where it has none for that]
    #[arg(long, value_name = "BUS", value_parser = word::<BusChoice>())]
    pub(crate) boot_bus: Option<BusChoice>,

    /// Have the boot disk be a lab disk, called boot, which can be made to fail
    #[arg(long)]
    pub(crate) boot_lab: bool,

    /// Network: none, isolated (DHCP answers, nothing is reachable) or user (the outside world by NAT) [default: isolated, in a container none]
    #[arg(long, value_name = "NIC", value_parser = word::<NicMode>())]
    pub(crate) nic: Option<NicMode>,

    /// What a fault that the guest's kernel reports (oops, BUG, lockup) does to the run [default: crash]
    #[arg(long, value_name = "OOPS", value_parser = word::<OopsPolicy>())]
    pub(crate) oops: Option<OopsPolicy>,

    /// Keep the guest's memory when its kernel panics or fails: memory.kdump beside the console's log, if it is no larger than this when packed
    #[arg(long, value_name = "SIZE")]
    pub(crate) panic_dump: Option<String>,

    /// What carries the workspace and the output directory: 9p, fuse, disk, virtiofs, or auto (the first of 9p and fuse that the guest can do, else disk)
    #[arg(long, value_name = "KIND", value_parser = word::<ShareKind>())]
    pub(crate) share: Option<ShareKind>,

    /// Give it a TPM 2.0, a new one each time (swtpm); such a guest has no template
    #[arg(long)]
    pub(crate) tpm: bool,

    /// Give it a watchdog, which resets the machine if the guest does not feed it in time: auto (what is usual on its platform), i6300esb, ib700, itco or diag288
    #[arg(long, value_name = "WATCHDOG", value_parser = word::<Watchdog>())]
    pub(crate) watchdog: Option<Watchdog>,

    /// Give it a balloon, by which a test takes memory from it (belljar-ctl balloon SIZE)
    #[arg(long)]
    pub(crate) balloon: bool,

    /// Give it a graphics card, of which a test takes pictures (belljar-ctl screenshot NAME); shown nowhere
    #[arg(long, value_name = "DISPLAY", value_parser = word::<Display>())]
    pub(crate) display: Option<Display>,

    /// Give it a sound card that nobody hears
    #[arg(long, value_name = "SOUND", value_parser = word::<Sound>())]
    pub(crate) sound: Option<Sound>,

    /// Give it no source of randomness (virtio-rng), which it has otherwise
    #[arg(long)]
    pub(crate) no_rng: bool,

    /// How its processors are put together: sockets=N,cores=N,threads=N (each 1 if not said), as many as --cpus
    #[arg(long, value_name = "TOPOLOGY")]
    pub(crate) cpu_topology: Option<String>,

    /// Give it a further serial port of this name; what it writes there is in serial-NAME.log beside console.log
    #[arg(long = "serial-port", value_name = "NAME")]
    pub(crate) serial_ports: Vec<String>,

    /// Give it a node of processors and memory: memory=SIZE, with cpus=0-1 and distances=10:20 (to each node, itself included); all nodes have all of the guest's between them
    #[arg(long = "numa", value_name = "NODE")]
    pub(crate) numa: Vec<String>,

    /// Give it a module of persistent memory (NVDIMM) of this size; thrown away at the end
    #[arg(long = "pmem", value_name = "SIZE")]
    pub(crate) pmem: Vec<String>,

    /// Give up on the boot after this time [default: 2m, 20m without KVM, sooner if nothing moves]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) boot_timeout: Option<Duration>,

    /// Hide this path of the host from the guest as well; its last part may end in * (keys and tokens in home directories,
    /// processes and temporary files are hidden anyway)
    #[arg(long, value_name = "PATH")]
    pub(crate) hide: Vec<PathBuf>,

    /// Pass this argument to QEMU as it is, after all others
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) qemu_args: Vec<OsString>,
}

impl GuestArgs {
    /// Whether an option was given.
    fn has(&self, key: Key) -> bool {
        match key {
            Key::Image => self.image.is_some(),
            Key::ImageFormat => self.image_format.is_some(),
            Key::BootBus => self.boot_bus.is_some(),
            Key::BootLab => self.boot_lab,
            Key::Firmware => self.firmware.is_some(),
            Key::Kernel => self.kernel.is_some(),
            // Several guests are a matter of belljar.toml.
            Key::Kernels => false,
            Key::Initrd => self.initrd.is_some(),
            Key::Rootfs => self.rootfs.is_some(),
            Key::RootImage => self.image_root().is_some(),
            Key::Modules => self.modules.is_some(),
            Key::Append => !self.append.is_empty(),
            Key::Access => self.access.is_some(),
            // It may come from the environment, and is then for those guests that ask.
            Key::Login => false,
            Key::Container => self.container.is_some(),
            Key::Pull => self.pull.is_some(),
            Key::Privileged => self.privileged,
            Key::Systemd => self.systemd,
            Key::Tpm => self.tpm,
            Key::Watchdog => self.watchdog.is_some(),
            Key::Balloon => self.balloon,
            Key::Display => self.display.is_some(),
            Key::Sound => self.sound.is_some(),
            Key::Rng => self.no_rng,
            Key::CpuTopology => self.cpu_topology.is_some(),
            Key::SerialPorts => !self.serial_ports.is_empty(),
            Key::Numa => !self.numa.is_empty(),
            Key::Pmem => !self.pmem.is_empty(),
            Key::PanicDump => self.panic_dump.is_some(),
            Key::Machine => self.machine.is_some(),
            Key::Cpu => self.cpu.is_some(),
            Key::QemuArgs => !self.qemu_args.is_empty(),
            Key::Share => self.share.is_some(),
            Key::SshKey => self.ssh_key.is_some(),
        }
    }

    /// What of the options does not go together, and what to do.
    pub(crate) fn conflict(&self) -> Option<String> {
        if self.guest.is_some() {
            return None;
        }
        let conflicts = rules::source(|key| self.has(key), self.access, Notation::Options);
        conflicts.first().map(|conflict| format!("{}; {}", conflict.message, conflict.help))
    }

    /// The container image that is to be the root, if one is.
    fn image_root(&self) -> Option<ImageRef> {
        ImageRef::of_rootfs(self.rootfs.as_deref()?, Path::new(""))
    }

    /// What the guest boots from.
    fn source(&self) -> Source {
        let access = self.access.unwrap_or_default();
        let modules = self.modules.clone();
        if let Some(image) = self.container.clone() {
            let pull = self.pull.unwrap_or_default();
            let image = ImageRef::parse(&image, Path::new(""));
            return ContainerSource { image, pull, privileged: self.privileged, systemd: self.systemd }.into();
        }
        if let Some(path) = self.image.clone() {
            let bus = self.boot_bus.unwrap_or_default();
            return BootSource::Image { path, format: self.image_format.clone(), bus, access }.into();
        }
        if let Some(image) = self.image_root() {
            let (pull, kernel) = (self.pull.unwrap_or_default(), self.kernel.clone());
            return BootSource::ContainerImage { image, pull, kernel, modules, access }.into();
        }
        match (self.kernel.clone(), self.initrd.clone()) {
            (Some(kernel), Some(initrd)) => BootSource::Initramfs { kernel, initrd, modules, access }.into(),
            (kernel, _) => BootSource::RootDir { root: self.rootfs.clone(), kernel, modules }.into(),
        }
    }
}

/// The guest, and its name for a person: as `belljar.toml` has it if `named`, and in any case as the options say.
pub(crate) fn guest(args: &GuestArgs, named: Option<&Named>) -> Result<(GuestSpec, String), String> {
    let (mut spec, name) = match named {
        Some(named) => (named.with_access(args)?, named.0.name.clone()),
        None => {
            let source = args.source();
            let name = source.to_string();
            (GuestSpec::new(source), name)
        }
    };
    if let Some(text) = &args.login {
        spec.login = Some(Login::parse(text).map_err(|e| format!("--login: {e}"))?);
    }
    if let Some(key) = &args.ssh_key {
        spec.ssh_key = Some(settings::absolute(key)?);
    }
    let hardware = &mut spec.hardware;
    if let Some(memory) = &args.memory {
        hardware.memory = specs::memory(memory)?;
    }
    hardware.cpus = args.cpus.unwrap_or(hardware.cpus);
    hardware.spare_cpus = args.spare_cpus.unwrap_or(hardware.spare_cpus);
    if let Some(memory) = &args.spare_memory {
        hardware.spare_memory = specs::size("--spare-memory", memory)?;
    }
    hardware.nic = args.nic.unwrap_or(hardware.nic);
    hardware.boot_lab |= args.boot_lab;
    for disk in &args.disks {
        hardware.disks.push(specs::disk(disk)?);
    }
    spec.firmware = args.firmware.unwrap_or(spec.firmware);
    spec.machine = args.machine.clone().or(spec.machine);
    spec.cpu = args.cpu.clone().or(spec.cpu);
    spec.accel = args.accel.or(spec.accel);
    spec.append.extend(args.append.iter().cloned());
    spec.qemu_args.extend(args.qemu_args.iter().cloned());
    spec.oops = args.oops.unwrap_or(spec.oops);
    if let Some(most) = &args.panic_dump {
        spec.panic_dump = Some(specs::size("--panic-dump", most)?);
    }
    spec.share = args.share.unwrap_or(spec.share);
    spec.tpm |= args.tpm;
    devices(args, &mut spec.devices)?;
    spec.boot_timeout = args.boot_timeout.or(spec.boot_timeout);
    for path in &args.hide {
        // A shell leaves `~` in `--hide=~/x` as it is.
        let path = in_home(path, settings::home().as_deref()).map_err(|e| format!("--hide {e}"))?;
        spec.hide.push(settings::absolute(&path)?);
    }
    let around = surroundings([&spec]);
    let spec = spec
        .resolved(&around)
        .map_err(|e| if named.is_some() { format!("the guest \"{name}\": {e}") } else { e.to_string() })?;
    Ok((spec, name))
}

/// What the options say of devices beside disks and the card.
fn devices(args: &GuestArgs, devices: &mut Devices) -> Result<(), String> {
    devices.watchdog = args.watchdog.or(devices.watchdog);
    devices.balloon |= args.balloon;
    devices.display = args.display.or(devices.display);
    devices.sound = args.sound.or(devices.sound);
    devices.rng &= !args.no_rng;
    if let Some(text) = &args.cpu_topology {
        devices.topology = Some(specs::topology(text)?);
    }
    for name in &args.serial_ports {
        port_name(name).map_err(|what| format!("--serial-port: {name:?} is {what}"))?;
        devices.serial_ports.push(name.clone());
    }
    for size in &args.pmem {
        devices.pmem.push(specs::size("--pmem", size)?);
    }
    if !args.numa.is_empty() {
        devices.numa = args.numa.iter().map(|text| specs::numa_node(text)).collect::<Result<_, _>>()?;
    }
    Ok(())
}

/// What of the environment these guests' descriptions depend on.
pub(crate) fn surroundings<'a>(guests: impl IntoIterator<Item = &'a GuestSpec>) -> Surroundings {
    let passwords = guests.into_iter().filter_map(|guest| {
        let name = guest.password_variable()?;
        Some((name.to_owned(), env::any(name.as_ref())?.into_string().ok()?))
    });
    Surroundings { passwords: passwords.collect(), home: settings::home() }
}

/// Options that may say otherwise what a guest of `belljar.toml` is, and may not go together with what that is made of.
const OF_NAMED: [Key; 12] = [
    Key::SshKey,
    Key::Access,
    Key::Append,
    Key::Firmware,
    Key::Pull,
    Key::Privileged,
    Key::Systemd,
    Key::Tpm,
    Key::Machine,
    Key::Cpu,
    Key::QemuArgs,
    Key::Share,
];

/// A guest that was asked for by name.
pub(crate) struct Named(Arc<Guest>);

impl Named {
    /// The guest that the options name, if they name one.
    pub(crate) fn of(args: &GuestArgs) -> Result<Option<Self>, String> {
        let Some(name) = &args.guest else { return Ok(None) };
        let file = suite::find(args.config.as_deref())?;
        let config = Config::load(&file, &suite::shown(&file)).map_err(|error| match error {
            ConfigError::Wrong { found, .. } => found.to_string(),
            other => other.to_string(),
        })?;
        let guest = config.guest(name).map_err(|found| format!("--guest: {found}"))?;
        Ok(Some(Self(Arc::clone(guest))))
    }

    /// What it is, got into as the options say.
    fn with_access(&self, args: &GuestArgs) -> Result<GuestSpec, String> {
        let mut spec = self.0.spec.clone();
        let of_options = |key| (OF_NAMED.contains(&key) || DEVICES.contains(&key)) && args.has(key);
        let has = |key| spec.source.has(key) || of_options(key);
        if let Some(conflict) = rules::source(has, args.access, Notation::Options).first() {
            return Err(format!("--guest {}: {}; {}", self.0.name, conflict.message, conflict.help));
        }
        if let Some(access) = args.access {
            spec.source.set_access(access);
        }
        if let Source::Container(container) = &mut spec.source {
            container.pull = args.pull.unwrap_or(container.pull);
            container.privileged |= args.privileged;
            container.systemd |= args.systemd;
        }
        if let Source::Boot(BootSource::ContainerImage { pull, .. }) = &mut spec.source {
            *pull = args.pull.unwrap_or(*pull);
        }
        Ok(spec)
    }

    /// What becomes of its writes to the workspace, if it says so.
    pub(crate) fn workspace_mode(&self) -> Option<WorkspaceMode> {
        self.0.layer.workspace_mode
    }

    /// How much it may write.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { output: self.0.layer.max_output, disk: self.0.layer.max_disk }
    }

    /// Its variables.
    pub(crate) fn env(&self) -> Vec<Vec<u8>> {
        self.0.layer.env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
    }

    /// Its directory for commands.
    pub(crate) fn cwd(&self) -> Option<&str> {
        self.0.layer.cwd.as_deref()
    }

    /// What its guards do.
    pub(crate) fn guards(&self) -> &Guards {
        &self.0.layer.guards
    }

    /// Its user for commands.
    pub(crate) fn user(&self) -> Option<&str> {
        self.0.layer.user.as_deref()
    }
}
