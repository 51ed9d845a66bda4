//! Writes the event log, then tells who observes: in this order, so that a report made again knows no less.

use std::{io::Write, os::unix::fs::MetadataExt, path::Path};

use belljar_model::{Event, EventKind, Scope, event::MAX_LINE};
use fs_err::File;
use jiff::Timestamp;

/// Called with each event after it was logged.
pub type Observer = Box<dyn FnMut(&Event)>;

/// For a person: that the log could not be written, why, and what to do.
pub(crate) fn unwritten(error: &std::io::Error) -> String {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let hint = if matches!(error.kind(), StorageFull | QuotaExceeded) { "; free some space" } else { "" };
    format!("the event log could not be written: {error}{hint}")
}

/// The event log of one run.
pub struct EventLog {
    file: File,
    next: u64,
    observer: Observer,
    broken: Option<std::io::Error>,
    /// The last line may be there in part.
    torn: bool,
}

impl EventLog {
    /// Makes the file, which must not exist yet.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path, observer: Observer) -> std::io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self { file, next: 0, observer, broken: None, torn: false })
    }

    /// Logs one event. A log that cannot be written to any more does not stop the observer; see
    /// [`EventLog::take_failure`].
    pub fn emit(&mut self, kind: EventKind) {
        self.emit_in(None, kind);
    }

    /// The same, of what a guest said while it was made or used for a try.
    pub fn emit_in(&mut self, scope: Option<Scope>, kind: EventKind) {
        let event = self.event(scope, kind);
        let written = self.write(&event);
        self.tell(event, written, |kind, _| kind);
    }

    /// Logs the last event, and has the log brought to the disk. Where that fails, `unlogged` says what the observer is told
    /// instead. Gives what it was told.
    pub fn end(
        &mut self,
        kind: EventKind,
        unlogged: impl FnOnce(EventKind, &std::io::Error) -> EventKind,
    ) -> EventKind {
        let event = self.event(None, kind);
        let written = self.write(&event).and_then(|()| self.sync());
        self.tell(event, written, unlogged)
    }

    /// Logs what counts only if it is recorded: where it cannot be, `unlogged` says what the observer is told instead. Gives what it was
    /// told. See [`EventLog::take_failure`].
    pub fn emit_or(
        &mut self,
        kind: EventKind,
        unlogged: impl FnOnce(EventKind, &std::io::Error) -> EventKind,
    ) -> EventKind {
        let event = self.event(None, kind);
        let written = self.write(&event);
        self.tell(event, written, unlogged)
    }

    /// Tells of an event that was written, or could not be.
    fn tell(
        &mut self,
        mut event: Event,
        written: std::io::Result<()>,
        unlogged: impl FnOnce(EventKind, &std::io::Error) -> EventKind,
    ) -> EventKind {
        if let Err(error) = written {
            event.kind = unlogged(event.kind, &error);
            self.broken.get_or_insert(error);
        }
        (self.observer)(&event);
        event.kind
    }

    /// The first failure to write the log, if there was one: then no verdict of the run may be a pass.
    pub fn take_failure(&mut self) -> Option<std::io::Error> {
        self.broken.take()
    }

    fn event(&mut self, scope: Option<Scope>, kind: EventKind) -> Event {
        let event = Event { seq: self.next, at: Timestamp::now(), kind, scope };
        self.next += 1;
        event
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        if line.len() >= MAX_LINE {
            let message = format!("an event of {} bytes was left out of the log", line.len());
            line = serde_json::to_vec(&Event { kind: EventKind::Warning { message }, ..event.clone() })?;
        }
        line.push(b'\n');
        if self.torn {
            line.insert(0, b'\n');
        }
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        Ok(())
    }

    /// Some file systems find out only then that they have no room; and a log that somebody has removed records nothing.
    fn sync(&self) -> std::io::Result<()> {
        if self.file.file().metadata()?.nlink() == 0 {
            return Err(std::io::Error::other("it was removed while the run went on"));
        }
        match self.file.file().sync_data() {
            // The file system has nothing to bring anywhere.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
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
        let said = Rc::new(RefCell::new(Vec::new()));
        let saying = Rc::clone(&said);
        let mut log = EventLog {
            file: File::options().write(true).open("/dev/full").unwrap(),
            next: 0,
            observer: Box::new(move |event| saying.borrow_mut().push(event.kind.clone())),
            broken: None,
            torn: false,
        };
        let warning = |text: &str| EventKind::Warning { message: text.into() };
        log.emit(warning("x"));
        assert!(log.take_failure().is_some());
        let told = log.emit_or(warning("pass"), |_, error| warning(&error.kind().to_string()));
        assert!(log.take_failure().is_some());
        assert_eq!((said.borrow_mut().pop(), told), (Some(warning("no storage space")), warning("no storage space")));
        let told = log.end(warning("well"), |_, error| warning(&error.kind().to_string()));
        assert_eq!(told, warning("no storage space"));
        assert_eq!(*said.borrow(), [warning("x"), told]);
    }

    #[test]
    fn a_log_that_was_removed_records_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::create(&path, Box::new(|_| ())).unwrap();
        log.emit(EventKind::Paused);
        fs_err::remove_file(&path).unwrap();
        let said = |_, error: &std::io::Error| EventKind::Warning { message: error.to_string() };
        let told = log.end(EventKind::Resumed, said);
        assert_eq!(told, EventKind::Warning { message: "it was removed while the run went on".into() });
    }

    #[test]
    fn what_follows_a_torn_line_is_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let mut log = EventLog::create(&path, Box::new(|_| ())).unwrap();
        log.file.write_all(b"{\"seq\":0,\"at").unwrap();
        log.torn = true;
        let last = EventKind::Warning { message: "last".into() };
        log.end(last.clone(), |_, error| panic!("{error}"));
        let text = fs_err::read_to_string(&path).unwrap();
        let event: Event = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!((event.kind, text.lines().count()), (last, 2));
    }
}
