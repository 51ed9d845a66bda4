//! Standing still: the guests, and every timer.
//!
//! A person presses Ctrl-Z. Each guest's time is stopped first, so that it does not find hours gone afterwards and call
//! it a lockup. Then tokio's clock is held while this process is stopped, so that no deadline passes meanwhile.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
    time::Duration,
};

use belljar_machine::guest::GuestClock;
use belljar_model::EventKind;

use crate::event_writer::EventWriter;

/// How long a guest may take to stop; one that does not is left to itself.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The guests that have to stand still when the run does.
#[derive(Clone, Default)]
pub(crate) struct Clocks(Rc<RefCell<BTreeMap<u64, Rc<dyn GuestClock>>>>);

/// Takes a guest's clock out again when dropped.
pub(crate) struct ClockGuard {
    clocks: Weak<RefCell<BTreeMap<u64, Rc<dyn GuestClock>>>>,
    instance: u64,
}

impl Clocks {
    /// Puts a guest's clock in for as long as the result lives.
    pub(crate) fn add(&self, instance: u64, clock: Rc<dyn GuestClock>) -> ClockGuard {
        self.0.borrow_mut().insert(instance, clock);
        ClockGuard { clocks: Rc::downgrade(&self.0), instance }
    }

    fn all(&self) -> Vec<Rc<dyn GuestClock>> {
        self.0.borrow().values().cloned().collect()
    }

    /// Stops all guests and the timers, calls `stop`, which is to return when the run goes on, and lets them go on.
    pub(crate) async fn stand_still(&self, log: &EventWriter, stop: impl FnOnce()) {
        let clocks = self.all();
        for clock in &clocks {
            // Of a guest that does not answer somebody else will hear.
            drop(tokio::time::timeout(STOP_LIMIT, clock.stop()).await);
        }
        log.emit(EventKind::Paused);
        // Nothing is awaited between these two: paused, tokio's clock would jump ahead instead of waiting.
        tokio::time::pause();
        stop();
        tokio::time::resume();
        log.emit(EventKind::Resumed);
        for clock in &clocks {
            drop(tokio::time::timeout(STOP_LIMIT, clock.go_on()).await);
        }
    }
}

impl Drop for ClockGuard {
    fn drop(&mut self) {
        if let Some(clocks) = self.clocks.upgrade() {
            clocks.borrow_mut().remove(&self.instance);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "what the run's clock is held against")]
    async fn timers_do_not_run_while_the_process_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let log = crate::log::EventLog::create(&dir.path().join("events.jsonl"), Box::new(|_| ())).unwrap();
        let before = tokio::time::Instant::now();
        let real = std::time::Instant::now();
        let stopped = Duration::from_millis(300);
        Clocks::default().stand_still(&EventWriter::new(log), || std::thread::sleep(stopped)).await;
        assert!(before.elapsed() + stopped <= real.elapsed() + Duration::from_millis(1), "{:?}", before.elapsed());
        let text = fs_err::read_to_string(dir.path().join("events.jsonl")).unwrap();
        assert!(text.contains("\"paused\"") && text.contains("\"resumed\""), "{text}");
    }
}
