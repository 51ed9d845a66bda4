//! A running guest: from QEMU's start to a session in which commands run, and to its end.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use belljar_model::{CrashKind, EventKind, Exit, Phase, Verdict};
use belljar_proto::message::{Announce, Exec, Nonce, Setup, ShutdownHow, Status, Stdio};
use fs_err::File;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

use crate::{
    Lost,
    access::{self, AccessError, AccessEvent, AccessOptions, Act, Shell},
    command::GuestCommand,
    console::{Console, ConsoleView, LogFault, Patience},
    enter,
    limits::Limits,
    plan::{Entry, Launch, Plan},
    qemu::{
        args::MachineConfig,
        process::{Qemu, SpawnRequest},
        qmp::{self, Qmp},
    },
    session::{
        agent::{AgentSession, BoxedPort, ExecControl, ExecIo, Liveness, OutputSink, PortKind, SessionError},
        console::ConsoleSession,
    },
    share,
    spec::ShareSpec,
    watch::{WantedStops, Watch},
};

/// Takes what is worth an event.
pub type Observe<'a> = &'a mut dyn FnMut(EventKind);

/// Takes the console of each QEMU that is started, to be looked at.
pub type Views = mpsc::UnboundedSender<ConsoleView>;

/// Lines of the console that go with a loss.
const TAIL: usize = 15;

/// How long standard input may take to end before a person is told that the command waits for that.
const STDIN_SOON: Duration = Duration::from_secs(3);

/// A guest with a session.
#[derive(Debug)]
pub struct Guest {
    qemu: Qemu,
    console: Console,
    session: Session,
    watch: Watch,
    limits: Limits,
}

/// The conversation with a running guest.
#[derive(Debug)]
enum Session {
    Agent(Box<AgentSession>),
    Console(Box<ConsoleSession>),
}

/// What a command is connected to.
pub struct Io<'a> {
    /// Standard input; none is an empty one.
    pub stdin: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    /// Takes the output.
    pub sink: &'a mut dyn OutputSink,
    /// Signals and window sizes while it runs.
    pub control: Option<mpsc::Receiver<ExecControl>>,
}

/// The guest's time. While it stands still the guest computes nothing and its own clock does not move, so that it notices nothing.
#[derive(Clone, Debug)]
pub struct GuestClock {
    qmp: Qmp,
    stops: WantedStops,
}

impl GuestClock {
    /// Stops it. Of a guest that has ended meanwhile nothing is said.
    pub async fn stop(&self) {
        self.stops.expect();
        if self.qmp.execute(qmp::Stop {}).await.is_err() {
            self.stops.take();
        }
    }

    /// Lets it go on.
    pub async fn go_on(&self) {
        drop(self.qmp.execute(qmp::Cont {}).await);
    }
}

/// How a guest is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// At once, when the shares are safe.
    Kill,
    /// Through its own service manager.
    PowerOff,
    /// At once, when the shares are as safe as they can be made in a few seconds: the result is known to be bad.
    Hurry,
}

/// Starts a guest and brings it to where a command can run.
///
/// Dropping the future kills it.
///
/// # Errors
/// A [`Lost`] that says what was awaited and what was seen.
pub async fn boot(plan: Plan, view: Option<&Views>, observe: Observe<'_>) -> Result<Guest, Lost> {
    let limits = Limits::new(plan.accel(), plan.boot_timeout);
    let Launch { config, fds } = plan.launch().map_err(|e| Lost::host(e.to_string()))?;
    keep_command(&plan, &config)?;
    let log = File::create(&plan.host.console_log)
        .map_err(|e| Lost::host(format!("cannot log the console: {e}; the run's directory must be writable")))?;
    let request = SpawnRequest {
        program: &plan.qemu.path,
        config: &config,
        shim: &plan.host.shim,
        log: &plan.host.qemu_log,
        extra_fds: fds,
    };
    let mut qemu = Qemu::spawn(request).await.map_err(|error| Lost::host(error.to_string()))?;
    let channels = qemu.take_channels();
    let mut console = Console::new(channels.console, log);
    if let Some(view) = view {
        // Nobody looking is fine.
        drop(view.send(console.view()));
    }
    let mut watch = Watch::new(&console, &qemu, plan.oops);
    let ports: Vec<(PortKind, BoxedPort)> =
        vec![(PortKind::Virtio, Box::new(channels.agent)), (PortKind::Serial, Box::new(channels.serial1))];

    let mut patience = limits.boot(qemu.cpu_clock());
    // Both the work and the watch have things to say.
    let (said, mut saying) = mpsc::unbounded_channel();
    let mut tell = {
        let said = said.clone();
        move |kind| drop(said.send(kind))
    };
    let mut warn = move |kind| drop(said.send(kind));
    let entering = async {
        match &plan.entry {
            Entry::Init => {
                let (session, announce) = by_init(ports, &mut console, &mut patience).await?;
                let limit = limits.setup(&patience);
                finish_setup(session, announce, &plan.share, &limits, limit, &mut tell).await
            }
            Entry::Console { agent } => {
                by_console(*agent, &plan, ports, &mut console, &mut patience, &limits, &mut tell).await
            }
        }
    };
    let entered = {
        let mut entering = std::pin::pin!(entering);
        let mut trouble = std::pin::pin!(watch.trouble(Phase::Boot, &mut warn));
        loop {
            tokio::select! {
                biased;
                Some(kind) = saying.recv() => observe(kind),
                entered = &mut entering => break entered,
                lost = &mut trouble => break Err(lost),
            }
        }
    };
    while let Ok(kind) = saying.try_recv() {
        observe(kind);
    }
    match entered {
        Ok(session) => {
            watch.entered();
            Ok(Guest { qemu, console, session, watch, limits })
        }
        Err(lost) => {
            // What was said last explains best, and the reason may have come a moment after its consequence.
            let lost = watch.explain(lost, Phase::Boot).await;
            watch.last_words(&lost).await;
            let tail = if lost.tail.is_empty() { console.tail(TAIL) } else { lost.tail.clone() };
            qemu.kill().await;
            Err(lost.with_tail(tail))
        }
    }
}

fn keep_command(plan: &Plan, config: &MachineConfig) -> Result<(), Lost> {
    let line = plan.command_of(config).map_err(|e| Lost::host(e.to_string()))?;
    fs_err::write(&plan.host.qemu_command, line + "\n")
        .map_err(|e| Lost::host(format!("cannot keep QEMU's command line: {e}; the run's directory must be writable")))
}

/// Waits for the agent that is the first process.
async fn by_init(
    ports: Vec<(PortKind, BoxedPort)>,
    console: &mut Console,
    patience: &mut Patience,
) -> Result<(AgentSession, (Announce, PortKind)), Lost> {
    let view = console.view();
    tokio::select! {
        biased;
        connected = AgentSession::connect(ports) => {
            let (session, announce, kind) = connected.map_err(|e| of_session(e, Phase::Boot))?;
            Ok((session, (announce, kind)))
        }
        overdue = run_out(patience, &view) => Err(Lost::timeout(
            Phase::Boot,
            format!("the agent, which is the guest's first process, did not announce itself on its port: {overdue}"),
        )),
    }
}

/// Patience that every byte on the console renews.
async fn run_out(patience: &mut Patience, view: &ConsoleView) -> crate::console::Overdue {
    let mut last = view.last_line();
    loop {
        tokio::select! {
            overdue = patience.run_out() => return overdue,
            changed = last.changed() => match changed {
                Ok(()) => patience.renew(),
                Err(_) => return patience.run_out().await,
            }
        }
    }
}

/// Gets a shell on the serial line, and from there the agent if it can run.
async fn by_console(
    place: crate::plan::AgentPlace,
    plan: &Plan,
    ports: Vec<(PortKind, BoxedPort)>,
    console: &mut Console,
    patience: &mut Patience,
    limits: &Limits,
    tell: &mut dyn FnMut(EventKind),
) -> Result<Session, Lost> {
    let options = AccessOptions { credentials: plan.login.clone(), ..AccessOptions::default() };
    let mut booted = false;
    let mut shell = access::climb(console, &options, patience, &mut |event| {
        // Something that can be typed at ends the boot.
        if matches!(event, AccessEvent::Did { act: Act::TypeUser | Act::Probe, .. })
            && !std::mem::replace(&mut booted, true)
        {
            tell(EventKind::Phase { phase: Phase::Access });
        }
        if let Some(kind) = enter::event_of(&event) {
            tell(kind);
        }
    })
    .await
    .map_err(of_access)?;
    tell(EventKind::Phase { phase: Phase::Session });
    match enter::start_agent(&mut shell, place, limits).await? {
        enter::AgentStart::Started => {
            // The console is the kernel's again: its faults have to be seen.
            shell.restore_messages(&mut limits.line()).await.map_err(|e| enter::of_shell(&e, Phase::Session))?;
            let connecting = AgentSession::connect(ports);
            match tokio::time::timeout(limits.agent_start(), connecting).await {
                Ok(connected) => {
                    let (session, announce, kind) = connected.map_err(|e| of_session(e, Phase::Session))?;
                    let limit = limits.setup(patience);
                    finish_setup(session, (announce, kind), &plan.share, limits, limit, tell).await
                }
                Err(_) => Err(Lost::timeout(
                    Phase::Session,
                    format!(
                        "the agent started in the guest, but did not announce itself on its port within {}",
                        crate::for_people(limits.agent_start())
                    ),
                )),
            }
        }
        enter::AgentStart::CannotRun { why } => {
            tell(EventKind::Choice { what: "session".into(), chosen: "sh on the console".into(), why });
            console_session(shell, &plan.share, limits).await
        }
    }
}

async fn console_session(mut shell: Shell, share: &ShareSpec, limits: &Limits) -> Result<Session, Lost> {
    let exchange = enter::mount_by_shell(&mut shell, share, limits).await?;
    Ok(Session::Console(Box::new(ConsoleSession::new(shell, exchange, limits.factor()))))
}

/// Mounts the shares and sets the clock.
async fn finish_setup(
    mut session: AgentSession,
    (announce, port): (Announce, PortKind),
    spec: &ShareSpec,
    limits: &Limits,
    limit: Duration,
    tell: &mut dyn FnMut(EventKind),
) -> Result<Session, Lost> {
    tell(EventKind::Choice {
        what: "session".into(),
        chosen: match port {
            PortKind::Virtio => "agent on the virtio port".into(),
            PortKind::Serial => "agent on the second serial port".into(),
        },
        why: format!("it announced itself there first, from Linux {} on {}", announce.kernel, announce.machine),
    });
    session.set_liveness(Liveness { silent_after: limits.silence() });
    let mounts = share::mounts(spec);
    let clock_ns = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0);
    let setup = Setup { mounts: mounts.clone(), clock_ns };
    let faults = match tokio::time::timeout(limit, session.setup(setup)).await {
        Ok(answered) => answered.map_err(|e| of_session(e, Phase::Session))?,
        Err(_) => {
            let limit = crate::for_people(limit);
            return Err(Lost::timeout(Phase::Session, format!("the guest did not mount its shares within {limit}")));
        }
    };
    for line in session.take_log() {
        tell(EventKind::Warning { message: format!("the agent says: {line}") });
    }
    for (index, fault) in faults {
        let Some(mount) = usize::try_from(index).ok().and_then(|i| mounts.get(i)) else { continue };
        let said = share::explain(mount, &fault);
        if spec.required() {
            return Err(Lost::host(said));
        }
        tell(EventKind::Warning { message: said });
    }
    Ok(Session::Agent(Box::new(session)))
}

impl Guest {
    /// Runs one command to its end and gives what the guest vouches for.
    ///
    /// Dropping the future leaves the command running; see [`Guest::kill_command`].
    ///
    /// # Errors
    /// A [`Lost`] for everything that is not the command's own end.
    pub async fn exec(&mut self, command: GuestCommand, io: Io<'_>, observe: Observe<'_>) -> Result<Exit, Lost> {
        observe(EventKind::CommandStarted { pid: None });
        let waits = matches!(self.session, Session::Console(_)) && command.terminal.is_none();
        let read = Arc::new(AtomicBool::new(!waits || io.stdin.is_none()));
        let Io { stdin, sink, control } = io;
        let mut stdin = stdin.map(|inner| TellsItsEnd { inner, ended: read.clone() });
        let mut io = Io { stdin: stdin.as_mut().map(|s| s as _), sink, control };
        let ended = {
            let running = run_in(&mut self.session, command, &mut io);
            tokio::pin!(running);
            let early = tokio::select! {
                biased;
                ended = &mut running => Some(ended),
                lost = self.watch.trouble(Phase::Command, observe) => Some(Err(lost)),
                () = tokio::time::sleep(STDIN_SOON) => None,
            };
            match early {
                Some(ended) => ended,
                None => {
                    if !read.load(Ordering::Relaxed) {
                        observe(EventKind::Warning {
                            message: "the command starts when standard input has come to its end (Ctrl-D at a terminal), for this guest \
                                      has no agent; --no-stdin gives it an empty one"
                                .into(),
                        });
                    }
                    tokio::select! {
                        biased;
                        ended = running => ended,
                        lost = self.watch.trouble(Phase::Command, observe) => Err(lost),
                    }
                }
            }
        };
        if let Session::Console(session) = &mut self.session {
            for message in session.take_notes() {
                observe(EventKind::Warning { message });
            }
        }
        match ended {
            Ok(exit) => Ok(exit),
            Err(lost) => Err(self.explain(lost, Phase::Command).await),
        }
    }

    /// Kills what [`Guest::exec`] left running, as well as it can within a few seconds.
    pub async fn kill_command(&mut self, observe: Observe<'_>) {
        let limit = self.limits.farewell();
        let killed = match &mut self.session {
            Session::Agent(session) => {
                tokio::time::timeout(limit, session.kill_running()).await.is_ok_and(|r| r.is_ok())
            }
            Session::Console(session) => {
                tokio::time::timeout(limit, session.kill_running()).await.is_ok_and(|r| r.is_ok())
            }
        };
        if !killed {
            observe(EventKind::Warning { message: "the command could not be killed; it dies with its guest".into() });
        }
    }

    /// Brings what was written to the shares to the host, and ends the guest.
    ///
    /// # Errors
    /// Where the command's result can no longer be believed: what it wrote did not reach the host, or the guest's kernel
    /// turned out to have failed.
    pub async fn close(mut self, how: Ending, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = if how == Ending::Hurry { self.limits.farewell() } else { self.limits.sync() };
        let synced = self.sync(limit, observe).await;
        let doubt = self.watch.doubt(Phase::Command);
        if how == Ending::PowerOff && synced.is_ok() && doubt.is_none() {
            self.power_off(observe).await;
        }
        self.qemu.kill().await;
        // What was not recorded cannot be vouched for.
        let unlogged = match self.console.view().log_fault() {
            Some(fault @ LogFault::Write(_)) => Some(Lost::host(format!("{fault}; free some space"))),
            Some(LogFault::Limit(_)) | None => None,
        };
        match (synced, doubt, unlogged) {
            (_, Some(lost), _) => Err(lost.with_tail(self.console.tail(TAIL))),
            (Err(lost), None, _) | (Ok(()), None, Some(lost)) => Err(lost),
            (Ok(()), None, None) => Ok(()),
        }
    }

    /// Brings what was written to the shares to the host, for a guest in which more is to run.
    ///
    /// # Errors
    /// As [`Guest::close`]: then what ran cannot be believed, and nothing more should run here.
    pub async fn settle(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        self.sync(self.limits.sync(), observe).await?;
        match self.watch.doubt(Phase::Command) {
            Some(lost) => Err(lost.with_tail(self.console.tail(TAIL))),
            None => Ok(()),
        }
    }

    /// By which the guest's time is stopped while it runs a command.
    #[must_use]
    pub fn clock(&self) -> GuestClock {
        GuestClock { qmp: self.qemu.qmp().clone(), stops: self.watch.stops().clone() }
    }

    /// The last lines of the console.
    #[must_use]
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        self.console.tail(lines)
    }

    async fn sync(&mut self, limit: Duration, observe: Observe<'_>) -> Result<(), Lost> {
        let syncing = async {
            match &mut self.session {
                Session::Agent(session) => session.sync().await.map_err(|e| of_session(e, Phase::Close)),
                Session::Console(session) => session.sync().await,
            }
        };
        let failed = tokio::select! {
            biased;
            synced = tokio::time::timeout(limit, syncing) => synced.unwrap_or_else(|_| Err(Lost::timeout(
                Phase::Close,
                format!("the guest did not bring what it wrote to the shares to the host within {}", crate::for_people(limit)),
            )))?,
            lost = self.watch.trouble(Phase::Close, observe) => return Err(lost),
        };
        match failed {
            None => Ok(()),
            Some(what) => Err(Lost::host(format!(
                "what the guest wrote to the shares may not have reached the host: {what}; is the disk full?"
            ))),
        }
    }

    async fn power_off(&mut self, observe: Observe<'_>) {
        let limit = self.limits.power_off();
        let asked = async {
            match &mut self.session {
                Session::Agent(session) => drop(session.shutdown(ShutdownHow::PowerOff).await),
                Session::Console(session) => drop(session.power_off().await),
            }
            self.qemu.wait().await;
        };
        if tokio::time::timeout(limit, asked).await.is_err() {
            observe(EventKind::Warning {
                message: format!("the guest did not power off within {} and was killed", crate::for_people(limit)),
            });
        }
    }

    async fn explain(&mut self, lost: Lost, phase: Phase) -> Lost {
        let lost = self.watch.explain(lost, phase).await;
        self.watch.last_words(&lost).await;
        if lost.tail.is_empty() && matches!(lost.verdict, Verdict::Crash(_)) {
            let tail = self.console.tail(TAIL);
            return lost.with_tail(tail);
        }
        lost
    }
}

/// Standard input that tells whether it has come to its end.
struct TellsItsEnd<'a> {
    inner: &'a mut (dyn AsyncRead + Unpin + Send),
    ended: Arc<AtomicBool>,
}

impl AsyncRead for TellsItsEnd<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut *self.inner).poll_read(cx, into);
        if polled.is_ready() && into.filled().len() == before {
            self.ended.store(true, Ordering::Relaxed);
        }
        polled
    }
}

async fn run_in(session: &mut Session, command: GuestCommand, io: &mut Io<'_>) -> Result<Exit, Lost> {
    match session {
        Session::Agent(session) => {
            let stdio = match (&command.terminal, io.stdin.is_some()) {
                (Some(terminal), _) => Stdio::Pty { size: terminal.size, term: terminal.term.clone() },
                (None, true) => Stdio::Pipes,
                (None, false) => Stdio::PipesNoStdin,
            };
            let mut nonce = [0; 16];
            getrandom::fill(&mut nonce).map_err(|e| Lost::host(format!("no random numbers from the system: {e}")))?;
            let exec = Exec {
                // The session gives the number.
                id: 0,
                nonce: Nonce(nonce),
                argv: command.argv,
                env: command.env,
                clear_env: false,
                cwd: command.cwd,
                user: command.user,
                stdio,
            };
            let io = ExecIo {
                stdin: io.stdin.as_deref_mut().map(|s| s as _),
                sink: &mut *io.sink,
                control: io.control.as_mut(),
            };
            let status = session.exec(exec, io).await.map_err(|e| of_session(e, Phase::Command))?;
            Ok(match status {
                Status::Code(code) => Exit::Code(code),
                Status::Signal { signal, core } => Exit::Signal { number: signal, core },
            })
        }
        Session::Console(session) => session.exec(command, io).await,
    }
}

/// What a failure of the session says about the guest.
fn of_session(error: SessionError, phase: Phase) -> Lost {
    match error {
        SessionError::ExecFailed { errno, .. } => Lost::not_started(errno, error.to_string()),
        SessionError::Sink(source) if source.kind() == io::ErrorKind::BrokenPipe => {
            Lost { verdict: Verdict::Error(belljar_model::Fault::OutputClosed), message: None, tail: Vec::new() }
        }
        SessionError::Sink(_) | SessionError::Stdin(_) | SessionError::Random(_) | SessionError::Version { .. } => {
            Lost::host(error.to_string())
        }
        SessionError::Closed { .. }
        | SessionError::Port { .. }
        | SessionError::Garbage(_)
        | SessionError::Message(_)
        | SessionError::WrongSession
        | SessionError::Restarted
        | SessionError::WrongNonce { .. }
        | SessionError::UnknownExec { .. }
        | SessionError::Protocol { .. }
        | SessionError::Silent { .. }
        | SessionError::AgentFatal { .. } => Lost::crash(CrashKind::Silent, error.to_string(), phase),
    }
}

fn of_access(error: AccessError) -> Lost {
    enter::lost_of_access(error)
}

/// How long a guest is watched for the reason of its end, after the end.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(300);
