//! From a [`GuestSpec`] that is a machine to everything that is needed to start it, or to show how it would be started.
//!
//! What resolves is what is later used: `--dry-run` shows this plan and nothing else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_guest_spec::{Accel, Access, BootSource, Credentials, GuestSpec, OopsPolicy, ShareKind};
use belljar_image::{
    boot::{self, InitSpec},
    cache::Cache,
    modules::ModuleIndex,
    rootdir::{self, OwnModules},
};
use belljar_model::EventKind;
use belljar_proto::message::{INIT_AGENT_PATH, Mount, Source as ShareSource, System};
use belljar_share_disk::layout::{self, DISK_SIZE, SERIAL};

use crate::{
    Lost,
    access::rungs::{self, Rung, Start},
    backend::container::root::ImageRoot,
    conceal::Concealment,
    host::HostContext,
    limits::Limits,
    plan_choices::Choices,
    plan_devices,
    plan_direct::{self, WayBack},
    plan_drivers::{self, Buses, Drivers},
    plan_firmware::{machine, uefi_for},
    plan_grub,
    plan_image::ImageQuestion,
    plan_modules::{self, MODULES_DISK, OnDisk},
    plan_shares::{exchanged, share_disk, spec_shares},
    plan_source::{
        Found, attach, init_spec, kernel_for_root, modules_for_root, own_init, tell_of_unused_init, title, wanted,
    },
    plan_template::QEMU_MAC,
    qemu::{
        args::{self, DiskSource, MachineConfig, Nic, Node, Program, ProgramPort, Ram, Share, Slots},
        firmware::Uefi,
        platform::{self, Platform, Transport},
        probe::{self, QemuInfo},
    },
    screen,
    share::{self, Kind, virtiofsd::Virtiofsd},
    spec::ShareSpec,
    ssh::Ssh,
    tpm::{self, Tpm},
    volume::{Volume, Volumes},
};

pub use crate::plan_error::PlanError;

/// The host name of guests that Belljar initialises itself.
const HOSTNAME: &str = "belljar";
/// The directory in the run's directory from which a guest fetches the agent.
pub const CONTROL_DIR: &str = "ctl";

/// The serial number of the disk with the files of a container image, by which the agent finds it.
const ROOT_DISK: &str = "belljar-root";
/// What is on it.
const ROOT_FILE_SYSTEM: &str = "erofs";

/// Where the guest finds the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AgentPlace {
    /// In the control share, which has to be mounted first.
    ControlShare,
    /// In its initramfs.
    Initramfs,
    /// Nowhere: it is no program for that guest's processor.
    Nowhere,
}

impl AgentPlace {
    /// The agent's path in the guest.
    pub(crate) fn path(self) -> Option<String> {
        match self {
            Self::ControlShare => Some(format!("{}/{}", share::CONTROL_PATH, share::AGENT_FILE)),
            Self::Initramfs => Some(INIT_AGENT_PATH.to_owned()),
            Self::Nowhere => None,
        }
    }
}

/// A guest that can be started, as often as one likes: nothing is open yet.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All but the volumes.
    pub(crate) config: MachineConfig,
    pub(crate) volumes: Volumes,
    /// What a guest is told to be like, where Belljar initialises it.
    pub(crate) system: Option<System>,
    /// How commands run that do not say.
    pub(crate) processes: Processes,
    /// The ways in that are tried, in this order.
    pub(crate) rungs: Vec<&'static Rung>,
    pub(crate) agent: AgentPlace,
    pub(crate) login: Option<Credentials>,
    pub(crate) share: ShareSpec,
    /// Whether a system was found on its disk, so that no initramfs is all of it.
    pub(crate) root_is_on_disk: bool,
    /// What brings its root and the agent, if something does.
    pub(crate) before_agent: Option<&'static Kind>,
    /// What may carry its other host directories, the first choice first; none if it sees none.
    pub(crate) kinds: Vec<&'static Kind>,
    pub(crate) qemu: QemuInfo,
    pub(crate) host: HostContext,
    /// The guest's directory; it exists.
    pub(crate) dir: PathBuf,
    pub(crate) oops: OopsPolicy,
    /// Bytes of its memory that are kept when its kernel has failed.
    pub(crate) panic_dump: Option<u64>,
    pub(crate) boot_timeout: Option<Duration>,
    /// How its image is got into if nobody gets in by its own boot.
    pub(crate) way_back: WayBack,
    /// Whether the logs in its directory are added to.
    pub(crate) again: bool,
    /// How it is entered over SSH, if that is tried.
    pub(crate) ssh: Option<Ssh>,
    /// What makes its TPM, if it has one.
    pub(crate) tpm: Option<Tpm>,
    /// What serves its shares, if a program beside QEMU does.
    pub(crate) virtiofsd: Option<Virtiofsd>,
    pub(crate) concealment: Concealment,
    choices: Vec<EventKind>,
    /// The guest in a person's words.
    pub(crate) title: String,
}

impl Plan {
    /// Whether the guest's root is in its memory, and gone with it.
    pub(crate) fn root_is_in_memory(&self) -> bool {
        self.agent == AgentPlace::Initramfs
    }

    /// Whether the agent is the guest's first process.
    pub(crate) fn agent_is_first(&self) -> bool {
        self.rungs.iter().any(|rung| rung.is_init)
    }
}

/// How commands run that do not say, by the word of a container image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Processes {
    /// As whom; none is root.
    pub(crate) user: Option<String>,
    /// In which directory; none is `/`.
    pub(crate) cwd: Option<String>,
}

/// Looks at everything of the guest that boots from `source`, and makes what has to be made. Blocks for as long as it takes: the first time a second or so, later
/// milliseconds. What no cache can take goes into `dir`, which exists; the guest's own files go there too, unless it is moved ([`Plan::at`]).
///
/// # Errors
/// See [`PlanError`]; nothing half-done is left.
pub fn prepare(
    source: &BootSource,
    image: Option<ImageRoot>,
    spec: &GuestSpec,
    share: &ShareSpec,
    host: HostContext,
    dir: PathBuf,
) -> Result<Plan, PlanError> {
    if spec.hardware.boot_lab && !matches!(source, BootSource::Image { .. }) {
        return Err(PlanError::NoBootDisk(source.to_string()));
    }
    let mut choices = Choices::default();
    let mut system = System { hostname: HOSTNAME.to_owned(), env: host.guest_env.clone() };
    let mut processes = Processes::default();
    if let Some(image) = &image {
        system.env = image.env();
        processes = Processes { user: image.config.user.clone(), cwd: image.config.working_dir.clone() };
        for (what, chosen, why) in &image.choices {
            choices.add(what, chosen, why);
        }
        choices.0.extend(image.warnings.iter().map(|message| EventKind::Warning { message: message.clone() }));
    }
    let cache = Cache::new(&host.cache_dir, &dir);
    let found = match Found::look_at(source, image, &host.qemu_img, &cache) {
        Ok(found) => found,
        Err(error) => {
            // Without QEMU nothing else matters.
            probe::find_qemu(platform::default(), host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir)?;
            return Err(error);
        }
    };
    let (platform, said_by) = found.platform();
    if let Some(why) = said_by.filter(|_| !platform.is_hosts()) {
        choices.add("processor", platform.processor.name, why);
    }
    let qemu = probe::find_qemu(platform, host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir)?;
    let mut rungs = rungs::choose(source);
    rungs.retain(|rung| rung.is_for(platform));
    if rungs.is_empty() {
        return Err(PlanError::NoTables { platform });
    }
    let is_init = rungs.iter().any(|rung| rung.is_init);
    let login_is_given = spec.login.is_some() && source.access() == Access::Auto;
    if (platform.agent().is_none() || login_is_given) && !is_init {
        // There is nothing that could come by itself, or it is said who is to log in.
        rungs.retain(|rung| rung.agent.is_none());
        if rungs.is_empty() {
            return Err(PlanError::NoAgent { platform });
        }
    }
    if is_init {
        tell_of_unused_init(source, &spec.append, &mut choices);
    }
    let sees_host = sees_host(source, is_init, share);
    // Its root and the agent come by a disk and in the initramfs.
    let by_share = !matches!(source, BootSource::ContainerImage { .. });
    let before_agent =
        (sees_host && by_share).then(|| share::before_agent(&qemu)).transpose().map_err(PlanError::NoShare)?;
    let carried = |tag: &str, path: PathBuf, read_only| {
        before_agent.map(|kind| Share {
            tag: tag.to_owned(),
            device: kind.device,
            port: None,
            server: None,
            on_disk: false,
            path,
            read_only,
        })
    };
    let asked = match (source, spec.share) {
        // A kernel that has its root by it has it, and there the agent is the first process.
        (BootSource::RootDir { .. }, ShareKind::Auto) => ShareKind::NineP,
        (_, asked) => asked,
    };
    let choose = |needs_disk| share::choose(asked, platform.agent().is_some(), is_init, needs_disk, &qemu);
    let mut kinds = sees_host.then(|| choose(false)).transpose().map_err(PlanError::NoShare)?.unwrap_or_default();
    choices.add("qemu", format!("{} ({})", qemu.path.display(), qemu.version), qemu.why.clone());
    let accel = probe::choose_accel(platform, host.accel.or(spec.accel), &qemu, &host.shim, &host.cache_dir)?;
    choices.accelerator(&accel);
    let ssh = Ssh::of(spec, source.access(), &host)?;
    let tpm = spec.tpm.then(|| Tpm::find(&qemu, host.path.as_deref())).transpose()?;
    let further = plan_devices::further(spec, platform, machine(platform, spec), &qemu, &mut choices)?;
    let has_server = kinds.iter().any(|kind| kind.has_server);
    let virtiofsd = has_server.then(|| Virtiofsd::find(host.path.as_deref())).transpose()?;

    let agent = platform.agent().map(|agent| agent.program);
    let mut shares = Vec::new();
    let mut volumes = Vec::new();
    let mut flash = Vec::new();
    let mut of_kernel = None;
    let mut of_modules_disk = None;
    // Whether the agent comes beside the init of a container image.
    let mut is_beside = false;
    // Those of the guest's own, for its kernel.
    let mut words = String::new();
    let mut root_is_on_disk = false;
    let mut buses = Buses::default();
    let mut card = None;
    let mut lacks_ports = false;
    let mut way_back = WayBack::None;
    let mut medium = None;
    let (kernel, place) = match &found {
        Found::Image { reader, bus } => {
            reader.refuse(source, &mut choices)?;
            // What was asked of the kernel is whether it has virtio on a PCI bus.
            let by_pci = platform.default_machine().transport == Transport::Pci;
            let mounts_no_share = by_pci && reader.facts().is_ok_and(|facts| facts.mounts_no_share);
            if asked == ShareKind::Auto && mounts_no_share {
                kinds = choose(true).map_err(PlanError::NoShare)?;
                let why =
                    "the image's kernel has nothing by which it could mount a share, and gets what is shared from it";
                choices.add("disk of shares", "attached", why);
            }
            let question = ImageQuestion { source, spec, platform, host: &host };
            let kernel = plan_direct::of_image(reader, &question, &cache, &mut rungs, &mut choices)?;
            let kernel = kernel.map(|(files, found)| {
                words = found;
                files
            });
            way_back = WayBack::of(reader, &question, &rungs);
            root_is_on_disk = reader.facts().is_ok_and(|facts| facts.login.is_some());
            let drivers = reader.drivers();
            buses = plan_drivers::buses(*bus, drivers, platform.machine_type(machine(platform, spec)), &mut choices);
            card = plan_drivers::card(drivers.ok(), spec.hardware.nic, &mut choices);
            lacks_ports = by_pci && drivers.is_ok_and(Drivers::lacks_ports);
            let by_grub = rungs.iter().any(|rung| rung.start == Start::ByOurGrub);
            volumes.push(Volume::boot(reader.image().clone(), buses.boot, by_grub, spec.hardware.boot_lab)?);
            let directly = kernel.is_some();
            let uefi = uefi_for(reader, &question, &qemu, directly, &mut choices)?;
            if by_grub {
                let place = (uefi.is_some(), buses.boot);
                medium = Some(plan_grub::medium(reader, &question, place, &cache, &mut choices)?);
            }
            if let Some(Uefi { code, variables, .. }) = uefi {
                flash.push(Node::fixed(DiskSource::Path(code.path), &code.format));
                volumes.push(Volume::variables(&host.qemu_img, &variables)?);
            }
            if agent.is_some() && !(lacks_ports && mounts_no_share) {
                shares.extend(carried(share::CONTROL_TAG, dir.join(CONTROL_DIR), true));
            }
            (kernel, agent.map_or(AgentPlace::Nowhere, |_| AgentPlace::ControlShare))
        }
        &Found::Root { root, arch: _, kernel, modules } => {
            let agent = agent.ok_or(PlanError::NoAgent { platform })?;
            let asked = modules.is_some();
            let (kernel, modules) = kernel_for_root(Some(root), kernel, modules, &platform.processor, &mut choices)?;
            let own = |release: &str, dir: &Path| rootdir::own_modules(root, release, dir);
            of_kernel = modules.as_ref().and_then(|index| modules_for_root(own, &kernel, index, asked, &mut choices));
            let wanted = wanted(platform, &kinds);
            let spec = InitSpec { wanted: &wanted, ..init_spec(platform, agent, modules.as_ref()) };
            let files = boot::root_over_9p(&kernel, &spec, share::ROOT_TAG, &cache)?;
            shares.extend(carried(share::ROOT_TAG, root.to_owned(), true));
            shares.extend(of_kernel.as_ref().map(|modules| {
                let (tag, path) = (share::MODULES_TAG.to_owned(), modules.dir.clone());
                exchanged(&kinds, tag, path, true)
            }));
            (Some(files), AgentPlace::Initramfs)
        }
        Found::ContainerImage { image, kernel, modules } => {
            let image = image.as_ref().ok_or_else(|| PlanError::NoImage(source.to_string()))?;
            if let Some(arch) = image.arch().filter(|&arch| platform::of(arch).is_none()) {
                let (image, processor) = (source.to_string(), arch.to_string());
                return Err(PlanError::ForeignImage { image, processor });
            }
            let agent = agent.ok_or(PlanError::NoAgent { platform })?;
            let init = (!is_init).then(|| own_init(source, image, &spec.append, &mut choices)).transpose()?;
            // Nothing of such a guest is to be named by Belljar, which is not its init.
            if init.is_some() {
                system.hostname.clear();
            }
            is_beside = init.is_some();
            let asked = modules.is_some();
            let (kernel, modules) = kernel_for_root(None, *kernel, *modules, &platform.processor, &mut choices)?;
            let own = |release: &str, _: &Path| {
                if image.facts.modules.iter().any(|own| own == release) { OwnModules::Other } else { OwnModules::None }
            };
            of_kernel = modules.as_ref().and_then(|index| modules_for_root(own, &kernel, index, asked, &mut choices));
            // Before that init runs nothing of the host's may be mounted, or it would be held for ever and the guest never frozen.
            let on_disk = init
                .as_ref()
                .and(modules.as_ref())
                .zip(of_kernel.as_ref())
                .and_then(|(index, of_kernel)| plan_modules::on_disk(of_kernel, index, &cache, &mut choices));
            if let Some(OnDisk { file, .. }) = &on_disk {
                of_modules_disk = Some(Volume::modules(&host.qemu_img, file, MODULES_DISK)?);
                of_kernel = None;
            }
            // What carries the modules is another where the others come on a disk.
            let of_modules = kinds.iter().map(|kind| share::carrying(kind, share::MODULES_TAG));
            let wanted = wanted(platform, &kinds.iter().copied().chain(of_modules).collect::<Vec<_>>());
            let spec = InitSpec { wanted: &wanted, ..init_spec(platform, agent, modules.as_ref()) };
            let disk = (ROOT_DISK, ROOT_FILE_SYSTEM);
            let files =
                boot::root_on_disk(&kernel, &spec, disk, init.as_deref(), on_disk.map(|found| found.init), &cache)?;
            volumes.push(Volume::root(&host.qemu_img, &image.file, ROOT_DISK)?);
            volumes.extend(of_modules_disk);
            shares.extend(of_kernel.as_ref().map(|modules| {
                let (tag, path) = (share::MODULES_TAG.to_owned(), modules.dir.clone());
                exchanged(&kinds, tag, path, true)
            }));
            (Some(files), AgentPlace::Initramfs)
        }
        Found::Initramfs { kernel, initrd, modules } => {
            let modules = modules.map(ModuleIndex::load).transpose()?;
            let kinds: Vec<_> = kinds.iter().chain(&before_agent).copied().collect();
            let wanted = wanted(platform, &kinds);
            // Without our own program in it, a kernel that cannot run that is as good as any.
            let runs = is_init || kernel.arch.is_none_or(|arch| arch == platform.processor.arch);
            let agent = agent.filter(|_| runs);
            if is_init && agent.is_none() {
                return Err(PlanError::NoAgent { platform });
            }
            let spec = agent.map(|agent| InitSpec { wanted: &wanted, ..init_spec(platform, agent, modules.as_ref()) });
            let files = boot::foreign_initramfs(kernel, initrd, spec.as_ref(), &cache)?;
            let agent = agent.map_or(AgentPlace::Nowhere, |_| AgentPlace::Initramfs);
            if agent == AgentPlace::Initramfs && !is_init {
                // For an initramfs that gives way to another root, and takes its files with it.
                shares.extend(carried(share::CONTROL_TAG, dir.join(CONTROL_DIR), true));
            }
            (Some(files), agent)
        }
    };
    if let Some(files) = &kernel {
        choices.boot_files(files);
    }
    if ssh.is_some() && agent.is_some() && !rungs.iter().any(|rung| rung.word == Access::Ssh) {
        rungs.push(&rungs::SSH);
    }
    if has_exchange(place, is_init || is_beside, share, &shares) {
        shares.extend(spec_shares(share, &kinds, &dir));
    }
    Volume::check_kinds(&spec.hardware.disks, buses.further)?;
    volumes.extend(Volume::all_further(&host.qemu_img, &spec.hardware, buses.further)?);
    let on_disk = shares.iter().any(|share| share.on_disk);
    let fetched = agent.filter(|_| place == AgentPlace::ControlShare);
    if lacks_ports && fetched.is_some() && rungs.iter().all(|rung| rung.start == Start::ByImage) {
        let port = plan_drivers::port_of_agent(platform);
        let why =
            format!("the image's kernel has no virtio ports, from which the guest could read it, so that it {port}");
        choices.add("agent", "on the disk of shares", why);
    }
    let program = fetched.map(|agent| Program {
        port: (!lacks_ports).then_some(ProgramPort::Silent),
        on_disk: (lacks_ports || on_disk).then(|| layout::Program::of(agent)),
    });
    let program = program.unwrap_or_default();
    let seed = rungs.iter().find_map(|rung| Some(Volume::seed(rung.seed?, buses.boot, program.source())));
    // They come behind the user's disks, which have to be there then when the guest boots.
    let last = medium.as_ref().map(|_| "the disk with Belljar's GRUB is to come after it");
    let last = last.or(seed.as_ref().map(|_| "the disk for the guest's cloud-init is to come after it"));
    let pluggable = last.is_none();
    volumes.extend(seed);
    volumes.extend(medium);

    let share_disk = (on_disk || program.on_disk.is_some()).then(|| share_disk(buses.boot));
    let mut config = MachineConfig {
        name: "belljar".into(),
        share_disk,
        platform,
        machine: machine(platform, spec).to_owned(),
        flash,
        accel: accel.accel,
        cpu: spec.cpu.clone().or_else(|| plan_devices::cpu_with_threads(&spec.devices, platform, accel.accel)),
        memory: spec.hardware.memory,
        cpus: spec.hardware.cpus,
        max_cpus: Some(spec.hardware.most_cpus()),
        max_memory: Some(spec.hardware.most_memory()),
        sandbox: qemu.has_sandbox,
        pause_on_panic: spec.panic_dump.is_some(),
        kernel: kernel.map(|files| args::Kernel { image: files.kernel, initrd: files.initrd, append: words }),
        nic: Nic { mode: spec.hardware.nic, model: card, ..Nic::default() },
        shares,
        tpm: tpm.as_ref().map(Tpm::config),
        further,
        topology: spec.devices.topology.or_else(|| plan_devices::sockets_of_nodes(&spec.devices, platform)),
        numa: spec.devices.numa.clone(),
        rng: spec.devices.rng,
        ram: if virtiofsd.is_some() { Ram::Lent } else { Ram::Anonymous },
        program,
        extra: spec.qemu_args.clone(),
        ..MachineConfig::default()
    };
    if let Some(tpm) = &tpm {
        tpm::check(tpm, config.kernel.is_some(), spec)?;
    }
    attach(&mut config, &rungs, &spec.append);
    screen::attach(&mut config, source, spec, &qemu);
    config.slots = slots(source, spec, &config, &volumes);
    if config.slots.is_some() {
        config.nic.mac = Some(QEMU_MAC.map(|byte| format!("{byte:02x}")).join(":"));
    }
    let volumes = Volumes::new(volumes, config.slots.is_some() && pluggable);
    for disk in volumes.fixed().iter().filter(|disk| disk.is_further()) {
        let why = match (source, config.slots) {
            (BootSource::Initramfs { .. }, _) => "somebody else's initramfs may look for it while it boots".to_owned(),
            (_, Some(_)) if last.is_some() => last.unwrap_or_default().to_owned(),
            _ if config.share_disk.is_some() => "the disk of the guest's shares comes after it".to_owned(),
            (_, Some(_)) => format!("a disk on {} cannot be plugged into a machine that runs", disk.kind()),
            (_, None) => "where devices are in this machine is not known before it runs".to_owned(),
        };
        choices.add("disk", "there from the boot on", why);
    }
    let concealment = Concealment::new(&spec.hide, &config, &host, &dir, &mut |kind| choices.0.push(kind))?;
    let plan = Plan {
        ssh,
        tpm,
        virtiofsd,
        concealment,
        config,
        volumes,
        system: (is_init || is_beside).then_some(system),
        processes,
        rungs,
        agent: place,
        login: spec.credentials()?,
        share: ShareSpec { modules: of_kernel, ..share.clone() },
        root_is_on_disk,
        before_agent,
        kinds,
        qemu,
        host,
        dir,
        oops: spec.oops,
        panic_dump: spec.panic_dump,
        boot_timeout: spec.boot_timeout,
        way_back,
        again: false,
        choices: choices.0,
        title: title(source),
    };
    // What cannot be said must be found out now, not when QEMU is to be started.
    plan.for_people().0.to_args()?;
    Ok(plan)
}

impl Plan {
    /// Finds or makes what cannot be made in one go, as [`prepare`] does: raw copies of images. To be called once, before a machine is started. `made` is what a
    /// person is told of what was made before.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(crate) async fn complete_volumes(&mut self, made: Vec<EventKind>) -> Result<(), Lost> {
        self.choices.extend(made);
        let told = self.volumes.find_copies(&self.host, &self.dir).await?;
        self.choices.extend(told);
        Ok(())
    }

    /// What was chosen, and why.
    #[must_use]
    pub fn choices(&self) -> &[EventKind] {
        &self.choices
    }

    /// The accelerator.
    #[must_use]
    pub fn accel(&self) -> Accel {
        self.config.accel
    }

    /// Commands that a person can paste: the console is the terminal, and what a run makes for itself (directories, disks) is made
    /// in the current directory.
    ///
    /// # Errors
    /// See [`args::ArgsError`].
    pub fn command_line(&self) -> Result<String, PlanError> {
        let (config, by_hand) = self.for_people();
        let mut text = String::new();
        for command in &by_hand {
            text.push_str(&args::to_shell(command));
            text.push('\n');
        }
        text.push_str(&args::to_shell(&self.words(&config)?));
        Ok(text)
    }

    /// The same guest for another attempt: with other directories of the host, and its own files in `dir`, which exists.
    #[must_use]
    pub fn at(&self, share: ShareSpec, dir: PathBuf) -> Self {
        let mut plan = self.clone();
        for control in plan.config.shares.iter_mut().filter(|s| s.tag == share::CONTROL_TAG) {
            control.path = dir.join(CONTROL_DIR);
        }
        plan.dir = dir;
        plan.with_share(share)
    }

    /// The same guest with other directories of the host.
    pub(crate) fn with_share(&self, share: ShareSpec) -> Self {
        let mut plan = self.clone();
        if !self.exchange().is_empty() || share.required() {
            plan.config.shares.retain(|s| s.tag != share::OUT_TAG && s.tag != share::WORKSPACE_TAG);
            plan.config.shares.extend(spec_shares(&share, &plan.kinds, &plan.dir));
        }
        // They are the guest's, whatever else it sees of the host.
        plan.share = ShareSpec { modules: plan.share.modules.take(), ..share };
        plan
    }

    /// Whether what is in its image is started without the image's boot loader.
    pub(crate) fn is_started_by_us(&self) -> bool {
        self.rungs.iter().any(|rung| rung.start != Start::ByImage)
    }

    /// Whether a GRUB of ours does that.
    pub(crate) fn is_by_our_grub(&self) -> bool {
        self.rungs.iter().any(|rung| rung.start == Start::ByOurGrub)
    }

    /// Whether Belljar's program is the guest's first process.
    pub(crate) fn is_init(&self) -> bool {
        self.rungs.iter().any(|rung| rung.is_init)
    }

    /// The rung by which the agent comes of its own accord, and what is said of it.
    pub(crate) fn agent_by_itself(&self) -> Option<(&'static Rung, rungs::Agent)> {
        self.rungs.iter().find_map(|rung| Some((*rung, rung.agent?)))
    }

    /// What carries the control share, if there is one.
    pub(crate) fn control_kind(&self) -> Option<&'static Kind> {
        self.before_agent.filter(|_| self.config.shares.iter().any(|s| s.tag == share::CONTROL_TAG))
    }

    /// What may carry the output directory and the workspace, the first choice first; none if the guest has neither.
    pub(crate) fn exchange(&self) -> &[&'static Kind] {
        if self.config.shares.iter().any(|s| s.tag == share::OUT_TAG) { &self.kinds } else { &[] }
    }

    /// What the guest is to mount, in order.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        match self.exchange() {
            [] => Vec::new(),
            kinds => share::mounts(&self.share, kinds),
        }
    }

    /// What may carry the shares of copies of the guest, the first choice first.
    pub(crate) fn sources(&self) -> Vec<ShareSource> {
        self.exchange().iter().map(|kind| (kind.source)(share::OUT_TAG)).collect()
    }

    /// Whether all of the guest is its own, so that what is set up in it stays true.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn fixed(&self) -> Result<(), &'static str> {
        if self.config.shares.iter().any(|s| s.tag == share::ROOT_TAG) {
            return Err(
                "the guest's root is a directory of the host's, which may change under what was set up over it",
            );
        }
        if self.exchange().is_empty() {
            return Err("the guest sees nothing of the host, so that its set-up has nothing to read");
        }
        if !self.volumes.late().is_empty() {
            return Err("the guest has an NVMe disk, with which QEMU cannot freeze it");
        }
        Ok(())
    }

    /// What the guest runs on.
    pub(crate) fn platform(&self) -> &'static Platform {
        self.config.platform
    }

    /// Bytes of the guest's memory.
    pub(crate) fn ram_size(&self) -> u64 {
        self.config.ram_size()
    }

    /// How long the boot may take at most.
    pub(crate) fn boot_limit(&self) -> Duration {
        Limits::new(self.accel(), self.boot_timeout).whole_boot()
    }

    /// The command that starts a machine of this plan.
    pub(crate) fn command_of(&self, config: &MachineConfig) -> Result<String, PlanError> {
        Ok(args::to_shell(&self.words(config)?))
    }

    /// The machine as a person would start it, and the commands that make its directories and its disks.
    fn for_people(&self) -> (MachineConfig, Vec<Vec<OsString>>) {
        let channels = args::Channels::terminal();
        // A person gets in without the agent, which goes with the run.
        let (smbios, fw_cfg, program) = Default::default();
        let mut config = MachineConfig { channels, program, smbios, fw_cfg, ..self.config.clone() };
        if self.share.workspace.is_none() {
            config.shares.retain(|s| s.tag != share::WORKSPACE_TAG);
        }
        let mut directories = Vec::new();
        for share in &mut config.shares {
            if share.path.starts_with(&self.dir) {
                // That directory goes with the run.
                share.path = PathBuf::from(&share.tag);
            } else if share.tag != share::OUT_TAG {
                continue;
            }
            directories.push(share.path.clone().into_os_string());
        }
        let mut by_hand = Vec::new();
        if !directories.is_empty() {
            by_hand.push(["mkdir", "-p", "--"].map(OsString::from).into_iter().chain(directories).collect());
        }
        if self.tpm.is_some() {
            by_hand.extend(Tpm::by_hand());
        }
        if let Some(virtiofsd) = &self.virtiofsd {
            let shares = config.shares.iter().filter(|share| share.server.is_some());
            by_hand.extend(shares.map(|share| virtiofsd.by_hand(&share.tag, &share.path, share.read_only)));
        }
        by_hand.extend(self.volumes.describe(&self.host.qemu_img, &mut config));
        if let Some(disk) = &mut config.share_disk {
            let (file, size) = (format!("{SERIAL}.raw"), DISK_SIZE.to_string());
            by_hand.push(["truncate", "-s", &size, "--", &file].map(OsString::from).to_vec());
            disk.node.source = DiskSource::Path(file.into());
        }
        (config, by_hand)
    }

    /// Whether the command that is shown needs files of the run's directory: boot files, where the cache cannot be written.
    #[must_use]
    pub fn needs_run_dir(&self) -> bool {
        let kernel = self.config.kernel.as_ref();
        let files = kernel.into_iter().flat_map(|k| [Some(&k.image), k.initrd.as_ref()]).flatten();
        files.into_iter().any(|file| file.starts_with(&self.dir)) || self.volumes.are_in(&self.dir)
    }

    fn words(&self, config: &MachineConfig) -> Result<Vec<OsString>, PlanError> {
        let mut words = vec![self.qemu.path.clone().into_os_string()];
        words.extend(config.to_args()?);
        Ok(words)
    }
}

/// Where devices are. They are left to QEMU where a machine is not of a type whose slots are known, or the user's own arguments may take
/// some of them. They are, too, where a kernel is given with somebody else's initramfs: its root may be one of the disks, so that it has to boot
/// with all of them.
fn slots(source: &BootSource, spec: &GuestSpec, config: &MachineConfig, volumes: &[Volume]) -> Option<&'static Slots> {
    let further = volumes.iter().filter(|volume| volume.takes_slot()).count() + config.further_slots();
    let boots_alone = !matches!(source, BootSource::Initramfs { .. });
    // The disk of shares comes after all others, which it could not if some were plugged in later.
    let may_be_given = boots_alone && spec.qemu_args.is_empty() && config.share_disk.is_none();
    config.machine_type().slots.filter(|slots| may_be_given && slots.has_room(further))
}

/// Whether the guest sees anything of the host: what was asked for, its root, or what brings the agent in.
fn sees_host(source: &BootSource, is_init: bool, share: &ShareSpec) -> bool {
    match source {
        BootSource::Image { .. } | BootSource::RootDir { .. } | BootSource::ContainerImage { .. } => true,
        BootSource::Initramfs { .. } => !is_init || share.required(),
    }
}

/// Whether the guest has an output directory of the host's, and the device of a workspace. If nobody asked for them, it has
/// them where it needs a share all the same, or where files in one are how to talk to it.
fn has_exchange(agent: AgentPlace, is_init: bool, share: &ShareSpec, others: &[Share]) -> bool {
    let by_itself = match agent {
        AgentPlace::ControlShare | AgentPlace::Nowhere => true,
        // Where it is not the first process, the other share is for when the initramfs is gone.
        AgentPlace::Initramfs => is_init && !others.is_empty(),
    };
    by_itself || share.required()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_initramfs_keeps_its_emergency_shell() {
        let line = |source: &BootSource, accel, append: &[String]| {
            let kernel = args::Kernel { image: "k".into(), initrd: None, append: String::new() };
            let mut config = MachineConfig { kernel: Some(kernel), accel, ..MachineConfig::default() };
            attach(&mut config, &rungs::choose(source), append);
            config.kernel.unwrap().append
        };
        let access = Access::Auto;
        let theirs = BootSource::Initramfs { kernel: "k".into(), initrd: "i".into(), modules: None, access };
        assert_eq!(line(&theirs, Accel::Tcg, &["rdinit=/bin/sh".to_owned()]), "console=ttyS0 rdinit=/bin/sh");
        assert!(line(&BootSource::host(), Accel::Tcg, &[]).contains(" panic=-1 "));
        let mut kept = MachineConfig {
            kernel: Some(args::Kernel { image: "k".into(), initrd: None, append: String::new() }),
            pause_on_panic: true,
            ..MachineConfig::default()
        };
        attach(&mut kept, &rungs::choose(&BootSource::host()), &[]);
        let kept = kept.kernel.unwrap().append;
        assert!(kept.contains(" panic=0 ") && !kept.contains("panic=-1"), "{kept}: its memory is to be kept");
        assert!(line(&BootSource::host(), Accel::Tcg, &[]).contains("no_timer_check"));
        assert!(!line(&BootSource::host(), Accel::Kvm, &[]).contains("no_timer_check"));
    }
}
