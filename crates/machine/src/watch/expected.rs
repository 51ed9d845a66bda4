//! What was asked of a guest and would else be taken for its end. Who asks announces it before, and the watch takes it as it comes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// The guest's time stops.
    Stop,
    /// The guest powers itself off: nothing more is heard of it, and QEMU ends.
    PowerOff,
    /// The guest may go down by itself, to come up again: the same.
    Restart,
}

/// What is expected of one guest. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected(Arc<Mutex<Vec<Expectation>>>);

impl Expected {
    /// It is about to be asked for, and may be reported once.
    pub(crate) fn announce(&self, what: Expectation) {
        self.lock().push(what);
    }

    /// It has been reported, or could not be asked for; gives whether it had been announced.
    pub(crate) fn take(&self, what: Expectation) -> bool {
        let mut expected = self.lock();
        let at = expected.iter().position(|e| *e == what);
        at.map(|at| expected.swap_remove(at)).is_some()
    }

    /// Whether it is still to come.
    pub(crate) fn has(&self, what: Expectation) -> bool {
        self.lock().contains(&what)
    }

    /// Whether nothing more may be heard of the guest.
    pub(crate) fn has_end(&self) -> bool {
        self.has(Expectation::PowerOff) || self.has(Expectation::Restart)
    }

    /// Whether it may be silent for as long as it likes: whoever has asked it to power itself off has a limit of his own. One that may go down by itself
    /// has none.
    pub(crate) fn may_be_silent(&self) -> bool {
        self.has(Expectation::PowerOff)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Expectation>> {
        // Nothing is half-done while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_announcement_is_taken_once_and_for_itself() {
        let expected = Expected::default();
        assert!(!expected.take(Expectation::Stop));
        expected.announce(Expectation::Stop);
        expected.clone().announce(Expectation::Stop);
        expected.announce(Expectation::PowerOff);
        assert!(expected.take(Expectation::Stop) && expected.take(Expectation::Stop));
        assert!(!expected.take(Expectation::Stop), "the next one is QEMU's own");
        assert!(expected.has(Expectation::PowerOff) && expected.take(Expectation::PowerOff));
        assert!(!expected.has(Expectation::PowerOff));
        expected.announce(Expectation::Restart);
        assert!(expected.has_end() && !expected.may_be_silent(), "a halted guest never goes down");
    }
}
