//! How a call ended.

use std::{fs, os::unix::process::ExitStatusExt as _, process::ExitStatus, time::Duration};

use serde_json::Value;

use super::Lab;

/// A call that has ended.
#[derive(Debug)]
pub(crate) struct Outcome<'a> {
    pub(super) lab: &'a Lab,
    /// Its exit code or signal.
    pub(crate) status: ExitStatus,
    /// All of it.
    pub(crate) stdout: Vec<u8>,
    /// All of it.
    pub(crate) stderr: String,
    /// Since its start.
    pub(crate) elapsed: Duration,
}

impl Outcome<'_> {
    /// Fails unless it exited so.
    #[track_caller]
    pub(crate) fn code(&self, code: i32) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(code),
            "signal {:?}\nstderr: {}\nstdout: {}\nQEMU saw: {}",
            self.status.signal(),
            self.stderr,
            self.text(),
            self.lab.seen()
        );
        self
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless standard output is this.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "stderr: {}", self.stderr);
        self
    }

    /// Fails unless standard output has this in it.
    #[track_caller]
    pub(crate) fn tells(&self, text: &str) -> &Self {
        let told = self.text();
        assert!(told.contains(text), "{text:?} is not in stdout: {told}\nstderr: {}", self.stderr);
        self
    }

    /// Fails unless standard error has this in it.
    #[track_caller]
    pub(crate) fn complains(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} is not in stderr: {}", self.stderr);
        self
    }

    /// Fails if this is anywhere in what was said or kept.
    #[track_caller]
    pub(crate) fn keeps_secret(&self, text: &str) -> &Self {
        assert!(!self.stderr.contains(text), "stderr: {}", self.stderr);
        assert!(!self.text().contains(text), "stdout: {}", self.text());
        for run in self.lab.runs() {
            for name in ["events.jsonl", "qemu.log", "qemu.cmd"] {
                let kept = fs::read(run.join(name)).unwrap_or_default();
                assert!(!String::from_utf8_lossy(&kept).contains(text), "{text:?} is in {name}");
            }
        }
        self
    }

    /// A file of the last run.
    pub(crate) fn kept(&self, name: &str) -> Vec<u8> {
        self.lab.runs().last().and_then(|run| fs::read(run.join(name)).ok()).unwrap_or_default()
    }

    /// The event log of the last run.
    pub(crate) fn events(&self) -> Vec<Value> {
        let log = String::from_utf8(self.kept("events.jsonl")).expect("events are text");
        log.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    /// What happened to the machine and its disks.
    pub(crate) fn controls(&self) -> Vec<String> {
        let of = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let events = self.events().into_iter().filter(|event| event["kind"] == "control");
        events
            .map(|event| format!("{}: {} ({})", of(&event, "device"), of(&event, "order"), of(&event, "outcome")))
            .collect()
    }

    /// Whether a run has begun to log.
    pub(crate) fn has_events(&self) -> bool {
        !self.kept("events.jsonl").is_empty()
    }

    /// The verdict that the event log ends with, as `crash/panic`, `timeout/boot`, `pass`….
    #[track_caller]
    pub(crate) fn verdict(&self) -> String {
        let events = self.events();
        let last = events.last().expect("an event");
        assert_eq!(last["kind"], "run-ended", "{last}");
        assert_eq!(last["exit_code"].as_i64(), self.status.code().map(i64::from), "{last}");
        let name = last["verdict"].as_str().unwrap_or("?").to_owned();
        let detail = &last["detail"];
        match detail.get("kind").unwrap_or(detail) {
            Value::String(detail) => format!("{name}/{detail}"),
            Value::Object(map) => format!("{name}/{}", map.keys().next().map_or("", String::as_str)),
            _ => name,
        }
    }

    /// Standard error without what differs from run to run, for a snapshot.
    pub(crate) fn stderr_plain(&self) -> String {
        // How long a phase takes is the host's affair.
        let lines = self.stderr.split_inclusive('\n').filter(|line| !line.starts_with("belljar: still "));
        let mut text: String = lines.collect();
        if let Some(run) = self.lab.runs().last().and_then(|r| r.file_name()?.to_str().map(str::to_owned)) {
            text = text.replace(&run, "[RUN]");
        }
        text = text.replace(&self.lab.path("").display().to_string(), "[LAB]/");
        text.replace(&super::fake_qemu().display().to_string(), "[QEMU]")
    }
}

/// Filters for what is left in [`Outcome::stderr_plain`].
pub(crate) const FILTERS: [(&str, &str); 2] = [(r"\d+(\.\d+)? (s|ms|min)\b", "[TIME]"), (r"pid \d+", "pid [PID]")];

/// Holds what was said on standard error against what it should be.
macro_rules! snapshot {
    ($outcome:expr) => {
        insta::with_settings!({ filters => $crate::harness::FILTERS.to_vec() }, {
            insta::assert_snapshot!($outcome.stderr_plain());
        })
    };
}
pub(crate) use snapshot;
