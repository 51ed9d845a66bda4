//! QEMU as a process: started through the shim, watched, measured, ended.
//!
//! Its console, agent port, second serial port and control channel are socket pairs, made here and inherited by QEMU
//! ([`Line`]). What it writes to standard output and error goes
//! to a log, and the end of it into every error.
//!
//! A thread of its own waits for the process and reaps it, so that an end is noticed without a signal
//! handler and nothing is left behind, whatever becomes of the runtime. Dropping a [`Qemu`] kills.

mod child;
mod hints;
pub(super) mod stat;
mod text;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::Duration;

use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use self::child::Child;
use super::args::{ArgsError, MachineConfig};
use super::descriptors::{Descriptors, Line};
use super::qmp::{EventStream, Qmp, QmpError, Quit};
use crate::bounds::{Exceeded, Gauge};

pub(crate) use self::child::Alive;
pub use self::child::{ExitWatch, all_ended};
pub use super::sandbox::Shim;

/// How long QEMU may take from its start until it answers on its control channel. It needs a tenth of a
/// second; where memory is preallocated or the host is overloaded, many times that.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a killed process may take to be gone: it gives back its memory first.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// How long after closing its control channel a dying QEMU may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(5);

/// What to start, and where its messages go.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// QEMU.
    pub program: &'a Path,
    /// The machine; it is started as one that [inherits](MachineConfig::inheriting) the descriptors.
    pub config: &'a MachineConfig,
    /// What turns a process into QEMU.
    pub shim: &'a Shim,
    /// All that it gets of the environment. What it does not need is kept from it, secrets above all.
    pub env: &'a [(OsString, OsString)],
    /// What the guest may write to the host's disks.
    pub gauge: Option<Gauge>,
    /// File for what QEMU writes; made, or emptied.
    pub log: &'a Path,
    /// What it inherits beside its channels.
    pub descriptors: Descriptors,
}

/// Our ends of a machine's lines.
#[derive(Debug)]
pub struct Channels {
    /// First serial port.
    pub console: UnixStream,
    /// The agent's virtio port. Readable data means that the guest wrote; writes wait until it opens the port.
    pub agent: UnixStream,
    /// Second serial port.
    pub serial1: UnixStream,
}

/// Why there is no running QEMU.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The machine cannot be described to QEMU.
    #[error("cannot make QEMU's command line: {0}")]
    Args(#[from] ArgsError),
    /// The log could not be made.
    #[error("cannot make {} for QEMU's messages: {source}; the run's directory must be writable", .path.display())]
    Log {
        /// Its name.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something that every process start needs failed.
    #[error(
        "cannot {what} for QEMU: {source}; the host may be short of memory, processes or descriptors (ulimit -n, -u)"
    )]
    Resources {
        /// The step that failed.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The shim could not be started.
    #[error("cannot start {}: {source}", .program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended before it was up: wrong arguments, or something missing.
    #[error("{} ended before the machine was up: {end}{}", .program.display(), hint_line(.hint.as_deref()))]
    Exited {
        /// Which program.
        program: PathBuf,
        /// Its exit code or signal, and its last words.
        end: End,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It runs and does not answer.
    #[error("{} was started and did not come up: {error}{}", .program.display(), said_lines(.said))]
    NoControl {
        /// Which program.
        program: PathBuf,
        /// What happened on the control channel.
        error: QmpError,
        /// The end of what it wrote.
        said: String,
    },
}

fn hint_line(hint: Option<&str>) -> String {
    hint.map(|hint| format!("\n{hint}")).unwrap_or_default()
}

fn said_lines(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("\nits messages:\n{said}") }
}

/// How QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Code or signal.
    pub status: ExitStatus,
    /// Whether it was killed from here.
    pub killed: bool,
    /// The end of what it wrote, without control characters.
    pub said: String,
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// It was killed because its guest wrote more than it may: what, and how to raise that.
    pub(crate) exceeded: Option<Exceeded>,
}

impl End {
    /// What is known to help, if its messages are.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        hints::hint(&self.said, self.status.signal())
    }

    /// Whether it ended of its own accord, and without an error, so that it has closed its files.
    pub(crate) fn is_orderly(&self) -> bool {
        self.status.success() && !self.killed
    }

    /// The last lines of what it wrote.
    pub(crate) fn last_words(&self) -> String {
        text::last_lines(&self.said, 4)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "QEMU exited with code {code}")?,
            (None, Some(signal)) => write!(f, "QEMU was killed by {}", text::signal_name(signal))?,
            (None, None) => write!(f, "QEMU ended with {}", self.status)?,
        }
        if self.killed {
            write!(f, " (by Belljar)")?;
        }
        // The last words say most.
        let last = self.last_words();
        if last.is_empty() { Ok(()) } else { write!(f, ": {last}") }
    }
}

/// A running QEMU. Dropping it kills it.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    qmp: Qmp,
    first_events: Mutex<Option<EventStream>>,
    channels: Option<Channels>,
    /// The other end of the second serial port, where the machine has none: it is silent until QEMU has ended.
    _no_port: Option<StdStream>,
}

impl Qemu {
    /// Starts QEMU and waits until its machine is there and its control channel answers, the guest's first instructions
    /// being under way.
    ///
    /// The process dies with the calling *thread*: call it from one that lives as long as the guest, within a
    /// tokio runtime. Dropping the future kills what was started.
    ///
    /// # Errors
    ///
    /// See [`SpawnError`]. Nothing is left running.
    pub async fn spawn(request: SpawnRequest<'_>) -> Result<Self, SpawnError> {
        let SpawnRequest { program, config, shim, env, gauge, log, descriptors } = request;
        let args = config.inheriting(&descriptors).to_args()?;

        let (console, console_end) = pair()?;
        let (agent, agent_end) = pair()?;
        let (serial1, serial1_end) = pair()?;
        let (control, control_end) = pair()?;
        let mut ends: Vec<(Line, OwnedFd)> = vec![
            (Line::Console, console_end.into()),
            (Line::Agent, agent_end.into()),
            (Line::Control, control_end.into()),
        ];
        let mut no_port = None;
        match config.platform.second_serial {
            Some(_) => ends.push((Line::Serial1, serial1_end.into())),
            None => no_port = Some(serial1_end),
        }

        let command = shim.command_with(program, descriptors.with_lines(ends));
        let mut command = command.map_err(|source| SpawnError::Resources { what: "hand descriptors over", source })?;
        // Messages in English are the ones that hints know.
        command
            .args(args)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("LC_ALL", "C")
            .process_group(0);
        let mut child = Child::spawn(command, log, gauge)?;

        let (qmp, events) = connect(control, &mut child, program).await?;
        let channels = Channels { console, agent, serial1 };
        Ok(Self { child, qmp, first_events: Mutex::new(Some(events)), channels: Some(channels), _no_port: no_port })
    }

    /// Our ends of its lines.
    ///
    /// # Panics
    ///
    /// When called a second time.
    #[must_use]
    pub fn take_channels(&mut self) -> Channels {
        self.channels.take().expect("a machine has one set of channels")
    }

    /// The control channel.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// QEMU's events: with the first call from the start on, later from the call on.
    #[must_use]
    pub fn events(&self) -> EventStream {
        let first = self.first_events.lock().ok().and_then(|mut events| events.take());
        first.unwrap_or_else(|| self.qmp.events())
    }

    /// Tells when it ends.
    #[must_use]
    pub fn exit_watch(&self) -> ExitWatch {
        self.child.exit_watch()
    }

    /// Its process id, for logs.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Reads the processor time of all its threads so far, in milliseconds, in steps of the host's clock tick (10 ms).
    /// Stays at the last value when QEMU has ended.
    pub fn cpu_clock(&self) -> impl FnMut() -> u64 + Send + use<> {
        let mut usage = self.child.usage();
        move || u64::try_from(usage.cpu_time().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether its guest has written more than it may, by a thorough look.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        self.child.exceeded()
    }

    /// Processor time of all its threads so far.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        self.child.usage().cpu_time()
    }

    /// Time for which its threads ran, or wanted to run and had no processor. Processor time where the kernel does not count that.
    #[must_use]
    pub fn wanted_time(&self) -> Duration {
        let mut usage = self.child.usage();
        usage.wanted_time().unwrap_or_else(|| usage.cpu_time())
    }

    /// Reads [`wanted_time`](Self::wanted_time).
    pub(crate) fn wanted_clock(&self) -> impl FnMut() -> Duration + Send + use<> {
        let mut usage = self.child.usage();
        move || usage.wanted_time().unwrap_or_else(|| usage.cpu_time())
    }

    /// Bytes of memory it has in use now; `None` when it has ended.
    #[must_use]
    pub fn rss(&self) -> Option<u64> {
        self.child.usage().rss()
    }

    /// The end of what it has written so far, without control characters.
    #[must_use]
    pub fn said(&self) -> String {
        self.child.said()
    }

    /// Waits until it ends by itself. Cancelling loses nothing.
    pub async fn wait(&mut self) -> End {
        self.exit_watch().ended().await
    }

    /// Kills it and all that it started, and waits until it is gone. `None` if it is not gone after a long
    /// while: the kernel holds it, in a read from a dead disk for instance.
    pub async fn kill(&mut self) -> Option<End> {
        self.child.kill();
        timeout(KILL_LIMIT, self.exit_watch().ended()).await.ok()
    }

    /// Asks it to end, so that it closes its files, and kills it if it has not ended in time. The guest is not asked.
    pub async fn quit(&mut self, within: Duration) -> Option<End> {
        let mut exit = self.exit_watch();
        let ask = async {
            // The end of the process is the answer: the reply may be lost in it.
            let _ = self.qmp.execute_within(Quit {}, within).await;
            exit.ended().await
        };
        match timeout(within, ask).await {
            Ok(end) => Some(end),
            Err(_) => self.kill().await,
        }
    }
}

/// Waits for the control channel, and for the process in case there will be none.
async fn connect(control: UnixStream, child: &mut Child, program: &Path) -> Result<(Qmp, EventStream), SpawnError> {
    let exited = |end: End| {
        let hint = end.hint();
        SpawnError::Exited { program: program.to_owned(), end, hint }
    };
    let mut exit = child.exit_watch();
    let error = tokio::select! {
        biased;
        connected = Qmp::connect(control, START_LIMIT) => match connected {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        },
        end = exit.ended() => return Err(exited(end)),
    };
    if matches!(error, QmpError::Closed { .. })
        && let Ok(end) = timeout(DEATH_LIMIT, exit.ended()).await
    {
        return Err(exited(end));
    }
    child.kill();
    let _ = timeout(KILL_LIMIT, exit.ended()).await;
    Err(SpawnError::NoControl { program: program.to_owned(), error, said: child.said() })
}

/// A socket pair: our end for the runtime, and QEMU's.
fn pair() -> Result<(UnixStream, StdStream), SpawnError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs))
    };
    make().map_err(|source| SpawnError::Resources { what: "make a socket pair", source })
}
