//! A container in which commands run, until its end.

use std::{rc::Rc, sync::Arc, time::Duration};

use belljar_guest_spec::{Guard, Guards, Word};
use belljar_model::{CrashKind, EventKind, Exit, Phase};
use belljar_proto::{
    files::FileQuery,
    message::{KernelNews, ShutdownHow},
};

use super::{
    call::{Call, CallEnd},
    engine::Engine,
    gauged::Gauged,
    systemd::{self, Standing},
};
use crate::{
    Lost,
    beside::{self, Standstill},
    command::GuestCommand,
    for_people,
    guest::{Answer, Ending, Guest, GuestClock, Io, Observe, Origin, Pending},
    limits::Limits,
    session::{
        self, Session,
        agent::{AgentSession, OutputSink, Reports, SessionError},
        console::AskSource,
    },
    watch::{
        self, Marks,
        guards::{self, Guarding},
    },
};

/// How long the engine may take to say how a container ended that is known to have ended.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a container may take to end when it was asked to.
const ENDING: Duration = Duration::from_secs(8);
/// How long the engine may take to end it instead.
const REMOVING: Duration = Duration::from_secs(20);
/// How long it may take until a container is told to stand still.
const TELLING: Duration = Duration::from_secs(2);
/// How often is looked whether somebody has stopped the agent, and in how many looks one after the other it is found so that is.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 3;

/// What it means that somebody has stopped the agent.
const STOPPED: &str = "the agent was stopped in the container (by SIGSTOP or a debugger), and does not go on";

/// What a container's guest is made of.
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) name: String,
    /// The call that started it, which ends when the container has ended and is removed.
    pub(crate) call: Call,
    pub(crate) session: AgentSession,
    pub(crate) limits: Limits,
    pub(crate) gauged: Gauged,
    /// Its first process is systemd, which ends after the agent.
    pub(crate) systemd: bool,
    /// The agent's number on the host, where the kernel tells.
    pub(crate) agent: Option<u32>,
    /// Whom commands run as that do not say.
    pub(crate) user: Option<String>,
    /// The directory of commands that do not say.
    pub(crate) cwd: Option<String>,
}

/// A container with a session. Dropping it closes the agent's socket, by which the container ends.
pub(crate) struct ContainerGuest {
    parts: Parts,
    reports: Arc<Reports>,
    marks: Marks,
    guarding: Guarding,
    /// That most guards do not apply is told once.
    told_of_guards: bool,
    /// Nobody answers any more in a container that has not ended.
    forsaken: bool,
    /// Why nothing more should run in it, as far as systemd knows.
    odd: Option<String>,
}

impl std::fmt::Debug for ContainerGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerGuest").field("name", &self.parts.name).finish_non_exhaustive()
    }
}

/// All that runs in the container but the agent, stopped and let go on by the agent.
#[derive(Debug)]
struct ContainerClock(Arc<Reports>);

impl ContainerClock {
    fn tell(&self, still: bool) -> Pending<'_, ()> {
        Box::pin(async move { drop(tokio::time::timeout(TELLING, self.0.stand_still(still)).await) })
    }
}

impl GuestClock for ContainerClock {
    fn stop(&self) -> Pending<'_, ()> {
        self.tell(true)
    }

    fn go_on(&self) -> Pending<'_, ()> {
        self.tell(false)
    }
}

impl ContainerGuest {
    pub(crate) fn new(parts: Parts) -> Self {
        let reports = parts.session.reports();
        Self {
            parts,
            reports,
            marks: Marks::default(),
            guarding: Guarding::default(),
            told_of_guards: false,
            forsaken: false,
            odd: None,
        }
    }

    /// Asks the session within a limit, does meanwhile what programs in the container ask for, and gives the best reason there is for a loss. The
    /// limit comes with what has not happened when it is over.
    async fn ask<T>(
        &mut self,
        phase: Phase,
        limit: Option<(Duration, &str)>,
        asking: impl AsyncFnOnce(&mut AgentSession) -> Result<T, Lost>,
        observe: Observe<'_>,
    ) -> Result<T, Lost> {
        let Self { parts, reports, marks, .. } = self;
        let mut changes = reports.changes();
        let source = AskSource::Agent(reports.clone());
        let agent = parts.agent;
        let answered = {
            let asking = asking(&mut parts.session);
            let mut limited = std::pin::pin!(async {
                let Some((limit, what)) = limit else { return asking.await };
                let late = || Lost::timeout(phase, format!("{what} within {}", for_people(limit)));
                tokio::time::timeout(limit, asking).await.unwrap_or_else(|_| Err(late()))
            });
            let mut stopped = std::pin::pin!(stopped(agent));
            loop {
                tokio::select! {
                    biased;
                    answered = &mut limited => break answered.map_err(|lost| (lost, false)),
                    Ok(()) = changes.changed() => marks.answer(&source, None, observe),
                    () = &mut stopped => {
                        break Err((Lost::crash(CrashKind::Silent, STOPPED, phase), true));
                    }
                }
            }
        };
        // They came before the answer, which may have been looked at first.
        marks.answer(&source, None, observe);
        if let Some(lost) = marks.lost_orders() {
            return Err(lost);
        }
        match answered {
            Ok(answer) => Ok(answer),
            Err((lost, true)) => {
                self.forsaken = true;
                Err(lost)
            }
            Err((lost, false)) => Err(self.explain(lost, phase).await),
        }
    }

    /// Why a container was lost, where the engine, or whoever measures what it writes, knows.
    async fn explain(&mut self, lost: Lost, phase: Phase) -> Lost {
        if lost.cause.crash_kind() != Some(CrashKind::Silent) {
            return lost;
        }
        let ended = tokio::time::timeout(LAST_WORDS, self.parts.call.ended()).await;
        if let Some(exceeded) = self.parts.gauged.exceeded() {
            return watch::of_exceeded(&exceeded);
        }
        match ended {
            Ok(Some(end)) => {
                let (kind, said) = how_it_ended(&end, self.parts.systemd);
                Lost::crash(kind, said, phase)
            }
            _ => {
                self.forsaken = true;
                match tokio::time::timeout(TELLING, self.parts.session.ping()).await {
                    Ok(Err(SessionError::Closed { .. })) => {
                        let seen = "the agent's socket was closed in the container: the agent was killed, or died";
                        Lost::crash(CrashKind::Silent, seen, phase)
                    }
                    _ => lost,
                }
            }
        }
    }

    /// Sees how systemd stands when a command has ended, where it is the first process: whether the command has the system end, as which a machine would
    /// end, and whether something else should run here.
    async fn look_at_system(&mut self, observe: Observe<'_>) -> Result<(), Lost> {
        if !self.parts.systemd || self.odd.is_some() {
            return Ok(());
        }
        let asking = async |session: &mut AgentSession| systemd::standing(session).await;
        match self.ask(Phase::Command, None, asking, observe).await? {
            Standing::Up => Ok(()),
            Standing::Ending(kind, said) => Err(Lost::crash(kind, said, Phase::Command)),
            Standing::Odd(what) => {
                self.odd = Some(what);
                Ok(())
            }
        }
    }

    /// A command begins. The kernel is the host's, whose messages and processes are nobody's business here.
    fn begin_guards(&mut self, guards: Option<&Guards>, observe: Observe<'_>) {
        self.guarding.begin(guards);
        let Some(guards) = guards.filter(|_| !self.told_of_guards) else { return };
        self.told_of_guards = true;
        let blind: Vec<_> = Guard::ALL
            .iter()
            .filter(|(_, guard)| guards.wants(*guard) && (guard.is_of_kernel() || !self.parts.systemd))
            .map(|(word, _)| *word)
            .collect();
        if !blind.is_empty() {
            let why = "a container has no kernel of its own, and no systemd unless it is asked for";
            observe(guards::blind(&blind.join(", "), why));
        }
    }

    /// Takes what the agent says of a command that has ended.
    fn end_guards(&mut self, exit: Option<Exit>, observe: Observe<'_>) {
        while let Some(news) = self.reports.next_news() {
            if let KernelNews::Guard(news) = news {
                self.guarding.take(news, observe);
            }
        }
        self.guarding.end(exit, true, observe);
    }

    fn readying(&self) -> (Duration, &'static str) {
        (self.parts.limits.sync(), "the container was not made ready for the next test")
    }

    /// Sees that what was written is where it is to be, as files of the user.
    async fn sync(&mut self, limit: Duration, observe: Observe<'_>) -> Result<(), Lost> {
        let what = "the container did not hand over what it wrote to the shares";
        let report = self.ask(Phase::Close, Some((limit, what)), async |session| Session::sync(session).await, observe);
        let report = report.await?;
        session::of_sync(report.fault, observe)
    }

    /// The container's name.
    pub(crate) fn name(&self) -> &str {
        &self.parts.name
    }

    /// What a set-up left that no image holds, if it left such: it is ended. What ran when [`Guest::keep_processes`] was asked for is not of it, nor are units
    /// that systemd starts in each container.
    pub(crate) async fn leftovers(&mut self, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        let limit = Some(self.readying());
        let asking = async |session: &mut AgentSession| Session::renew(session).await;
        let found = self.ask(Phase::Session, limit, asking, &mut *observe).await?;
        // Without a session nobody says which of them come back.
        let is_known = found.left.is_empty() && usize::try_from(found.stopped_count) == Ok(found.stopped.len());
        let mut units: Vec<_> = found.stopped.iter().filter(|unit| !unit.contains(' ')).cloned().collect();
        if is_known && !units.is_empty() {
            let asking = async |session: &mut AgentSession| systemd::not_started_anew(session, &units).await;
            units = self.ask(Phase::Session, limit, asking, observe).await?;
        }
        let units = units.iter().map(|unit| {
            format!("the unit {unit}, which is not enabled (`systemctl enable {unit}` has it run in each container)")
        });
        let left: Vec<_> = units.chain(found.killed).chain(found.left).collect();
        Ok((!left.is_empty()).then(|| format!("it leaves behind {}", left.join(", "))))
    }

    /// Ends the container, and returns when nothing runs in it any more.
    async fn end(&mut self, observe: Observe<'_>) {
        let ended = async {
            if self.forsaken {
                return false;
            }
            if self.parts.systemd {
                drop(self.parts.session.shutdown(ShutdownHow::Immediate).await);
                return self.parts.call.ended().await.is_some();
            }
            if self.parts.session.shutdown(ShutdownHow::Immediate).await.is_err() {
                return self.parts.call.ended().await.is_some();
            }
            // The agent closes its socket when all else has ended.
            loop {
                match self.parts.session.ping().await {
                    Ok(()) => {}
                    Err(SessionError::Closed { .. }) => return true,
                    Err(_) => return self.parts.call.ended().await.is_some(),
                }
            }
        };
        if tokio::time::timeout(ENDING, ended).await.unwrap_or(false) {
            return;
        }
        if let Err(error) = self.parts.engine.remove(&self.parts.name, REMOVING).await {
            observe(EventKind::Warning {
                message: format!(
                    "the container {} did not end, and {} cannot remove it: {}; remove it by hand",
                    self.parts.name,
                    self.parts.engine.name(),
                    error.what()
                ),
            });
        }
    }

    async fn close(mut self, how: Ending, observe: Observe<'_>) -> Result<(), Lost> {
        let limits = self.parts.limits;
        let limit = if how == Ending::Hurry { limits.farewell() } else { limits.sync() };
        // Of a result that is bad as it is nothing more is to be found out.
        let looked = if how == Ending::Hurry { Ok(()) } else { self.look_at_system(observe).await };
        let synced = if self.forsaken { Ok(()) } else { self.sync(limit, observe).await };
        let synced = looked.and(synced);
        self.end(observe).await;
        let Parts { gauged, .. } = self.parts;
        match gauged.finish().await {
            // That is why it ended, whatever the session noticed of it.
            Some(exceeded) => Err(watch::of_exceeded(&exceeded)),
            None => synced,
        }
    }
}

/// Resolves when somebody has stopped the agent, and it does not go on by itself; never where nobody can see it.
async fn stopped(agent: Option<u32>) {
    let Some(agent) = agent else { return std::future::pending().await };
    let mut found = 0;
    while found < LOOKS {
        tokio::time::sleep(LOOK).await;
        found = if beside::standstill(agent) == Some(Standstill::Stopped) { found + 1 } else { 0 };
    }
}

/// How the first process of a container ended, by the engine's word.
fn how_it_ended(end: &CallEnd, systemd: bool) -> (CrashKind, String) {
    let (kind, how) = match (end.status.code(), systemd) {
        // It ends so whichever it was, where it may not call reboot(2); where it may, the kernel has it end by a signal that tells (reboot(2), "Behavior
        // inside PID namespaces").
        (Some(0), true) => (CrashKind::Container, "its systemd powered the system off, or restarted it".to_owned()),
        (Some(129), true) => {
            (CrashKind::Reboot, "the container's first process, systemd, restarted the system".to_owned())
        }
        (Some(130), true) => {
            (CrashKind::PowerOff, "the container's first process, systemd, powered the system off".to_owned())
        }
        (Some(137), _) => {
            let how = "its first process was killed (exit code 137): for lack of memory, or by somebody on the host";
            (CrashKind::Container, how.to_owned())
        }
        (Some(code), _) => (CrashKind::Container, format!("its first process ended with exit code {code}")),
        (None, _) => (CrashKind::Container, format!("the engine's program did: {}", end.status)),
    };
    let said = if end.stderr.is_empty() { how } else { format!("{how}; the engine says: {}", end.stderr) };
    (kind, said)
}

impl Guest for ContainerGuest {
    fn origin(&self) -> Origin {
        Origin::Container
    }

    fn exec<'a>(&'a mut self, command: GuestCommand, io: Io<'a>, observe: Observe<'a>) -> Answer<'a, Exit> {
        Box::pin(async move {
            self.marks = Marks::default();
            self.begin_guards(command.guards.as_ref(), &mut *observe);
            let (user, cwd) = (&self.parts.user, &self.parts.cwd);
            let command = command.in_image(user.as_ref(), cwd.as_ref());
            let mut io = io;
            let asking = async |session: &mut AgentSession| Session::exec(session, command, &mut io).await;
            let ended = self.ask(Phase::Command, None, asking, &mut *observe).await;
            self.end_guards(ended.as_ref().ok().copied(), observe);
            ended
        })
    }

    fn kill_command<'a>(&'a mut self, observe: Observe<'a>) -> Pending<'a, ()> {
        Box::pin(async move {
            let limit = self.parts.limits.farewell();
            let killed = tokio::time::timeout(limit, self.parts.session.kill_running()).await;
            if !killed.is_ok_and(|killed| killed.is_ok()) && self.parts.call.end().is_none() {
                let message = "the command could not be killed; it dies with its container".into();
                observe(EventKind::Warning { message });
            }
        })
    }

    fn files<'a>(
        &'a mut self,
        query: FileQuery,
        sink: &'a mut dyn OutputSink,
        observe: Observe<'a>,
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let asking = async |session: &mut AgentSession| Session::files(session, query, sink).await;
            self.ask(Phase::Command, None, asking, observe).await
        })
    }

    fn warm_up<'a>(&'a mut self, _: Observe<'a>) -> Answer<'a, ()> {
        // The host's kernel has all that a first command needs.
        Box::pin(std::future::ready(Ok(())))
    }

    fn check<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            let limit = (self.parts.limits.silence(), "the container did not answer");
            self.ask(Phase::Session, Some(limit), async |session| Session::check(session).await, &mut *observe).await?;
            self.look_at_system(observe).await
        })
    }

    fn keep_processes<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            let limit = Some(self.readying());
            self.ask(Phase::Session, limit, async |session| Session::keep_processes(session).await, observe).await
        })
    }

    fn renew<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, Option<String>> {
        Box::pin(async move {
            if let Some(odd) = &self.odd {
                return Ok(Some(format!("an earlier test has left behind {odd}")));
            }
            let limit = Some(self.readying());
            let asking = async |session: &mut AgentSession| Session::renew(session).await;
            let found = self.ask(Phase::Session, limit, asking, &mut *observe).await?;
            Ok(session::of_leftovers(&found, observe))
        })
    }

    fn settle<'a>(&'a mut self, observe: Observe<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            self.look_at_system(observe).await?;
            if let Some(odd) = &self.odd {
                let message = format!("the command leaves behind {odd}; nothing more runs in this container");
                observe(EventKind::Warning { message });
            }
            self.sync(self.parts.limits.sync(), observe).await?;
            match self.parts.gauged.exceeded() {
                Some(exceeded) => Err(watch::of_exceeded(&exceeded)),
                None => Ok(()),
            }
        })
    }

    fn close(self: Box<Self>, how: Ending, observe: Observe<'_>) -> Answer<'_, ()> {
        Box::pin((*self).close(how, observe))
    }

    fn clock(&self) -> Rc<dyn GuestClock> {
        Rc::new(ContainerClock(Arc::clone(&self.reports)))
    }

    fn suspended(&self) -> Option<Duration> {
        None
    }

    fn silenced(&mut self) -> Option<Lost> {
        let is_stopped = self.parts.agent.and_then(beside::standstill) == Some(Standstill::Stopped);
        self.forsaken |= is_stopped;
        is_stopped.then(|| Lost::crash(CrashKind::Silent, STOPPED, Phase::Command))
    }

    fn last_lines(&self, _: usize) -> Vec<String> {
        // It has no console.
        Vec::new()
    }
}
