//! Writes the event log, then tells who observes: in this order, so that a report made again knows no less.

use std::{io::Write, path::Path};

use belljar_model::{Event, EventKind, event::MAX_LINE};
use fs_err::File;
use jiff::Timestamp;

/// Called with each event after it was logged.
pub type Observer = Box<dyn FnMut(&Event)>;

/// The event log of one run.
pub struct EventLog {
    file: File,
    next: u64,
    observer: Observer,
    broken: Option<std::io::Error>,
}

impl EventLog {
    /// Makes the file, which must not exist yet.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path, observer: Observer) -> std::io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self { file, next: 0, observer, broken: None })
    }

    /// Logs one event. A log that cannot be written to any more does not stop the observer; see
    /// [`EventLog::take_failure`].
    pub fn emit(&mut self, kind: EventKind) {
        let event = Event { seq: self.next, at: Timestamp::now(), kind };
        self.next += 1;
        if self.broken.is_none()
            && let Err(error) = self.write(&event)
        {
            self.broken = Some(error);
        }
        (self.observer)(&event);
    }

    /// The first failure to write the log, if there was one: then no verdict of the run may be a pass.
    pub fn take_failure(&mut self) -> Option<std::io::Error> {
        self.broken.take()
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        if line.len() >= MAX_LINE {
            let message = format!("an event of {} bytes was left out of the log", line.len());
            line = serde_json::to_vec(&Event { kind: EventKind::Warning { message }, ..event.clone() })?;
        }
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;

    #[test]
    fn a_line_each_in_order_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let seen = Rc::new(RefCell::new(0));
        let counter = Rc::clone(&seen);
        let mut log = EventLog::create(&path, Box::new(move |_| *counter.borrow_mut() += 1)).unwrap();
        log.emit(EventKind::Warning { message: "one\ntwo".into() });
        log.emit(EventKind::Warning { message: "x".repeat(MAX_LINE * 2) });
        assert!(log.take_failure().is_none());
        let text = fs_err::read_to_string(&path).unwrap();
        let events: Vec<Event> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1]);
        assert!(text.lines().all(|l| l.len() < MAX_LINE));
        assert_eq!(*seen.borrow(), 2);
        assert!(EventLog::create(&path, Box::new(|_| ())).is_err(), "a log is never written over");
    }

    #[test]
    fn a_full_disk_is_not_forgotten() {
        let mut log = EventLog {
            file: File::options().write(true).open("/dev/full").unwrap(),
            next: 0,
            observer: Box::new(|_| ()),
            broken: None,
        };
        log.emit(EventKind::Warning { message: "x".into() });
        assert!(log.take_failure().is_some());
    }
}
