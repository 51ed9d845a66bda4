//! All processes of a container but its first and the agent, which are one where the image has no systemd to be the first: stopped for a while, or ended.
//!
//! The agent does this itself and not the engine, which would freeze the agent too: it would not see that Belljar is gone. What is stopped
//! here ends with the agent all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid};

use crate::leftovers::{Process, processes};
use crate::sys;

/// How long what was killed may take to be gone.
const DYING: Duration = Duration::from_secs(5);
/// The signal by which systemd ends at once, without stopping its services: `SIGRTMIN+13`, as the C libraries count (systemd(1)).
const HALT_AT_ONCE: i32 = 47;
/// How often is looked whether it is.
const LOOK: Duration = Duration::from_millis(2);

/// The container stands still.
#[derive(Debug)]
pub(crate) struct StoodStill {
    /// What was stopped already, by number and start, and is to stay so.
    before: Vec<(i32, u64)>,
}

impl StoodStill {
    /// Stops every process of the container but the agent.
    pub(crate) fn begin() -> Self {
        let before = processes().iter().filter(|process| process.stopped).map(Process::key).collect();
        signal_everything(libc::SIGSTOP);
        Self { before }
    }

    /// Lets go on what was stopped.
    pub(crate) fn end(self) {
        let all = processes();
        let parents: HashMap<i32, i32> = all.iter().map(|process| (process.pid, process.parent)).collect();
        let depth = |pid: i32| {
            let above = std::iter::successors(Some(pid), |pid| parents.get(pid).copied().filter(|&parent| parent > 0));
            above.take(parents.len() + 1).count()
        };
        let mut stopped: Vec<_> = all.iter().filter(|process| !self.before.contains(&process.key())).collect();
        // Children first: a shell that finds a child stopped takes that for its user's wish.
        stopped.sort_by_key(|process| std::cmp::Reverse(depth(process.pid)));
        for process in stopped {
            let _ = sys::kill(process.pid, libc::SIGCONT);
        }
    }
}

/// Ends every process but this one, and waits until they are gone.
pub(crate) fn kill_everything() {
    let until = Instant::now() + DYING;
    signal_everything(libc::SIGKILL);
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            // Whatever is left becomes a child of this process when its parent ends, so nothing is left.
            Err(Errno::CHILD) => return,
            Ok(None) | Err(_) if Instant::now() < until => {
                signal_everything(libc::SIGKILL);
                sys::poll(&mut [], Some(LOOK));
            }
            Ok(None) | Err(_) => return,
        }
    }
}

/// Ends every process but this one, and has systemd, the first process, end as well when this one has.
pub(crate) fn end_system() {
    let until = Instant::now() + DYING;
    let own = getpid().as_raw_nonzero().get();
    // It does not stop its services, which are killed here. A process that is first cannot be killed from within.
    let _ = sys::kill(1, HALT_AT_ONCE);
    loop {
        signal_everything(libc::SIGKILL);
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        let others =
            processes().into_iter().any(|process| process.pid != 1 && process.pid != own && !process.is_dead());
        if !others || Instant::now() >= until {
            return;
        }
        sys::poll(&mut [], Some(LOOK));
    }
}

/// Sends a signal to every process that this one may signal, all at once: none can make others meanwhile (kill(2), a pid of -1, which spares the first
/// process and this one). Only in a container may that be done, for elsewhere these are others' processes.
fn signal_everything(signal: i32) {
    if getpid().is_init() || IN_CONTAINER.load(Ordering::Relaxed) {
        let _ = sys::kill(-1, signal);
    }
}

/// This process is not the first one of its namespace, and was started by that, which was the agent then.
static IN_CONTAINER: AtomicBool = AtomicBool::new(false);

/// Notes that this process is in a container, with systemd as the first process.
pub(crate) fn beside_systemd() {
    IN_CONTAINER.store(true, Ordering::Relaxed);
}
