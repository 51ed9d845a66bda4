//! A child process with a thread that tees what it writes, waits for it and reaps it.

#![expect(clippy::disallowed_methods, reason = "a thread of its own, which polls with real time")]

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};
use tokio::sync::watch;

use super::stat::{self, Usage};
use super::text::{self, Tail};
use super::{End, SpawnError};
use crate::bounds::{Exceeded, Gauge};

/// The most that is written to the log; QEMU can be made to repeat itself by its guest.
const MAX_LOG: u64 = 8 << 20;
/// The most that is kept in memory.
const MAX_TAIL: usize = 16 << 10;
/// The thread reads a pipe and waits.
const STACK: usize = 128 << 10;

/// How many were started and have not been reaped, in the whole process.
static ALIVE: Mutex<usize> = Mutex::new(0);
static ONE_LESS: Condvar = Condvar::new();

/// One of those.
pub(crate) struct Alive;

impl Alive {
    pub(crate) fn begin() -> Self {
        *ALIVE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *ALIVE.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ONE_LESS.notify_all();
    }
}

/// Waits until every QEMU, and every container engine's program, that this process started has ended, at most for so long, and tells whether they have. A handle that is
/// dropped kills its QEMU; to be gone takes one with much memory a moment more, in which this process must not end before it.
pub fn all_ended(limit: Duration) -> bool {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = ONE_LESS.wait_timeout_while(alive, limit, |alive| *alive > 0);
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}

/// State shared by the handle, the thread and the measurements.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pid: Pid,
    life: Mutex<Life>,
    tail: Mutex<Tail>,
    gauge: Mutex<Measuring>,
}

/// What is measured while it runs, and what came of it.
#[derive(Debug)]
struct Measuring {
    gauge: Option<Gauge>,
    exceeded: Option<Exceeded>,
}

/// While `reaped` is false the process id is this child's, dead or alive: nobody else can reap it, and whoever uses the id
/// holds the lock.
#[derive(Debug, Default)]
pub(super) struct Life {
    pub(super) reaped: bool,
    pub(super) killed: bool,
    /// Processor time when last looked at.
    pub(super) cpu: Duration,
}

impl Shared {
    pub(super) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> String {
        text::clean(&self.tail().bytes())
    }

    /// Looks whether it has written too much, and kills it then.
    fn look(&self, thorough: bool) -> Option<Exceeded> {
        let mut measuring = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        let Measuring { gauge, exceeded } = &mut *measuring;
        if exceeded.is_none() {
            *exceeded = gauge.as_mut()?.look(thorough);
            if exceeded.is_some() {
                self.kill();
            }
        }
        exceeded.clone()
    }

    /// When to look again.
    fn next_look(&self) -> Option<Duration> {
        let measuring = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        measuring.gauge.as_ref().filter(|_| measuring.exceeded.is_none()).map(Gauge::next)
    }

    /// SIGKILL to the process group.
    fn kill(&self) {
        let mut life = self.life();
        if !life.reaped {
            life.killed = true;
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }
}

/// The handle. Dropping it kills; the thread goes on until the process is reaped.
#[derive(Debug)]
pub(super) struct Child {
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<End>>,
}

impl Child {
    /// Starts a command that writes to the log.
    pub(super) fn spawn(mut command: Command, log: &Path, gauge: Option<Gauge>) -> Result<Self, SpawnError> {
        let resources = |what| move |source| SpawnError::Resources { what, source };
        let log = File::create(log).map_err(|source| SpawnError::Log { path: log.to_owned(), source })?;
        let (output, to_output) = io::pipe().map_err(resources("make a pipe"))?;
        let again = to_output.try_clone().map_err(resources("make a pipe"))?;
        command.stdout(to_output).stderr(again);
        let mut process =
            command.spawn().map_err(|source| SpawnError::Start { program: command.get_program().into(), source })?;
        // It holds the other end of the pipe, which is to end with the process.
        drop(command);

        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        // Before 5.3 there is none: then its output ends with it.
        let exit_fd = pidfd_open(pid, PidfdFlags::empty()).ok();
        let shared = Arc::new(Shared {
            pid,
            life: Mutex::default(),
            tail: Mutex::new(Tail::new(MAX_TAIL)),
            gauge: Mutex::new(Measuring { gauge, exceeded: None }),
        });
        let (tell, ended) = watch::channel(None);

        let supervisor =
            Supervisor { shared: shared.clone(), output, log, left: MAX_LOG, exit_fd, looked: Instant::now() };
        let (hand_over, process_for_thread) = std::sync::mpsc::channel();
        let alive = Alive::begin();
        let thread = thread::Builder::new().name("qemu-watch".to_owned()).stack_size(STACK).spawn(move || {
            if let Ok(process) = process_for_thread.recv() {
                supervisor.run(process, &tell);
            }
            drop(alive);
        });
        match thread {
            Ok(_) => {
                // The thread waits for exactly this.
                let _ = hand_over.send(process);
                Ok(Self { shared, ended })
            }
            Err(source) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(SpawnError::Resources { what: "start a thread", source })
            }
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.shared.pid.as_raw_nonzero().get()
    }

    pub(super) fn kill(&self) {
        self.shared.kill();
    }

    pub(super) fn said(&self) -> String {
        self.shared.said()
    }

    pub(super) fn exceeded(&self) -> Option<Exceeded> {
        self.shared.look(true)
    }

    pub(super) fn exit_watch(&self) -> ExitWatch {
        ExitWatch { ended: self.ended.clone() }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.shared.clone())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

/// Tells when a QEMU ends, independently of its handle.
#[derive(Clone, Debug)]
pub struct ExitWatch {
    ended: watch::Receiver<Option<End>>,
}

impl ExitWatch {
    /// Waits for the end. Cancelling loses nothing, and it may be asked again.
    pub async fn ended(&mut self) -> End {
        let end = self.ended.wait_for(Option::is_some).await.map(|end| end.clone());
        match end {
            Ok(Some(end)) => end,
            // The thread tells before it ends, and nothing in it panics.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    output: PipeReader,
    log: File,
    left: u64,
    exit_fd: Option<OwnedFd>,
    /// When it was last looked at what the guest has written.
    looked: Instant,
}

impl Supervisor {
    fn run(mut self, mut process: std::process::Child, tell: &watch::Sender<Option<End>>) {
        self.tee();
        // Until it is reaped its figures can be read, also when it has ended.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(Errno::INTR) = waitid(WaitId::Pid(self.shared.pid), options) {}

        let (status, killed, cpu) = {
            let mut life = self.shared.life();
            if let Some(stat) = stat::read(self.shared.pid) {
                life.cpu = stat.cpu;
            }
            // Whatever it started and left behind goes with it.
            let _ = kill_process_group(self.shared.pid, Signal::KILL);
            let status = process.wait();
            life.reaped = true;
            (status, life.killed, life.cpu)
        };
        let status = status.unwrap_or_else(|_| unknown_status());
        // Nothing more is written, so this is what it came to.
        let exceeded = self.shared.look(true);
        tell.send_replace(Some(End { status, killed, said: self.shared.said(), cpu, exceeded }));
    }

    /// Copies what it writes until it has ended. The pipe alone does not tell: something that QEMU was told to start may hold it
    /// open.
    fn tee(&mut self) {
        let mut buffer = [0; 8 << 10];
        loop {
            let (readable, exited) = self.wait();
            if readable {
                match self.output.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => self.take(&buffer[..n]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            } else if exited {
                return;
            }
        }
    }

    /// Waits until there is something to read, or the process has ended.
    fn wait(&mut self) -> (bool, bool) {
        let mut fds = vec![PollFd::new(&self.output, PollFlags::IN)];
        let exit_fd = self.exit_fd.as_ref().map(AsFd::as_fd);
        if let Some(fd) = &exit_fd {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
        let next = self.shared.next_look();
        let limit = next.map(|next| {
            let left = next.saturating_sub(self.looked.elapsed());
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(1), tv_nsec: left.subsec_nanos().into() }
        });
        let polled = poll(&mut fds, limit.as_ref());
        if next.is_some_and(|next| self.looked.elapsed() >= next) {
            self.shared.look(false);
            self.looked = Instant::now();
        }
        match polled {
            Ok(_) => (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => (false, false),
            Err(_) => (true, true),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.shared.tail().push(bytes);
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if fits == 0 {
            return;
        }
        self.left -= fits as u64;
        // A full disk must not keep QEMU waiting; its last words are in memory.
        let _ = self.log.write_all(&bytes[..fits]);
        if self.left == 0 {
            let _ = self.log.write_all(b"\n[belljar: the rest was not kept]\n");
        }
    }
}

/// For a child that somebody else reaped, which nobody does.
fn unknown_status() -> std::process::ExitStatus {
    std::os::unix::process::ExitStatusExt::from_raw(0xff00)
}
