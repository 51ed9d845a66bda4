//! The session with our agent in the guest, over a port of its own.
//!
//! The agent announces itself once a second until it is greeted; [`AgentSession::connect`] listens on every port it may
//! use. From then on every frame carries the session's tag, and every result its attempt's nonce; whatever does not is an
//! error of its own and never a result.

mod connect;
mod error;
mod exec;
mod guest;
mod io;
mod link;
mod renew;
mod reports;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use belljar_proto::message::{
    Announce, BootSign, ExecId, Quiesce, Returned, Setup, SetupReport, ShutdownHow, SyncFault, SyncReport, ToAgent,
    ToHost, WantedDevice,
};

/// Most lines that are told of what a guest could not pack.
const MAX_LEFT_OUT: usize = 16;

pub use belljar_proto::files::{FileQuery, FileRecord, FileRecords, Found, FoundKind, Part, Stamp};
pub use belljar_proto::message::{LATE_BYTES, LATE_MOST, LATE_QUIET, OutputEnd};
pub use connect::{BoxedPort, Port, PortKind};
pub use error::SessionError;
pub(crate) use guest::of_session;
pub use io::{ExecControl, ExecIo, OutputSink, SinkFuture};
#[cfg(test)]
pub(crate) use reports::LostAsks;
pub(crate) use reports::{Asks, Reports};

use link::Link;

/// Most lines that are kept for [`AgentSession::take_log`]; later ones are counted only.
const MAX_LOG: usize = 256;

/// How long the agent may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Nothing heard for this long ends the session with [`SessionError::Silent`]. The agent is asked for a sign of life
    /// several times within it, and the time in which Belljar itself did not run does not count.
    pub silent_after: Duration,
}

impl Default for Liveness {
    /// A minute: an emulated guest under load answers within seconds.
    fn default() -> Self {
        Self { silent_after: Duration::from_secs(60) }
    }
}

/// A session with the agent of one guest.
///
/// Dropping it closes the port; the agent then waits for a new host. A future of one of its methods that is dropped
/// halfway leaves the session usable: a command that was running is killed when the next one starts.
#[derive(Debug)]
pub struct AgentSession {
    link: Link,
    liveness: Liveness,
    next_exec: ExecId,
    /// The command that was started and has not been seen to end.
    running: Option<ExecId>,
    /// Commands given up on, whose late frames are no surprise.
    abandoned: Vec<ExecId>,
    pings: u64,
    log: Vec<String>,
    log_lost: usize,
}

impl AgentSession {
    /// Listens on all given ports, takes the first on which an agent of our version announces itself, greets it and waits
    /// until it is ready. The other ports are closed.
    ///
    /// Waits as long as it takes: bound it with a timeout. Dropping the future closes the ports.
    ///
    /// # Errors
    /// [`SessionError::Closed`] when all ports are closed; [`SessionError::Version`] for a stale agent.
    pub async fn connect(ports: Vec<(PortKind, BoxedPort)>) -> Result<(Self, Announce, PortKind), SessionError> {
        let (link, announce, kind) = connect::connect(ports).await?;
        Ok((Self::over(link), announce, kind))
    }

    /// Takes over the agent of a guest that was frozen during a session and goes on with another host: it does not announce
    /// itself, as it noticed nothing. What ran in it is killed.
    ///
    /// Waits as long as it takes, like [`connect`](Self::connect).
    ///
    /// # Errors
    /// [`SessionError::Closed`] when the port is closed; [`SessionError::AgentFatal`] for a stale agent.
    pub async fn resume(kind: PortKind, port: BoxedPort) -> Result<Self, SessionError> {
        connect::resume(kind, port).await.map(Self::over)
    }

    fn over(link: Link) -> Self {
        Self {
            link,
            liveness: Liveness::default(),
            next_exec: 1,
            running: None,
            abandoned: Vec::new(),
            pings: 0,
            log: Vec::new(),
            log_lost: 0,
        }
    }

    /// Sets how long the agent may be silent from now on.
    pub fn set_liveness(&mut self, liveness: Liveness) {
        self.liveness = liveness;
    }

    /// Mounts shares and sets the clock; gives the mounts that failed, and what carries the others.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn setup(&mut self, setup: Setup) -> Result<SetupReport, SessionError> {
        let count = setup.mounts.len();
        let sources = setup.mounts.first().map_or(1, |mount| mount.sources.len());
        self.send(&ToAgent::Setup(setup)).await?;
        let SetupReport { faults, source, lacking, places } = self
            .wait("the answer to setup", |message| match message {
                ToHost::SetupDone(report) => Ok(report),
                other => Err(other),
            })
            .await?;
        if let Some((index, _)) = faults.iter().find(|(index, _)| *index as usize >= count) {
            return Err(SessionError::Protocol { what: format!("a fault of mount {index} of {count}") });
        }
        if source as usize >= sources {
            return Err(SessionError::Protocol { what: format!("shares by kind {source} of {sources}") });
        }
        let faults = faults.into_iter().map(|(i, fault)| (i, error::clean_fault(fault))).collect();
        let lacking = lacking.iter().take(source as usize).map(|why| error::clean(why)).collect();
        let places = places.iter().take(count).map(|place| error::clean(place)).collect();
        Ok(SetupReport { faults, source, lacking, places })
    }

    /// Makes the guest ready to be frozen; gives where something of the host's is still mounted, which is to be nowhere.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn quiesce(&mut self, quiesce: Quiesce) -> Result<Vec<String>, SessionError> {
        self.send(&ToAgent::Quiesce(quiesce)).await?;
        let left = self
            .wait("the answer to quiesce", |message| match message {
                ToHost::Quiesced(left) => Ok(left),
                other => Err(other),
            })
            .await?;
        Ok(left.iter().map(|path| error::clean(path)).collect())
    }

    /// Waits until a device is as it is wanted, within the limit that goes with it; gives whether it came to that.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn await_device(&mut self, wanted: WantedDevice) -> Result<bool, SessionError> {
        self.send(&ToAgent::AwaitDevice(wanted)).await?;
        self.wait("the answer about a device", |message| match message {
            ToHost::DeviceAwaited(seen) => Ok(seen),
            other => Err(other),
        })
        .await
    }

    /// Waits until the guest has booted, or gave up, or did neither within the limit; gives what showed it.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn await_boot(&mut self, limit: Duration) -> Result<BootSign, SessionError> {
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.send(&ToAgent::AwaitBoot { limit_ms }).await?;
        let sign = self.wait("the end of the boot", |message| match message {
            ToHost::Booted(sign) => Ok(sign),
            other => Err(other),
        });
        Ok(match sign.await? {
            BootSign::Login(program) => BootSign::Login(error::clean(&program)),
            BootSign::Emergency(program) => BootSign::Emergency(error::clean(&program)),
            other => other,
        })
    }

    /// Sets the guest's clock, if it is off by much. That it was done is known when the next answer comes.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn set_clock(&mut self, now_ns: u64) -> Result<(), SessionError> {
        self.send(&ToAgent::Clock(now_ns)).await
    }

    /// Asks the agent for a sign of life and waits for it.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn ping(&mut self) -> Result<(), SessionError> {
        // Far from the numbers of the pings that only keep the session alive.
        self.pings += 1;
        let number = u64::MAX - self.pings;
        self.send(&ToAgent::Ping(number)).await?;
        self.wait("the answer to a ping", |message| match message {
            ToHost::Pong(got) if got == number => Ok(()),
            other => Err(other),
        })
        .await
    }

    /// Makes directories for the guest's users, where it has only copies of the host's. What could not be made is in the agent's log.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn make_directories(&mut self, paths: Vec<String>) -> Result<(), SessionError> {
        self.send(&ToAgent::MakeDirectories(paths)).await
    }

    /// Has everything that was written to the shares brought to the host, or packed for it. Gives what could not be, if anything.
    ///
    /// # Errors
    /// Those of a broken session.
    pub async fn sync(&mut self) -> Result<SyncReport, SessionError> {
        self.send(&ToAgent::Sync).await?;
        let report = self
            .wait("the answer to sync", |message| match message {
                ToHost::Synced(report) => Ok(report),
                other => Err(other),
            })
            .await?;
        Ok(clean_sync(report))
    }

    /// What comes over the port beside the conversation.
    pub(crate) fn reports(&self) -> Arc<Reports> {
        Arc::clone(self.link.reports())
    }

    /// Asks the guest to end and waits until the agent says that it will, or why it will not. That it did is seen outside, from QEMU.
    ///
    /// # Errors
    /// Those of a broken session. A port that closes instead of an answer is success: the guest was quick.
    pub async fn shutdown(&mut self, how: ShutdownHow) -> Result<Result<(), String>, SessionError> {
        self.send(&ToAgent::Shutdown(how)).await?;
        let ended = self
            .wait("the answer to shutdown", |message| match message {
                ToHost::Ending => Ok(Ok(())),
                ToHost::NotEnding(why) => Ok(Err(error::clean(&why))),
                other => Err(other),
            })
            .await;
        match ended {
            Err(SessionError::Closed { .. }) => Ok(Ok(())),
            other => other,
        }
    }

    /// Ends the session, and lets go of the port: nothing more is read from it, so that somebody else may.
    pub(crate) async fn leave(&mut self) {
        self.link.end().await;
    }

    /// Lines that the agent wanted in the event log since the last call, free of control characters.
    pub fn take_log(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.log);
        if self.log_lost > 0 {
            lines.push(format!("{} more lines were not kept", self.log_lost));
            self.log_lost = 0;
        }
        lines
    }

    async fn send(&mut self, message: &ToAgent) -> Result<(), SessionError> {
        let frames = self.link.encode(message)?;
        let liveness = self.liveness;
        // A guest that takes nothing in must not hold us for ever.
        match within(liveness.silent_after, self.link.send(frames)).await {
            Some(sent) => sent,
            None => Err(SessionError::Silent { since: liveness.silent_after, awaited: "room to send".into() }),
        }
    }

    /// Waits for one answer; messages that it does not take and that are not of the session's own housekeeping are errors.
    async fn wait<T>(
        &mut self,
        awaited: &str,
        mut take: impl FnMut(ToHost) -> Result<T, ToHost>,
    ) -> Result<T, SessionError> {
        let mut pulse = link::Pulse::new(self.liveness.silent_after);
        loop {
            let frame = tokio::select! {
                frame = self.link.recv() => frame?,
                () = pulse.tick() => {
                    pulse.check(awaited, self.link.reports())?;
                    self.link.ping();
                    continue;
                }
            };
            pulse.heard();
            let Some(message) = self.link.message(&frame)? else {
                if self.is_stale(frame.exec) || frame.kind == belljar_proto::frame::Kind::Part {
                    continue;
                }
                return Err(SessionError::UnknownExec { id: frame.exec, what: format!("{:?} bytes", frame.kind) });
            };
            match take(message) {
                Ok(answer) => return Ok(answer),
                Err(other) => self.housekeeping(other)?,
            }
        }
    }

    /// Whether frames of this command may still come although nobody waits for them.
    fn is_stale(&self, id: ExecId) -> bool {
        self.running == Some(id) || self.abandoned.contains(&id)
    }

    /// Takes the messages that may come at any time.
    fn housekeeping(&mut self, message: ToHost) -> Result<(), SessionError> {
        match message {
            // A repeated `Ready` answers a greeting that was repeated.
            ToHost::Pong(_) | ToHost::Ready => Ok(()),
            ToHost::Log(text) => {
                if self.log.len() < MAX_LOG {
                    self.log.push(error::clean(&text));
                } else {
                    self.log_lost += 1;
                }
                Ok(())
            }
            ToHost::Fatal(text) => Err(SessionError::AgentFatal { detail: error::clean(&text) }),
            ToHost::Started { id, .. }
            | ToHost::StdinCredit { id, .. }
            | ToHost::StdinClosed(id)
            | ToHost::Lingers(id)
                if self.is_stale(id) =>
            {
                Ok(())
            }
            // Of the input of a command that has ended, or could not be started, meanwhile.
            ToHost::StdinCredit { id, .. } | ToHost::StdinClosed(id) if (1..self.next_exec).contains(&id) => Ok(()),
            ToHost::Exited { id, .. } | ToHost::ExecFailed { id, .. } if self.is_stale(id) => {
                self.running = self.running.filter(|&running| running != id);
                self.abandoned.retain(|&abandoned| abandoned != id);
                Ok(())
            }
            ToHost::Started { id, .. }
            | ToHost::StdinCredit { id, .. }
            | ToHost::StdinClosed(id)
            | ToHost::Lingers(id)
            | ToHost::Exited { id, .. }
            | ToHost::ExecFailed { id, .. } => Err(SessionError::UnknownExec { id, what: "a message".into() }),
            // Late answers to a question whose asker gave up.
            ToHost::SetupDone(_)
            | ToHost::DeviceAwaited(_)
            | ToHost::Booted(_)
            | ToHost::Quiesced(_)
            | ToHost::Synced(_)
            | ToHost::Renewing(_)
            | ToHost::Ending
            | ToHost::NotEnding(_) => Ok(()),
            // Taken before it gets here.
            ToHost::Kernel(_) | ToHost::Ask { .. } | ToHost::ClockStepped(_) => Ok(()),
            ToHost::Announce(_) => Err(SessionError::Restarted),
        }
    }
}

/// What the agent says of a synchronisation, free of control characters.
fn clean_sync(report: SyncReport) -> SyncReport {
    let fault = report.fault.map(|fault| match fault {
        SyncFault::Failed(text) => SyncFault::Failed(error::clean(&text)),
        SyncFault::Suspended => SyncFault::Suspended,
        SyncFault::Gone(places) => SyncFault::Gone(places.iter().map(|p| error::clean(p)).collect()),
        SyncFault::Covered(places) => SyncFault::Covered(places.iter().map(|p| error::clean(p)).collect()),
    });
    let returned = report.returned.map(|returned| Returned {
        left_out: returned.left_out.iter().take(MAX_LEFT_OUT).map(|line| error::clean(line)).collect(),
        ..returned
    });
    SyncReport { fault, returned }
}

async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, future).await.ok()
}
