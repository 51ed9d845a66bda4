//! One event log for everything that goes on at the same time.

use std::{cell::RefCell, rc::Rc};

use belljar_model::{EventKind, Fault, Scope, Verdict, test_run::UnitEnded};

use crate::log::{EventLog, unwritten};

/// Writes to the run's event log. Clones write to the same.
#[derive(Clone)]
pub(crate) struct EventWriter(Rc<RefCell<Written>>);

struct Written {
    log: EventLog,
    /// Why the log is no longer whole, in a person's words.
    failure: Option<String>,
}

impl Written {
    /// Keeps the first failure.
    fn note_failure(&mut self) {
        if let Some(error) = self.log.take_failure() {
            self.failure.get_or_insert_with(|| unwritten(&error));
        }
    }
}

impl EventWriter {
    /// Writes to this log from now on.
    pub(crate) fn new(log: EventLog) -> Self {
        Self(Rc::new(RefCell::new(Written { log, failure: None })))
    }

    /// Writes one event of the run as a whole.
    pub(crate) fn emit(&self, kind: EventKind) {
        self.write(None, kind);
    }

    /// Writes what a guest said while it was made or used for a try.
    pub(crate) fn of_attempt(&self, scope: &Scope, kind: EventKind) {
        self.write(Some(scope.clone()), kind);
    }

    /// Logs what became of a unit, and gives what was told of it: a pass that was not recorded is none.
    pub(crate) fn unit_ended(&self, ended: UnitEnded) -> UnitEnded {
        let mut written = self.0.borrow_mut();
        let told = written.log.emit_or(EventKind::UnitEnded(ended.clone()), |kind, error| match kind {
            EventKind::UnitEnded(ended) if ended.verdict == Verdict::Pass => {
                let message = format!("the test passed, but {}", unwritten(error));
                let verdict = Verdict::Error(Fault::Host { message: message.clone() });
                EventKind::UnitEnded(UnitEnded { verdict, flaky: false, message: Some(message), ..ended })
            }
            other => other,
        });
        written.note_failure();
        match told {
            EventKind::UnitEnded(told) => told,
            _ => ended,
        }
    }

    fn write(&self, scope: Option<Scope>, kind: EventKind) {
        let mut written = self.0.borrow_mut();
        written.log.emit_in(scope, kind);
        written.note_failure();
    }

    /// Logs the last event; see [`EventLog::end`].
    pub(crate) fn end(
        &self,
        kind: EventKind,
        unlogged: impl FnOnce(EventKind, &std::io::Error) -> EventKind,
    ) -> EventKind {
        self.0.borrow_mut().log.end(kind, unlogged)
    }

    /// Why the log is no longer whole, in a person's words, if it is not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.borrow().failure.clone()
    }
}
