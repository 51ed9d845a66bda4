//! How long we wait: every wait has one of these.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// How often the outside progress counter is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// A deadline that is fed by progress.
///
/// Two limits: `total` since the start, which nothing moves, and `idle` since the last sign of life. A sign of life is
/// whatever calls [`renew`](Patience::renew) (the console does, for each byte that comes) and any change of an
/// outside counter such as the guest's CPU time.
pub struct Patience {
    total: Duration,
    idle: Option<Duration>,
    started: Instant,
    renewed: Instant,
    counter: Option<Counter>,
}

struct Counter {
    read: Box<dyn FnMut() -> u64 + Send>,
    last: u64,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("total", &self.total).field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// Which limit passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The limit on the whole.
    Total(Duration),
    /// The limit without any sign of life.
    Idle(Duration),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Total(d) => write!(f, "limit {}", seconds(*d)),
            Limit::Idle(d) => write!(f, "nothing happened for {}", seconds(*d)),
        }
    }
}

/// A deadline that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// How long it was waited in all.
    pub waited: Duration,
    /// Which limit it was.
    pub limit: Limit,
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "waited {} ({})", seconds(self.waited), self.limit)
    }
}

/// `90 s`, `1.5 s`.
fn seconds(d: Duration) -> String {
    let s = d.as_secs_f64();
    if s >= 10.0 || s.fract() < 0.05 { format!("{s:.0} s") } else { format!("{s:.1} s") }
}

impl Patience {
    /// Starts now; waits at most `total`.
    pub fn new(total: Duration) -> Self {
        let now = Instant::now();
        Patience { total, idle: None, started: now, renewed: now, counter: None }
    }

    /// Also gives up after `idle` without a sign of life.
    #[must_use]
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Stretches both limits, such as tenfold for a guest without KVM.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.total = stretch(self.total, factor);
        self.idle = self.idle.map(|idle| stretch(idle, factor));
        self
    }

    /// Also takes any change of this counter for a sign of life. It is called about twice a second and must not block.
    #[must_use]
    pub fn fed_by(mut self, mut read: impl FnMut() -> u64 + Send + 'static) -> Self {
        let last = read();
        self.counter = Some(Counter { read: Box::new(read), last });
        self
    }

    /// A sign of life.
    pub fn renew(&mut self) {
        self.renewed = Instant::now();
    }

    /// How long it has been going on.
    pub fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is left of the total.
    pub fn remaining(&self) -> Duration {
        self.total.saturating_sub(self.waited())
    }

    /// Whether a limit has passed by now.
    pub fn overdue(&mut self) -> Option<Overdue> {
        if let Some(counter) = &mut self.counter {
            let now = (counter.read)();
            if now != counter.last {
                counter.last = now;
                self.renewed = Instant::now();
            }
        }
        let waited = self.waited();
        if waited >= self.total {
            return Some(Overdue { waited, limit: Limit::Total(self.total) });
        }
        let idle = self.idle?;
        (self.renewed.elapsed() >= idle).then_some(Overdue { waited, limit: Limit::Idle(idle) })
    }

    /// Returns when a limit has passed. Can be dropped and called again at any time.
    pub async fn run_out(&mut self) -> Overdue {
        loop {
            if let Some(overdue) = self.overdue() {
                return overdue;
            }
            tokio::time::sleep(self.next_look()).await;
        }
    }

    /// How long nothing can have changed.
    fn next_look(&self) -> Duration {
        let mut wait = self.remaining();
        if let Some(idle) = self.idle {
            wait = wait.min(idle.saturating_sub(self.renewed.elapsed()));
            if self.counter.is_some() {
                wait = wait.min(LOOK);
            }
        }
        wait.max(Duration::from_millis(1))
    }
}

fn stretch(duration: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test(start_paused = true)]
    async fn the_total_is_not_moved_by_progress() {
        let mut n = 0;
        let mut p = Patience::new(Duration::from_secs(30)).idle(Duration::from_secs(5)).fed_by(move || {
            n += 1;
            n
        });
        let over = p.run_out().await;
        assert_eq!(over.limit, Limit::Total(Duration::from_secs(30)));
        assert_eq!(over.waited.as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn standing_still_ends_sooner() {
        let cpu = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&cpu);
        let mut p = Patience::new(Duration::from_secs(300)).idle(Duration::from_secs(5)).scaled(2.0);
        p = p.fed_by(move || seen.load(Ordering::Relaxed));
        let before = tokio::time::timeout(Duration::from_secs(9), p.run_out()).await;
        assert!(before.is_err(), "{before:?}");
        cpu.store(1, Ordering::Relaxed);
        let over = p.run_out().await;
        assert_eq!(over.limit, Limit::Idle(Duration::from_secs(10)));
        assert!(over.waited > Duration::from_secs(15), "{over}");
        assert!(over.to_string().contains("nothing happened for 10 s"), "{over}");
    }
}
