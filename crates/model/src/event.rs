//! The event log: one JSON object a line, the only truth about a run.
//!
//! ```text
//! {"seq":0,"at":"2026-11-22T23:06:38.123Z","kind":"run-started","schema":2,"run":"2026…", …}
//! {"seq":1,"at":"…","kind":"choice","what":"accelerator","chosen":"tcg","why":"…"}
//! ```
//!
//! What a guest says while it is made and used has the same kinds whoever uses it. In a run of `belljar test` such a line names the try
//! that it is about:
//!
//! ```text
//! {"seq":9,"at":"…","kind":"phase","phase":"boot","unit":"storage/mkfs.sh@debian","repeat":1,"attempt":1,"instance":3}
//! ```
//!
//! The log is written before anything is told to a person. A reader ignores kinds and fields that it does not know;
//! [`SCHEMA`] rises when one that is here changes its meaning. A line is at most [`MAX_LINE`] bytes.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    run_id::RunId,
    test_run::{self, AttemptId},
    verdict::{Exit, Verdict},
};

/// Version of the schema of this module.
///
/// In version 1 what a guest said during a try had kinds of its own (`attempt-phase`, `attempt-choice`, `attempt-warning`, `attempt-alarm`,
/// `attempt-console`), with the same fields. They are read as what they are called now.
pub const SCHEMA: u32 = 2;

/// No line of an event log is longer; longer texts are cut before they are logged.
pub const MAX_LINE: usize = 64 * 1024;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line")]
pub struct Event {
    /// Counts from 0 without gaps.
    pub seq: u64,
    /// When, on the host's clock.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// During which try a guest said it; only with a kind that [`EventKind::is_of_guest`], and never in a run of `belljar run`.
    #[serde(flatten)]
    pub scope: Option<Scope>,
}

/// The try that a guest is made or used for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Scope {
    /// The try.
    #[serde(flatten)]
    pub attempt: AttemptId,
    /// The machine (see [`test_run::GuestStarted`]), as soon as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
}

/// An [`Event`] as it stands in the log.
#[derive(Deserialize)]
struct Line {
    seq: u64,
    at: Timestamp,
    #[serde(flatten)]
    kind: EventKind,
    // Of several flattened fields the last one may take what it reads away: many kinds have these fields for themselves.
    #[serde(flatten)]
    scope: ScopeFields,
}

/// Whatever these fields hold: in a kind that is not known they may be anything.
#[derive(Deserialize)]
struct ScopeFields {
    unit: Option<serde_json::Value>,
    repeat: Option<serde_json::Value>,
    attempt: Option<serde_json::Value>,
    instance: Option<serde_json::Value>,
}

impl ScopeFields {
    fn read(self) -> Result<Option<Scope>, serde_json::Error> {
        let Self { unit, repeat, attempt, instance } = self;
        if unit.is_none() && repeat.is_none() && attempt.is_none() {
            return Ok(None);
        }
        let whole = |field: Option<serde_json::Value>| field.unwrap_or_default();
        let attempt = AttemptId {
            unit: serde_json::from_value(whole(unit))?,
            repeat: serde_json::from_value(whole(repeat))?,
            attempt: serde_json::from_value(whole(attempt))?,
        };
        Ok(Some(Scope { attempt, instance: serde_json::from_value(whole(instance))? }))
    }
}

impl TryFrom<Line> for Event {
    type Error = serde_json::Error;

    fn try_from(line: Line) -> Result<Self, serde_json::Error> {
        let Line { seq, at, kind, scope } = line;
        let scope = if kind.is_of_guest() { scope.read()? } else { None };
        Ok(Self { seq, at, kind, scope })
    }
}

/// Whether a [`EventKind::Choice`] of this kind means that somebody has to wait, so that it is told without being asked for.
#[must_use]
pub fn takes_long(what: &str, chosen: &str) -> bool {
    matches!(what, "template" | "set-up") && matches!(chosen, "made" | "awaited")
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum EventKind {
    /// Always the first.
    RunStarted {
        /// [`SCHEMA`].
        schema: u32,
        /// Which run.
        run: RunId,
        /// Belljar's version.
        version: String,
        /// What the guest is, in a person's words.
        guest: String,
        /// The command for the guest; empty for a shell.
        command: Vec<String>,
    },
    /// Belljar chose something that the user had not fixed.
    #[serde(alias = "attempt-choice")]
    Choice {
        /// Such as `accelerator`, `kernel`, `access`, `session`, `share`.
        what: String,
        /// What was taken.
        chosen: String,
        /// Why this.
        why: String,
    },
    /// A phase began (and the one before ended).
    #[serde(alias = "attempt-phase")]
    Phase {
        /// The one that began.
        phase: Phase,
    },
    /// Something worth knowing that stops nothing.
    #[serde(alias = "attempt-warning")]
    Warning {
        /// In a person's words.
        message: String,
    },
    /// Something on the console that a person should see, such as a kernel's fault.
    #[serde(alias = "attempt-alarm")]
    Alarm {
        /// What kind, such as `kernel panic`.
        name: String,
        /// The line, without control characters.
        line: String,
        /// Whether the run, or the try, ends for it.
        fatal: bool,
        /// Whether it may be what the test has asked for: a disk that was told to fail.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ordered: bool,
    },
    /// A guard has seen something while the command ran.
    Finding {
        /// Which guard: `coredump`, `warning`, `taint`, `unit`, `oom`, `io-error`.
        guard: String,
        /// What it has seen, without control characters.
        text: String,
        /// What comes of it.
        outcome: FindingOutcome,
        /// Why it is allowed, if it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Something in the guest says how far it has come.
    Mark {
        /// In its own words, without control characters.
        text: String,
    },
    /// Somebody has something happen to the guest's devices.
    Control {
        /// To which, in the user's words.
        device: String,
        /// What, in the words in which it was asked for, without control characters.
        order: String,
        /// What came of it.
        outcome: String,
        /// Whether it was not done.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        refused: bool,
    },
    /// The command runs in the guest.
    CommandStarted {
        /// Its process id in the guest, where the session knows it.
        pid: Option<u32>,
    },
    /// The guest wrote a record, with this attempt's nonce, of how the command ended.
    CommandEnded {
        /// Its exit code, or the signal that ended it.
        exit: Exit,
        /// Wall-clock time from the start of the command, in milliseconds.
        millis: u64,
    },
    /// The last lines of the console, where they help to understand what follows.
    #[serde(alias = "attempt-console")]
    ConsoleTail {
        /// Without control characters.
        lines: Vec<String>,
    },
    /// Always the last. A log without it is of a run that was cut off.
    RunEnded {
        /// What became of it.
        #[serde(flatten)]
        verdict: Verdict,
        /// The exit code of the program.
        exit_code: u8,
        /// Where the verdict alone does not say it: what was attempted, what happened, what to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// The first of `belljar test`.
    TestRunStarted(test_run::TestRunStarted),
    /// A unit is to run.
    UnitPlanned(test_run::Unit),
    /// A unit is not to run.
    UnitSkipped(test_run::UnitSkipped),
    /// A try begins.
    AttemptStarted(test_run::AttemptStarted),
    /// A try takes long.
    UnitSlow(test_run::UnitSlow),
    /// What a try wrote.
    Output(test_run::Output),
    /// A case inside a test.
    Subresult(test_run::AttemptSubresult),
    /// What a try left in its output directory.
    AttemptFiles(test_run::AttemptFiles),
    /// A try is over.
    AttemptEnded(test_run::AttemptEnded),
    /// A unit is over.
    UnitEnded(test_run::UnitEnded),
    /// A machine begins.
    GuestStarted(test_run::GuestStarted),
    /// A machine is ready.
    GuestReady(test_run::GuestReady),
    /// A machine is no more.
    GuestEnded(test_run::GuestEnded),
    /// A set-up script begins.
    SetupStarted(test_run::SetupStarted),
    /// A set-up script is over.
    SetupEnded(test_run::SetupEnded),
    /// The run and all its timers stand still.
    Paused,
    /// They go on.
    Resumed,
    /// No new tests begin from here on.
    Stopping(test_run::Stopping),
    /// The last of `belljar test`. A log without it is of a run that was cut off.
    TestRunEnded(test_run::TestRunEnded),
    /// A kind that this version does not know, kept as it came. Readers ignore it.
    #[serde(untagged)]
    Unknown(BTreeMap<String, serde_json::Value>),
}

impl EventKind {
    /// Whether it tells of a guest that is made or used, so that in a run of `belljar test` it has a [`Scope`].
    #[must_use]
    pub fn is_of_guest(&self) -> bool {
        matches!(
            self,
            Self::Phase { .. }
                | Self::Choice { .. }
                | Self::Warning { .. }
                | Self::Alarm { .. }
                | Self::Finding { .. }
                | Self::Mark { .. }
                | Self::Control { .. }
                | Self::CommandStarted { .. }
                | Self::CommandEnded { .. }
                | Self::ConsoleTail { .. }
        )
    }
}

/// What comes of what a guard has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingOutcome {
    /// A test that would pass fails.
    Fail,
    /// It is told.
    Warn,
    /// The test's settings allow it.
    Allowed,
}

/// What a guard has seen, in one line.
#[must_use]
pub fn finding_text(text: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| text.to_owned(), |reason| format!("{text} (allowed: {reason})"))
}

/// What happened to a device, in one line.
#[must_use]
pub fn control_text(device: &str, order: &str, outcome: &str, refused: bool) -> String {
    let not = if refused { "refused: " } else { "" };
    let outcome = if outcome.is_empty() { String::new() } else { format!(" ({not}{outcome})") };
    format!("{device}: {order}{outcome}")
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the source, choosing the accelerator, writing boot files.
    Prepare,
    /// From QEMU's start until something answers.
    Boot,
    /// Climbing the access ladder.
    Access,
    /// Bringing up the session and the shares.
    Session,
    /// The command runs.
    Command,
    /// Writing shares back, ending the guest.
    Close,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing",
            Self::Boot => "booting",
            Self::Access => "getting in",
            Self::Session => "setting up",
            Self::Command => "running",
            Self::Close => "closing",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Crash, CrashKind, Fault};

    fn line(kind: EventKind) -> String {
        let event = Event { seq: 3, at: "2026-01-02T03:04:05.678Z".parse().unwrap(), kind, scope: None };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        text
    }

    #[test]
    fn the_schema_is_as_published() {
        assert_eq!(
            line(EventKind::Phase { phase: Phase::Boot }),
            r#"{"seq":3,"at":"2026-01-02T03:04:05.678Z","kind":"phase","phase":"boot"}"#
        );
        assert_eq!(
            line(EventKind::CommandEnded { exit: Exit::Signal { number: 9, core: false }, millis: 12 }),
            r#"{"seq":3,"at":"2026-01-02T03:04:05.678Z","kind":"command-ended","exit":{"signal":{"number":9,"core":false}},"millis":12}"#
        );
        assert_eq!(
            line(EventKind::RunEnded { verdict: Verdict::Pass, exit_code: 0, message: None }),
            r#"{"seq":3,"at":"2026-01-02T03:04:05.678Z","kind":"run-ended","verdict":"pass","exit_code":0}"#
        );
        assert_eq!(
            line(EventKind::RunEnded {
                verdict: Verdict::Crash(Crash { kind: CrashKind::Panic, seen: "x".into(), phase: Phase::Command }),
                exit_code: 121,
                message: Some("m".into()),
            }),
            r#"{"seq":3,"at":"2026-01-02T03:04:05.678Z","kind":"run-ended","verdict":"crash","detail":{"kind":"panic","seen":"x","phase":"command"},"exit_code":121,"message":"m"}"#
        );
        line(EventKind::RunEnded {
            verdict: Verdict::Error(Fault::Interrupted { signal: 2 }),
            exit_code: 130,
            message: None,
        });
    }
    #[test]
    fn a_guest_says_the_same_in_a_run_and_in_a_try() {
        let at = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let attempt = AttemptId { unit: "s/t@g".into(), repeat: 1, attempt: 2 };
        for instance in [None, Some(3)] {
            let scope = Some(Scope { attempt: attempt.clone(), instance });
            let event = Event { seq: 3, at, kind: EventKind::Phase { phase: Phase::Boot }, scope };
            let text = serde_json::to_string(&event).unwrap();
            assert!(text.contains(r#""kind":"phase","phase":"boot","unit":"s/t@g","repeat":1,"attempt":2"#), "{text}");
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        }
    }

    #[test]
    fn the_names_of_a_try_belong_together() {
        let read = |fields: &str| {
            let text = format!(r#"{{"seq":3,"at":"2026-01-02T03:04:05Z","kind":"warning","message":"x",{fields}}}"#);
            serde_json::from_str::<Event>(&text).map(|e| e.scope.is_some())
        };
        assert!(read(r#""unit":"a","repeat":1,"attempt":1"#).unwrap());
        assert!(!read(r#""mood":"fine""#).unwrap());
        for part in [r#""unit":"a""#, r#""unit":"a","repeat":1"#, r#""repeat":1,"attempt":1"#, r#""attempt":-1"#] {
            assert!(read(part).is_err(), "{part}");
        }
    }
}
