//! From QEMU's start to a guest in which a command can run.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::WorkspaceMode;
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{DiskContent, Identity, Setup};
use fs_err::File;
use tokio::sync::mpsc;

use crate::{
    Cause, Lost,
    access::Shell,
    beside::{Beside, Noted},
    bounds::{Before, Gauge},
    console::{Console, Patience},
    enter,
    get_in::get_in,
    guest::{Observe, Views},
    lab::Lab,
    launch::{Feeding, Launch, Predecessor},
    limits::Limits,
    memory_dump::MemoryDump,
    no_way_in,
    plan::Plan,
    plan_grub::BootedEntry,
    qemu::{
        args::{MachineConfig, Ram},
        process::{Qemu, SpawnError, SpawnRequest},
    },
    replaced::ReplacedFiles,
    running::{CONSOLE_LOG, QEMU_COMMAND, QEMU_LOG, QemuGuest, TAIL},
    screen,
    session::{
        Session,
        agent::{AgentSession, BoxedPort, Liveness, PortKind, Reports, of_session},
        console::ConsoleSession,
    },
    share::{
        self,
        carried::{Carried, no_share, share_choice},
        exchange::DiskExchange,
        served::ServedAgain,
        virtiofsd,
    },
    tpm::Emulator,
    volume::Kept,
    watch::Watch,
};

/// The ways to an agent.
pub(crate) type Ports = Vec<(PortKind, BoxedPort)>;

/// Takes what is worth an event, while something else may have things to say as well.
pub(crate) type Tell<'a> = &'a mut dyn FnMut(EventKind);

/// A running QEMU with its console, watched.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) qemu: Qemu,
    pub(crate) console: Console,
    pub(crate) watch: Watch,
    pub(crate) limits: Limits,
    /// Where a picture of its screen is kept if nobody gets in, as long as that is awaited and it has one.
    screen: Option<PathBuf>,
    /// What is kept of its memory when its kernel has failed, until it is.
    memory_dump: Option<MemoryDump>,
    /// What comes and goes on the disk of its shares, if they do.
    pub(crate) exchange: Option<DiskExchange>,
    /// What of the host's directories is not on it, until it is told.
    left_out: Vec<String>,
    /// Its lab disks.
    pub(crate) lab: Lab,
    /// What is kept of its volumes for a machine that takes its place.
    pub(crate) kept: Vec<Kept>,
    pub(crate) before: Before,
    pub(crate) pmem: Vec<std::fs::File>,
    pub(crate) tpm: Option<Emulator>,
    /// The ports to its agent, to be used again by whoever talks to another one: that which is used, once one is.
    lines: Vec<(PortKind, OwnedFd)>,
    pub(crate) frame: Frame,
    /// They go with it.
    pub(crate) served: ServedAgain,
    _virtiofsds: (Vec<virtiofsd::Running>, Vec<Noted>),
    _program: Option<Feeding>,
}

/// In what one machine must not differ from another that goes on with its state, beside what the plan says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Where its memory is.
    pub(crate) ram: Ram,
    /// Whether it has a generation of its own.
    pub(crate) vmgenid: bool,
}

/// Why a machine did not even start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// QEMU did not.
    Spawn(SpawnError),
    /// Something that it needs is missing.
    Files(Cause),
}

impl From<StartError> for Cause {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Spawn(error) => error.into(),
            StartError::Files(cause) => cause,
        }
    }
}

impl Machine {
    /// Starts QEMU. With `again` the logs of this attempt are added to, not begun.
    pub(crate) async fn start(
        plan: &Plan,
        mut launch: Launch,
        again: bool,
        view: Option<&Views>,
    ) -> Result<(Self, Ports), StartError> {
        let (kept, pmem, program) =
            (std::mem::take(&mut launch.kept), std::mem::take(&mut launch.pmem), launch.program.take());
        let Launch { config, descriptors, served, exchange, tpm, to_serve, lab, lab_lines, predecessor, .. } = launch;
        keep_command(plan, &config.inheriting(&descriptors))?;
        let host = &plan.host;
        // Before anybody counts what is written to it.
        let exchange = match exchange {
            Some(exchange) => Some(exchange.filled().await.map_err(unfilled).map_err(StartError::Files)?),
            None => None,
        };
        let (exchange, left_out) =
            exchange.map_or((None, Vec::new()), |(exchange, left_out)| (Some(exchange), left_out));
        let log =
            File::options().create(true).write(true).append(again).truncate(!again).open(plan.dir.join(CONSOLE_LOG));
        let log = log.map_err(|e| StartError::Files(host_file("log the console", &e)))?;
        let workspace = plan.share.workspace.as_ref().filter(|w| w.mode == WorkspaceMode::Rw);
        let written = descriptors.written().and_then(|mut volumes| {
            for written in lab.iter().map(|disk| &disk.written).chain(lab_lines.iter().map(|line| &line.written)) {
                volumes.push(written.try_clone()?);
            }
            let others: Vec<&Path> = workspace.iter().map(|w| &*w.dir).collect();
            Gauge::new(plan.share.bounds, &plan.share.out, volumes, &plan.dir, &others)
        });
        let gauge = written.map_err(|e| StartError::Files(host_file("look at what the guest is to write to", &e)))?;
        let gauge = match &predecessor {
            Some(Predecessor { before, .. }) => gauge.since(*before),
            None => gauge,
        };
        let before = gauge.before();
        let request = SpawnRequest {
            program: &plan.qemu.path,
            config: &config,
            shim: &host.shim,
            env: &host.qemu_env,
            gauge: Some(gauge),
            log: &plan.dir.join(QEMU_LOG),
            descriptors,
        };
        let mut tpm = match (&plan.tpm, tpm) {
            (Some(tpm), Some(line)) => {
                Some(Emulator::start(tpm, line, &plan.dir, predecessor.is_some(), host).await.map_err(|e| {
                    StartError::Files(Cause::host_file(
                        "start the guest's TPM (swtpm)",
                        &e,
                        "leave `tpm` out, or see whether swtpm works",
                    ))
                })?)
            }
            _ => None,
        };
        let mut virtiofsds = Vec::new();
        if let Some(program) = &plan.virtiofsd {
            for one in to_serve {
                let what = format!("start the server of {} (virtiofsd)", share::what(&one.tag));
                let started = virtiofsd::Running::start(program, one, host).await;
                let advice = "leave --share at auto, or see whether virtiofsd works";
                virtiofsds.push(started.map_err(|e| StartError::Files(Cause::host_file(&what, &e, advice)))?);
            }
        }
        let is_another = predecessor.is_some();
        let started = match predecessor {
            Some(Predecessor { lab, .. }) => lab.connect(lab_lines).await.map(|()| lab),
            None => Lab::start(lab, host).await,
        };
        let lab = started.map_err(|e| {
            let advice = "leave `lab` out, or see what its server says";
            StartError::Files(Cause::host_file("start the server of a lab disk", &e, advice))
        })?;
        let mut qemu = Qemu::spawn(request).await.map_err(StartError::Spawn)?;
        if is_another {
            if let Some(cause) = lab.spoilt() {
                return Err(StartError::Files(cause));
            }
            lab.begin().await.map_err(|why| StartError::Files(Cause::ShareServer(why)))?;
        }
        let channels = qemu.take_channels();
        let console = Console::new(channels.console, log);
        if let Some(view) = view {
            // Nobody looking is fine.
            drop(view.send(console.view()));
        }
        let (tell, ends) = mpsc::unbounded_channel();
        if let Some(tpm) = &mut tpm {
            tpm.watch(tell.clone()).map_err(|e| StartError::Files(host_file("watch the guest's TPM", &e)))?;
        }
        let beside = Beside::default();
        let mut noted = Vec::new();
        for one in &mut virtiofsds {
            noted.push(one.noted(&beside));
            let watched = one.watch(tell.clone());
            watched.map_err(|e| StartError::Files(host_file("watch the server of a share", &e)))?;
        }
        noted.extend(lab.watch(&tell, &beside).await);
        let served = ServedAgain::start(served, host, &beside, tell)
            .map_err(|e| StartError::Files(host_file("wait at the ports of shares", &e)))?;
        let lines = [(PortKind::Virtio, channels.agent.as_fd()), (PortKind::Serial, channels.serial1.as_fd())]
            .map(|(kind, port)| Ok((kind, port.try_clone_to_owned()?)))
            .into_iter()
            .collect::<io::Result<_>>()
            .map_err(|e| StartError::Files(host_file("keep the ports of the agent", &e)))?;
        let watch = Watch::new(&console, &qemu, plan.oops, ends, beside, (lab.clone(), &config, &plan.dir));
        let ports: Ports =
            vec![(PortKind::Virtio, Box::new(channels.agent)), (PortKind::Serial, Box::new(channels.serial1))];
        let limits = Limits::new(plan.accel(), plan.boot_timeout);
        let program = program.map(Feeding::start);
        Ok((
            Self {
                qemu,
                console,
                watch,
                limits,
                screen: None,
                memory_dump: plan.panic_dump.map(|most| MemoryDump { dir: plan.dir.clone(), most }),
                exchange,
                left_out,
                lines,
                frame: Frame { ram: config.ram, vmgenid: config.vmgenid },
                served,
                tpm,
                lab,
                kept,
                pmem,
                before,
                _virtiofsds: (virtiofsds, noted),
                _program: program,
            },
            ports,
        ))
    }

    /// Does some work, unless the guest dies meanwhile.
    pub(crate) async fn attend<T>(
        &mut self,
        phase: Phase,
        observe: Observe<'_>,
        work: impl AsyncFnOnce(&Qemu, &mut Console, Tell<'_>) -> Result<T, Lost>,
    ) -> Result<T, Lost> {
        // Both the work and the watch have things to say.
        let (said, mut saying) = mpsc::unbounded_channel();
        let mut tell = {
            let said = said.clone();
            move |kind| drop(said.send(kind))
        };
        let mut warn = move |kind| drop(said.send(kind));
        let Self { qemu, console, watch, .. } = self;
        let done = {
            let mut working = std::pin::pin!(work(qemu, console, &mut tell));
            let mut trouble = std::pin::pin!(watch.trouble(phase, &mut warn));
            loop {
                tokio::select! {
                    biased;
                    Some(kind) = saying.recv() => observe(kind),
                    done = &mut working => break done,
                    lost = &mut trouble => break Err(lost),
                }
            }
        };
        while let Ok(kind) = saying.try_recv() {
            observe(kind);
        }
        done
    }

    /// Finds the best reason for a loss, and ends the machine.
    pub(crate) async fn give_up(mut self, lost: Lost, phase: Phase) -> Lost {
        // What was said last explains best, and the reason may have come a moment after its consequence.
        let lost = self.watch.explain(lost, phase).await;
        self.watch.last_words(&lost).await;
        let lost = self.with_picture(lost).await;
        let lost = self.with_memory(lost).await;
        let tail = if lost.tail.is_empty() { self.console.tail(TAIL) } else { lost.tail.clone() };
        self.qemu.kill().await;
        let lost = if phase == Phase::Boot { and_of_agent(lost, &tail) } else { lost };
        lost.with_tail(tail)
    }
}

impl Machine {
    /// The port to the agent, for another session there. The one before must have ended.
    pub(crate) fn ports(&self) -> io::Result<Ports> {
        let open = |(kind, port): &(PortKind, OwnedFd)| {
            let port = tokio::net::UnixStream::from_std(port.try_clone()?.into())?;
            Ok((*kind, Box::new(port) as BoxedPort))
        };
        self.lines.iter().map(open).collect()
    }

    /// On which port the agent is, once a session has been got.
    pub(crate) fn agents_port(&self) -> Option<PortKind> {
        self.lines.first().map(|(kind, _)| *kind)
    }

    /// A session has been got, and what carries the shares is mounted.
    pub(crate) fn shared(
        &mut self,
        plan: &Plan,
        session: &dyn Session,
        mut carried: Option<Carried>,
        observe: Observe<'_>,
    ) {
        self.watch.ports.mounted(carried.as_mut().map(|c| std::mem::take(&mut c.ports)).unwrap_or_default());
        self.watch.entered(session.reports());
        if carried.as_ref().is_some_and(|carried| carried.kind.on_disk) {
            for message in self.left_out.drain(..) {
                observe(EventKind::Warning { message });
            }
        } else {
            // The guest takes nothing from it.
            self.exchange = None;
        }
        if let Some(choice) = share_choice(plan, session, carried) {
            observe(choice);
        }
        let written = plan.share.written().map(Path::to_owned).collect();
        self.watch.shared(ReplacedFiles::new(self.qemu.pid(), written));
    }

    /// What is on the disk of its shares, if they come by one, and how long it may take to unpack that.
    pub(crate) fn content(&self) -> (Option<DiskContent>, Duration) {
        let exchange = self.exchange.as_ref();
        (exchange.map(DiskExchange::content), self.limits.unpacking(exchange.map_or(0, DiskExchange::bytes)))
    }

    /// Puts the shares onto the disk for them once more, if they come by one.
    pub(crate) async fn fill_again(&mut self) -> Result<(), Cause> {
        if let Some(exchange) = self.exchange.take() {
            let (exchange, left_out) = exchange.filled().await.map_err(unfilled)?;
            (self.exchange, self.left_out) = (Some(exchange), left_out);
        }
        Ok(())
    }
}

/// A loss at a boot, with what Belljar's program has said of it.
pub(crate) fn and_of_agent(lost: Lost, tail: &[String]) -> Lost {
    match last_of_agent(tail).filter(|_| lost.cause.crash_kind().is_some()) {
        Some(said) => lost.and_advice(format!("Belljar's program in the guest said: {said}")),
        None => lost,
    }
}

/// Why Belljar's program gave up as the first process, if it is among the last lines of the console (`agent/src/init`).
fn last_of_agent(tail: &[String]) -> Option<&str> {
    tail.iter().rev().find_map(|line| line.trim().strip_prefix("belljar: fatal: "))
}

impl Machine {
    /// A loss with what is kept of the guest's memory, once, if its kernel has failed.
    pub(crate) async fn with_memory(&mut self, lost: Lost) -> Lost {
        if !matches!(lost.cause.crash_kind(), Some(CrashKind::Panic | CrashKind::Oops)) {
            return lost;
        }
        match self.memory_dump.take() {
            Some(dump) => dump.of(self.qemu.qmp(), lost).await,
            None => lost,
        }
    }

    /// A loss with a picture of the screen of a guest that was not got into.
    async fn with_picture(&self, lost: Lost) -> Lost {
        let Some(dir) = &self.screen else { return lost };
        if !matches!(lost.cause, Cause::Timeout { .. } | Cause::Access(_) | Cause::Crash(_)) {
            return lost;
        }
        match screen::keep(self.qemu.qmp(), dir).await {
            Ok(path) => lost.and_advice(format!("a picture of its screen: {}", path.display())),
            Err(Some(why)) => lost.and_advice(format!("there is no picture of its screen: {why}")),
            Err(None) => lost,
        }
    }
}

/// Why a guest did not boot.
#[derive(Debug)]
pub(crate) enum Unbooted {
    /// There was no machine.
    Start(StartError),
    /// There was one, and it is lost.
    Lost(Lost),
}

impl Unbooted {
    pub(crate) fn lost(self) -> Lost {
        match self {
            Self::Start(error) => Cause::from(error).into(),
            Self::Lost(lost) => lost,
        }
    }
}

/// What was got in a guest that booted.
#[derive(Debug)]
pub(crate) enum Entered {
    /// Our agent.
    Agent {
        /// The session with it.
        session: Box<AgentSession>,
        /// How to reach it.
        port: PortKind,
    },
    /// Only a shell on the console.
    Shell(Box<Shell>),
}

impl Entered {
    /// What the agent tells beside its session.
    pub(crate) fn reports(&self) -> Option<Arc<Reports>> {
        match self {
            Self::Agent { session, .. } => Some(session.reports()),
            Self::Shell(_) => None,
        }
    }
}

/// A guest that booted, before anything of the host's was mounted for good.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) machine: Machine,
    pub(crate) entered: Entered,
    patience: Patience,
}

impl Booted {
    /// Boots until something in the guest answers.
    pub(crate) async fn boot(
        plan: &Plan,
        launch: Launch,
        view: Option<&Views>,
        observe: Observe<'_>,
    ) -> Result<Self, Unbooted> {
        let again = plan.again || launch.predecessor.is_some();
        let (mut machine, ports) = Machine::start(plan, launch, again, view).await.map_err(Unbooted::Start)?;
        machine.screen = plan.config.has_screen().then(|| plan.dir.clone());
        let limits = machine.limits;
        let mut patience = limits.boot(machine.qemu.cpu_clock());
        let entered = machine
            .attend(Phase::Boot, observe, async |qemu, console, tell| {
                let mut came = false;
                let (view, entry) = (console.view(), BootedEntry::default());
                let entered = {
                    let told: (Tell<'_>, _) = (&mut *tell, &mut came);
                    let by_itself = plan.agent_by_itself();
                    let getting_in = get_in(plan, ports, (qemu, console), &mut patience, &limits, by_itself, told);
                    tokio::select! {
                        entered = getting_in => entered,
                        lost = entry.note(&view), if plan.is_by_our_grub() => Err(lost),
                    }
                };
                entry.told().into_iter().for_each(tell);
                entered.map_err(|lost| if came { lost } else { no_way_in::with_ways(plan, lost) })
            })
            .await;
        match entered {
            Ok(entered) => {
                machine.screen = None;
                Ok(Self { machine, entered, patience })
            }
            Err(lost) => Err(Unbooted::Lost(machine.give_up(lost, Phase::Boot).await)),
        }
    }

    /// Mounts the shares: then commands can run. A guest that had an identity keeps it.
    pub(crate) async fn finish(self, plan: &Plan, who: Option<Identity>, seen: Observe<'_>) -> Result<QemuGuest, Lost> {
        let Self { machine, entered, patience } = self;
        let limit = machine.limits.setup(&patience);
        finish(machine, entered, plan, who, limit, seen).await
    }
}

/// Mounts the shares of a guest whose session is there.
pub(crate) async fn finish(
    mut machine: Machine,
    entered: Entered,
    plan: &Plan,
    identity: Option<Identity>,
    limit: Duration,
    observe: Observe<'_>,
) -> Result<QemuGuest, Lost> {
    let (limits, share) = (machine.limits, &plan.share);
    let (content, unpacking) = machine.content();
    let limit = limit + unpacking;
    let port = match &entered {
        Entered::Agent { port, .. } => Some(*port),
        Entered::Shell(_) => None,
    };
    let ready = machine
        .attend(Phase::Session, observe, async |_, _, tell| match entered {
            Entered::Agent { mut session, .. } => {
                let clock = SetClock::Yes;
                let carried =
                    finish_setup(&mut session, (plan, identity, content), clock, &limits, limit, tell).await?;
                Ok((session as Box<dyn Session>, carried))
            }
            Entered::Shell(mut shell) => {
                if let Some(identity) = &identity {
                    enter::assume(&mut shell, identity, &limits).await?;
                }
                let mut carried = None;
                let exchange = if plan.exchange().is_empty() {
                    tell(no_share(&enter::make_out_dir(&mut shell, &limits).await?));
                    None
                } else {
                    let mounted = match share::for_shell(plan.exchange()) {
                        Ok(kind) => {
                            carried =
                                Some(Carried { kind, lacking: Vec::new(), ports: Vec::new(), places: Vec::new() });
                            enter::mount_by_shell(&mut shell, share, kind, &limits).await?
                        }
                        Err(why) if share.required() => return Err(Cause::NoShares(why).into()),
                        Err(why) => Err(Cause::NoShares(why)),
                    };
                    match mounted {
                        Ok(exchange) => Some(exchange),
                        Err(Cause::NoShares(why)) => {
                            tell(no_share(&why));
                            None
                        }
                        Err(why) => {
                            tell(EventKind::Warning { message: format!("{why}\n{}", share::OUT_IS_LOST) });
                            None
                        }
                    }
                };
                let session = ConsoleSession::new(*shell, exchange, limits.factor());
                let session = session.with_layer(share.layer().map(str::to_owned));
                let written = share.workspace.as_ref().filter(|workspace| workspace.mode == WorkspaceMode::Rw);
                let session = session.with_share(written.map(|workspace| workspace.mount_at.clone()));
                Ok((Box::new(session) as Box<dyn Session>, carried))
            }
        })
        .await;
    match ready {
        Ok((session, carried)) => {
            machine.lines.retain(|(kind, _)| Some(*kind) == port);
            machine.shared(plan, &*session, carried, observe);
            Ok(QemuGuest::new(machine, session, plan.processes.clone()))
        }
        Err(lost) => Err(machine.give_up(lost, Phase::Boot).await),
    }
}

/// How a copy was got into, and how it is talked to: as its template.
pub(crate) fn choices_of_copy(plan: &Plan, entered: &Entered) -> [EventKind; 2] {
    let access = match plan.agent_by_itself() {
        Some((rung, of_it)) if plan.rungs.len() == 1 => (rung.name, of_it.in_copy),
        _ => ("the template's", "its template was got into when it booted, and is not asked again"),
    };
    let session = match entered {
        Entered::Agent { port: PortKind::Virtio, .. } => {
            ("agent on the virtio port", "it answered there, as in its template")
        }
        Entered::Agent { port: PortKind::Serial, .. } => {
            ("agent on the second serial port", "it answered there, as in its template")
        }
        Entered::Agent { port: PortKind::Socket, .. } => ("agent on a socket", "it answered there"),
        Entered::Shell(_) => ("sh on the console", "it answered there, as in its template"),
    };
    [("access", access), ("session", session)].map(|(what, (chosen, why))| EventKind::Choice {
        what: what.into(),
        chosen: chosen.into(),
        why: why.into(),
    })
}

fn keep_command(plan: &Plan, config: &MachineConfig) -> Result<(), StartError> {
    let line = plan.command_of(config).map_err(|e| StartError::Files(Cause::Description(e.to_string())))?;
    fs_err::write(plan.dir.join(QEMU_COMMAND), line + "\n")
        .map_err(|e| StartError::Files(host_file("keep QEMU's command line", &e)))
}

fn unfilled(error: io::Error) -> Cause {
    let advice = "the directories must be readable, and the run's directory must have room for a copy of them; or use another --share, or -w none";
    Cause::host_file("put the guest's shares on a disk", &error, advice)
}

fn host_file(attempt: &str, error: &io::Error) -> Cause {
    Cause::host_file(attempt, error, "the run's directory must be writable")
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0)
}

/// Whether a guest's clock is set to the host's when its shares are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetClock {
    /// It booted, or is a copy.
    Yes,
    /// It knows what time it is, or is to believe.
    No,
}

/// Mounts the shares, and sets the clock.
pub(crate) async fn finish_setup(
    session: &mut AgentSession,
    (plan, identity, disk): (&Plan, Option<Identity>, Option<DiskContent>),
    clock: SetClock,
    limits: &Limits,
    limit: Duration,
    tell: Tell<'_>,
) -> Result<Option<Carried>, Lost> {
    session.set_liveness(Liveness { silent_after: limits.silence() });
    let (spec, mounts) = (&plan.share, plan.mounts());
    let directories = if mounts.is_empty() { vec![share::OUT_PATH.to_owned()] } else { Vec::new() };
    let (system, working_dir) = (plan.system.clone(), plan.processes.cwd.clone());
    let clock_ns = if clock == SetClock::Yes { now_ns() } else { 0 };
    let setup = Setup { mounts: mounts.clone(), directories, working_dir, disk, clock_ns, system, identity };
    let report = match tokio::time::timeout(limit, session.setup(setup)).await {
        Ok(answered) => answered.map_err(|e| of_session(e, Phase::Session))?,
        Err(_) => {
            let limit = crate::for_people(limit);
            return Err(Lost::timeout(Phase::Session, format!("the guest did not mount its shares within {limit}")));
        }
    };
    for line in session.take_log() {
        tell(EventKind::Warning { message: format!("the agent says: {line}") });
    }
    let kind = usize::try_from(report.source).ok().and_then(|at| plan.exchange().get(at).copied());
    let failed: Vec<usize> = report.faults.iter().filter_map(|(index, _)| usize::try_from(*index).ok()).collect();
    for (index, fault) in report.faults {
        let mount = usize::try_from(index).ok().and_then(|i| mounts.get(i));
        let Some((mount, kind)) = mount.zip(kind) else { continue };
        let said = share::explain(mount, kind, &fault);
        if spec.required() && mount.name != share::MODULES_TAG {
            return Err(Cause::Mount(said).into());
        }
        let lost = if mount.name == share::OUT_TAG { format!("\n{}", share::OUT_IS_LOST) } else { String::new() };
        tell(EventKind::Warning { message: said + &lost });
    }
    let there = mounts.iter().enumerate().filter(|(at, _)| !failed.contains(at)).map(|(_, mount)| mount.name.as_str());
    let there: Vec<&str> = there.collect();
    let carried = kind.map(|kind| {
        let tags = there.iter().copied().filter(|_| kind.has_port);
        Carried {
            kind,
            lacking: report.lacking,
            ports: plan.config.share_port_ids(&tags.collect::<Vec<_>>()),
            places: report.places,
        }
    });
    Ok(carried)
}
