//! What QEMU tells unasked, and a queue that never forgets what matters.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

/// How many events wait for a reader who does not read, before ordinary ones are dropped.
const QUEUE: usize = 1024;

/// Events that say how a guest's life goes on or ends.
const VITAL: &[&str] = &[
    "SHUTDOWN",
    "GUEST_PANICKED",
    "GUEST_CRASHLOADED",
    "RESET",
    "STOP",
    "RESUME",
    "SUSPEND",
    "WAKEUP",
    "POWERDOWN",
    "WATCHDOG",
];

/// One event. The set of names is open.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Such as `SHUTDOWN`.
    pub name: String,
    /// What belongs to it; `null` if nothing does.
    pub data: Value,
    /// When QEMU saw it.
    pub timestamp: QmpTimestamp,
}

impl QmpEvent {
    /// Why the machine shut down or was reset: `guest-shutdown`, `guest-reset`, `guest-panic`, `host-qmp-quit`….
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.data.get("reason").and_then(Value::as_str)
    }

    fn is_vital(&self) -> bool {
        VITAL.contains(&self.name.as_str())
    }
}

/// The host's wall clock as QEMU read it; -1 where it could not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct QmpTimestamp {
    /// Since the Unix epoch.
    pub seconds: i64,
    /// Within the second.
    pub microseconds: i64,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<QmpEvent>,
    /// Ordinary events dropped because nobody read.
    lost: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    notify: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events since this stream was made, in order.
///
/// A reader who does not keep up loses ordinary events, counted by [`EventStream::lost`], and never
/// the vital ones: shutdown, panic, reset, stop and resume.
#[derive(Debug)]
pub struct EventStream(Arc<Shared>);

impl EventStream {
    /// Waits for the next event; `None` once the channel has ended and everything was read.
    pub async fn next(&mut self) -> Option<QmpEvent> {
        loop {
            let notified = self.0.notify.notified();
            {
                let mut queue = self.0.lock();
                if let Some(event) = queue.events.pop_front() {
                    return Some(event);
                }
                if queue.closed {
                    return None;
                }
            }
            notified.await;
        }
    }

    /// The next event if one is there.
    pub fn try_next(&mut self) -> Option<QmpEvent> {
        self.0.lock().events.pop_front()
    }

    /// How many ordinary events were dropped.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }
}

/// Gives each event to every stream.
#[derive(Debug, Default)]
pub(super) struct Hub {
    streams: Mutex<(Vec<Weak<Shared>>, bool)>,
}

impl Hub {
    pub(super) fn subscribe(&self) -> EventStream {
        let shared = Arc::new(Shared::default());
        let (streams, closed) = &mut *self.lock();
        shared.lock().closed = *closed;
        streams.push(Arc::downgrade(&shared));
        EventStream(shared)
    }

    pub(super) fn publish(&self, event: &QmpEvent) {
        self.each(|queue| enqueue(queue, event.clone()));
    }

    pub(super) fn close(&self) {
        self.lock().1 = true;
        self.each(|queue| queue.closed = true);
    }

    fn each(&self, mut f: impl FnMut(&mut Queue)) {
        self.lock().0.retain(|stream| {
            let Some(shared) = stream.upgrade() else { return false };
            f(&mut shared.lock());
            shared.notify.notify_one();
            true
        });
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Weak<Shared>>, bool)> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes room by what is worth least: an ordinary event, then one of several vital ones of a name.
fn enqueue(queue: &mut Queue, event: QmpEvent) {
    if queue.events.len() >= QUEUE {
        queue.lost += 1;
        if let Some(at) = queue.events.iter().position(|e| !e.is_vital()) {
            queue.events.remove(at);
        } else if !event.is_vital() {
            return;
        } else if let Some(at) = queue.events.iter().rposition(|e| e.name == event.name) {
            // The first of a name says how it began, the last how it stands.
            queue.events.remove(at);
        }
    }
    queue.events.push_back(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, n: u64) -> QmpEvent {
        QmpEvent { name: name.to_owned(), data: n.into(), timestamp: QmpTimestamp::default() }
    }

    #[test]
    fn a_flood_does_not_wash_away_the_shutdown() {
        let hub = Hub::default();
        let mut stream = hub.subscribe();
        hub.publish(&event("SHUTDOWN", 1));
        for n in 0..5000 {
            hub.publish(&event("VSERPORT_CHANGE", n));
        }
        assert_eq!(stream.try_next(), Some(event("SHUTDOWN", 1)));
        assert!(stream.lost() > 0);
        assert_eq!(std::iter::from_fn(|| stream.try_next()).last(), Some(event("VSERPORT_CHANGE", 4999)));
    }

    #[test]
    fn even_a_flood_of_resets_keeps_one_of_each() {
        let hub = Hub::default();
        let mut stream = hub.subscribe();
        hub.publish(&event("GUEST_PANICKED", 0));
        for n in 0..5000 {
            hub.publish(&event("RESET", n));
        }
        hub.publish(&event("SHUTDOWN", 0));
        hub.publish(&event("JOB_STATUS_CHANGE", 0));
        let seen: Vec<_> = std::iter::from_fn(|| stream.try_next()).collect();
        assert!(seen.len() <= QUEUE + 1);
        assert_eq!(seen.first(), Some(&event("GUEST_PANICKED", 0)));
        assert_eq!(seen.last(), Some(&event("SHUTDOWN", 0)));
        assert!(seen.contains(&event("RESET", 4999)));
    }

    #[test]
    fn a_stream_made_after_the_end_ends() {
        let hub = Hub::default();
        hub.close();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(async { hub.subscribe().next().await }), None);
    }
}
