//! Signs of life. A guest that has nothing to do and does not answer is halted, or its agent is.
//!
//! A guest that computes may be slow to answer, the more so on a busy host: of that the session's own, much longer limit decides.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::agent::{PortKind, Reports};

/// How often a silent agent is asked.
const EVERY: Duration = Duration::from_secs(5);
/// When it is looked at first.
const FIRST: Duration = Duration::from_secs(1);
/// Part of the time that an idle guest computes at most. One that is halted computes nothing.
const IDLE: u32 = 10;

/// Listens for one guest's agent.
pub(super) struct Heartbeat {
    /// Time for which QEMU ran, or wanted to.
    wanted: Box<dyn FnMut() -> Duration + Send>,
    next: Instant,
    /// None from a new beginning to the first look: it takes longer than a short test does.
    last: Option<Duration>,
    last_at: Instant,
    heard: u64,
    /// Looks at which nothing was heard and the guest was idle, one after the other.
    silent: u32,
}

impl std::fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeat").field("silent", &self.silent).finish_non_exhaustive()
    }
}

/// How many such looks make a death. The end of a virtio port is reported by QEMU, so that only a stopped agent and a halted
/// guest are left to be found, and a guest that suspends itself without QEMU's knowing is given some time.
fn limit(kind: PortKind) -> u32 {
    match kind {
        PortKind::Virtio | PortKind::Socket => 12,
        PortKind::Serial => 3,
    }
}

impl Heartbeat {
    pub(super) fn new(wanted: impl FnMut() -> Duration + Send + 'static) -> Self {
        let now = Instant::now();
        let wanted = Box::new(wanted);
        Self { wanted, next: now + FIRST, last: None, last_at: now, heard: 0, silent: 0 }
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        self.silent = 0;
        self.next = Instant::now() + FIRST;
        self.last = None;
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// Looks; gives for how long a dead guest has been silent.
    pub(super) fn beat(&mut self, reports: &Reports) -> Option<Duration> {
        let now = Instant::now();
        if now < self.next {
            return None;
        }
        let (wanted, elapsed) = ((self.wanted)(), now - self.last_at);
        self.last_at = now;
        let Some(last) = self.last.replace(wanted) else {
            self.next = now + (EVERY - FIRST);
            return None;
        };
        self.next = now + EVERY;
        let idle = wanted.saturating_sub(last) * IDLE < elapsed;
        let heard = reports.heard();
        let quiet = heard == self.heard && !reports.is_held();
        self.heard = heard;
        self.silent = if quiet && idle { self.silent + 1 } else { 0 };
        if quiet {
            // A guest that takes nothing in is silent all the same.
            let _ = reports.ask();
        }
        (self.silent > limit(reports.kind())).then(|| EVERY * self.silent)
    }
}
