//! A running guest: a session in which commands run, until its end.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use belljar_model::{CrashKind, EventKind, Exit, Phase};
use belljar_proto::{
    files::FileQuery,
    message::{Exec, Leftovers, Nonce, ShutdownHow, Status, Stdio, SyncFault},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

use crate::{
    Cause, Lost,
    boot::{Entered, Machine},
    command::GuestCommand,
    console::{Console, ConsoleView, LogFault},
    limits::Limits,
    qemu::{
        process::Qemu,
        qmp::{self, Qmp},
    },
    session::{
        agent::{AgentSession, ExecControl, ExecIo, OutputSink, PortKind, Reports, SessionError, SinkFuture},
        console::ConsoleSession,
    },
    share,
    template::{Frozen, Template},
    watch::{self, WantedStops, Watch},
};

/// Takes what is worth an event.
pub type Observe<'a> = &'a mut dyn FnMut(EventKind);

/// Takes the console of each QEMU that is started, to be looked at.
pub type Views = mpsc::UnboundedSender<ConsoleView>;

/// Lines of the console that go with a loss.
pub(crate) const TAIL: usize = 15;

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
    template: Option<Template>,
}

/// Where a guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It booted.
    Cold,
    /// It is the copy of one that booted.
    Clone,
}

/// The conversation with a running guest.
#[derive(Debug)]
pub(crate) enum Session {
    /// With our agent.
    Agent(Box<AgentSession>),
    /// With a shell.
    Console(Box<ConsoleSession>),
}

impl Session {
    /// What the agent tells beside its session.
    pub(crate) fn reports(&self) -> Option<Arc<Reports>> {
        match self {
            Self::Agent(session) => Some(session.reports()),
            Self::Console(_) => None,
        }
    }
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

impl Guest {
    /// A guest in which commands can run.
    pub(crate) fn new(machine: Machine, session: Session) -> Self {
        let Machine { qemu, console, watch, limits } = machine;
        Self { qemu, console, session, watch, limits, template: None }
    }

    /// The same, being the copy of a template.
    pub(crate) fn with_template(mut self, template: Template) -> Self {
        self.template = Some(template);
        self
    }

    /// What it is made of, to be frozen. The shares are still mounted in it.
    pub(crate) fn into_machine(self, frozen: &Frozen) -> (Machine, Entered) {
        let Self { qemu, console, session, watch, limits, .. } = self;
        let entered = match session {
            Session::Agent(session) => {
                let port = if *frozen == Frozen::AgentOnSerial { PortKind::Serial } else { PortKind::Virtio };
                Entered::Agent { session, port }
            }
            Session::Console(session) => Entered::Shell(Box::new(session.into_shell())),
        };
        (Machine { qemu, console, watch, limits }, entered)
    }

    /// Whether it booted itself.
    #[must_use]
    pub fn origin(&self) -> Origin {
        if self.template.is_some() { Origin::Clone } else { Origin::Cold }
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.qemu.pid()
    }

    /// Bytes of memory that QEMU has in use now, those that it shares with other clones included; `None` when it has ended.
    #[must_use]
    pub fn rss(&self) -> Option<u64> {
        self.qemu.rss()
    }

    /// For a guest that waits for somebody to need it: has it do once what every command needs, so that the first one begins
    /// sooner. An emulated guest translates the code for that now.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn warm_up(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        let Session::Agent(session) = &mut self.session else { return Ok(()) };
        let argv = ["/bin/sh", "-c", ":"].map(|word| word.as_bytes().to_vec()).to_vec();
        let exec = Exec {
            id: 0,
            nonce: nonce()?,
            argv,
            env: Vec::new(),
            clear_env: false,
            cwd: None,
            user: None,
            stdio: Stdio::PipesNoStdin,
        };
        let mut sink = Nowhere;
        let running = async {
            match session.exec(exec, ExecIo { stdin: None, sink: &mut sink, control: None }).await {
                // A guest without a shell is as warm as it can be.
                Ok(_) | Err(SessionError::ExecFailed { .. }) => Ok(()),
                Err(error) => Err(of_session(error, Phase::Session)),
            }
        };
        let ended = tokio::select! {
            biased;
            ended = running => ended,
            lost = self.watch.trouble(Phase::Session, observe) => Err(lost),
        };
        match ended {
            Ok(()) => Ok(()),
            Err(lost) => Err(self.explain(lost, Phase::Session).await),
        }
    }

    /// For a guest that has waited: sees that it is still there, and sets its clock.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn check(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        let limit = self.limits.silence();
        let asking = async {
            match &mut self.session {
                Session::Agent(session) => {
                    session.set_clock(crate::boot::now_ns()).await.map_err(|e| of_session(e, Phase::Session))?;
                    session.ping().await.map_err(|e| of_session(e, Phase::Session))
                }
                Session::Console(session) => session.check().await,
            }
        };
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(limit, asking) => ended.unwrap_or_else(|_| {
                let limit = crate::for_people(limit);
                Err(Lost::timeout(Phase::Session, format!("the guest did not answer within {limit}")))
            }),
            lost = self.watch.trouble(Phase::Session, observe) => Err(lost),
        };
        match ended {
            Ok(()) => Ok(()),
            Err(lost) => Err(self.explain(lost, Phase::Session).await),
        }
    }

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
        self.watch.look_at_shares(observe);
        match ended {
            Ok(exit) => Ok(exit),
            Err(lost) => Err(self.explain(lost, Phase::Command).await),
        }
    }

    /// Asks the agent for files, whose answer goes to `sink`; gives `false` where there is no agent that could be asked.
    ///
    /// # Errors
    /// A [`Lost`] where there is no whole answer.
    pub async fn files(
        &mut self,
        query: FileQuery,
        sink: &mut dyn OutputSink,
        observe: Observe<'_>,
    ) -> Result<bool, Lost> {
        let Session::Agent(session) = &mut self.session else { return Ok(false) };
        let nonce = nonce()?;
        let ended = tokio::select! {
            biased;
            ended = session.files(query, nonce, sink) => ended.map_err(|e| of_session(e, Phase::Command)),
            lost = self.watch.trouble(Phase::Command, observe) => Err(lost),
        };
        match ended {
            Ok(Status::Code(0)) => Ok(true),
            Ok(status) => Err(Cause::Answer(format!(
                "the agent could not say which files the test left: its process ended with {status:?}"
            ))
            .into()),
            Err(lost) => Err(self.explain(lost, Phase::Command).await),
        }
    }

    /// Whether an agent runs in it, not only a shell.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        matches!(self.session, Session::Agent(_))
    }

    /// Kills what [`Guest::exec`] left running, as well as it can within a few seconds.
    pub async fn kill_command(&mut self, observe: Observe<'_>) {
        if self.qemu.exit_watch().has_ended() {
            return;
        }
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
        let synced = match self.sync(limit, observe).await {
            Err(lost) if how != Ending::Hurry => Err(self.explain(lost, Phase::Close).await),
            synced => synced,
        };
        self.watch.look_at_shares(observe);
        let doubt = match (how, &synced) {
            (Ending::Kill | Ending::PowerOff, Ok(())) => self.watch.doubt(Phase::Command, observe).await,
            _ => self.watch.fault_now(Phase::Command),
        };
        if how == Ending::PowerOff && synced.is_ok() && doubt.is_none() {
            self.power_off(observe).await;
        }
        let end = self.qemu.kill().await;
        let exceeded = end.and_then(|end| end.exceeded).map(|e| watch::of_exceeded(&e));
        // What was not recorded cannot be vouched for.
        let unlogged = match self.console.view().log_fault() {
            Some(fault @ LogFault::Write(_)) => Some(Cause::ConsoleLog(fault).into()),
            Some(LogFault::Limit(_)) | None => None,
        };
        // Nor can what ran on memory that somebody else wrote to.
        let spoilt = self.template.as_ref().is_some_and(|t| !t.is_unchanged()).then(|| Cause::TemplateChanged.into());
        match (doubt, exceeded, synced, unlogged.or(spoilt)) {
            (Some(lost), ..) => Err(lost.with_tail(self.console.tail(TAIL))),
            // That is why QEMU was killed, whatever the session noticed of it.
            (None, Some(lost), ..) | (None, None, Err(lost), _) | (None, None, Ok(()), Some(lost)) => Err(lost),
            (None, None, Ok(()), None) => Ok(()),
        }
    }

    /// Brings what was written to the shares to the host, for a guest in which more is to run.
    ///
    /// # Errors
    /// As [`Guest::close`]: then what ran cannot be believed, and nothing more should run here.
    pub async fn settle(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        if let Err(lost) = self.sync(self.limits.sync(), observe).await {
            return Err(self.explain(lost, Phase::Close).await);
        }
        if let Some(exceeded) = self.qemu.exceeded() {
            return Err(watch::of_exceeded(&exceeded));
        }
        match self.watch.doubt(Phase::Command, observe).await {
            Some(lost) => Err(lost.with_tail(self.console.tail(TAIL))),
            None => Ok(()),
        }
    }

    /// For how long the guest has been suspended by itself, if it is.
    #[must_use]
    pub fn suspended(&self) -> Option<Duration> {
        self.watch.suspended()
    }

    /// What runs in the guest now, such as daemons of set-up scripts, is part of it and lives on over [`renew`](Self::renew).
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn keep_processes(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        self.renewing(false, observe).await.map(drop)
    }

    /// Makes the guest ready for a test that has nothing to do with those before: what they left running is ended, and the
    /// session gets keys of its own that they cannot have seen. Gives why the guest is of no more use, if it is.
    ///
    /// # Errors
    /// When the guest is lost.
    pub async fn renew(&mut self, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        let found = self.renewing(true, observe).await?;
        if found.killed_count > 0 {
            let more = found.killed_count.saturating_sub(u32::try_from(found.killed.len()).unwrap_or(u32::MAX));
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message =
                format!("an earlier test left something running, which was killed: {}{more}", found.killed.join(", "));
            observe(EventKind::Warning { message });
        }
        Ok((!found.left.is_empty()).then(|| format!("an earlier test has left behind: {}", found.left.join(", "))))
    }

    async fn renewing(&mut self, fresh: bool, observe: Observe<'_>) -> Result<Leftovers, Lost> {
        // What a shell on the console leaves running it cannot tell from what was there.
        let Session::Agent(session) = &mut self.session else { return Ok(Leftovers::default()) };
        let limit = self.limits.sync();
        let asking = async {
            if fresh { session.renew().await } else { session.keep_processes().await.map(|()| Leftovers::default()) }
        };
        let ended = tokio::select! {
            biased;
            ended = tokio::time::timeout(limit, asking) => ended.map_or_else(
                |_| {
                    let limit = crate::for_people(limit);
                    Err(Lost::timeout(Phase::Session, format!("the guest was not made ready for the next test within {limit}")))
                },
                |ended| ended.map_err(|e| of_session(e, Phase::Session)),
            ),
            lost = self.watch.trouble(Phase::Session, observe) => Err(lost),
        };
        match ended {
            Ok(found) => Ok(found),
            Err(lost) => Err(self.explain(lost, Phase::Session).await),
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
                Session::Console(session) => session.sync().await.map(|failed| failed.map(SyncFault::Failed)),
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
            Some(SyncFault::Failed(what)) => Err(Cause::Unsynced(what).into()),
            Some(SyncFault::Suspended) => {
                let message = "the guest was suspended, and its shares did not survive that: what was written to them before is here, and nothing \
                               that came after";
                observe(EventKind::Warning { message: message.into() });
                Ok(())
            }
            Some(SyncFault::Gone(places)) => Err(Lost::from(Cause::Unmounted(places)).lasting()),
            // What is in the output directory is a result; a workspace may well be where somebody mounts an image.
            Some(SyncFault::Covered(places))
                if places.iter().any(|place| Path::new(place).starts_with(share::OUT_PATH)) =>
            {
                Err(Lost::from(Cause::OutCovered(places)).lasting())
            }
            Some(SyncFault::Covered(places)) => {
                let message = format!(
                    "the command has left something mounted in the workspace: what it wrote there stays in the guest, and is gone with it: {}",
                    places.join(", ")
                );
                observe(EventKind::Warning { message });
                Ok(())
            }
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
        if lost.tail.is_empty() && lost.cause.crash_kind().is_some() {
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

fn nonce() -> Result<Nonce, Lost> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|e| Cause::NoRandom(e.to_string()))?;
    Ok(Nonce(nonce))
}

/// Takes what nobody wants to read.
struct Nowhere;

impl OutputSink for Nowhere {
    fn stdout<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(std::future::ready(Ok(())))
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
            let exec = Exec {
                // The session gives the number.
                id: 0,
                nonce: nonce()?,
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
pub(crate) fn of_session(error: SessionError, phase: Phase) -> Lost {
    match error {
        SessionError::ExecFailed { errno, .. } => Cause::NotStarted { errno, why: error.to_string() }.into(),
        SessionError::Sink(source) if source.kind() == io::ErrorKind::BrokenPipe => Cause::OutputClosed.into(),
        SessionError::Sink(_) | SessionError::Stdin(_) | SessionError::Random(_) | SessionError::Version { .. } => {
            Cause::Session(error.to_string()).into()
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

/// How long a guest is watched for the reason of its end, after the end.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(300);
