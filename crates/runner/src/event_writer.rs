//! One event log for everything that goes on at the same time.

use std::{cell::RefCell, rc::Rc};

use belljar_model::{AttemptId, EventKind, test_run as events};

use crate::log::EventLog;

/// Writes to the run's event log. Clones write to the same.
#[derive(Clone)]
pub(crate) struct EventWriter(Rc<RefCell<Written>>);

struct Written {
    log: EventLog,
    failure: Option<String>,
}

impl EventWriter {
    /// Writes to this log from now on.
    pub(crate) fn new(log: EventLog) -> Self {
        Self(Rc::new(RefCell::new(Written { log, failure: None })))
    }

    /// Writes one event.
    pub(crate) fn emit(&self, kind: EventKind) {
        let mut written = self.0.borrow_mut();
        written.log.emit(kind);
        if let Some(error) = written.log.take_failure() {
            written.failure.get_or_insert_with(|| error.to_string());
        }
    }

    /// Logs the last event; see [`EventLog::end`].
    pub(crate) fn end(
        &self,
        kind: EventKind,
        unlogged: impl FnOnce(EventKind, &std::io::Error) -> EventKind,
    ) -> EventKind {
        self.0.borrow_mut().log.end(kind, unlogged)
    }

    /// Why the log is no longer whole, if it is not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.borrow().failure.clone()
    }

    /// What a guest says while it is used for this try; nothing of what is told elsewhere.
    pub(crate) fn of_attempt(&self, id: &AttemptId, instance: u64, kind: EventKind) {
        let id = id.clone();
        let kind = match kind {
            EventKind::Phase { phase } => {
                EventKind::AttemptPhase(events::AttemptPhase { id, phase, instance: Some(instance) })
            }
            EventKind::Choice { what, chosen, why } => {
                EventKind::AttemptChoice(events::AttemptChoice { id, what, chosen, why })
            }
            EventKind::Warning { message } => EventKind::AttemptWarning(events::AttemptWarning { id, message }),
            EventKind::Alarm { name, line, fatal } => {
                EventKind::AttemptAlarm(events::AttemptAlarm { id, name, line, fatal })
            }
            _ => return,
        };
        self.emit(kind);
    }
}
