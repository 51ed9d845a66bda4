//! The event log: one JSON object a line, the only truth about a run.
//!
//! ```text
//! {"seq":0,"at":"2026-11-22T23:06:38.123Z","kind":"run-started","schema":1,"run":"2026…", …}
//! {"seq":1,"at":"…","kind":"choice","what":"accelerator","chosen":"tcg","why":"…"}
//! ```
//!
//! The log is written before anything is told to a person. A reader ignores kinds and fields that it does not know;
//! [`SCHEMA`] rises when one that is here changes its meaning. A line is at most [`MAX_LINE`] bytes.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    run_id::RunId,
    test_run,
    verdict::{Exit, Verdict},
};

/// Version of the schema of this module.
pub const SCHEMA: u32 = 1;

/// No line of an event log is longer; longer texts are cut before they are logged.
pub const MAX_LINE: usize = 64 * 1024;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 0 without gaps.
    pub seq: u64,
    /// When, on the host's clock.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
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
    Choice {
        /// Such as `accelerator`, `kernel`, `access`, `session`, `share`.
        what: String,
        /// What was taken.
        chosen: String,
        /// Why this.
        why: String,
    },
    /// A phase began (and the one before ended).
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Something worth knowing that stops nothing.
    Warning {
        /// What.
        message: String,
    },
    /// Something on the console that a person should see, such as a kernel's fault.
    Alarm {
        /// What kind, such as `kernel panic`.
        name: String,
        /// The line, without control characters.
        line: String,
        /// Whether the run ends for it.
        fatal: bool,
    },
    /// The command runs in the guest.
    CommandStarted {
        /// Its process id in the guest, where the session knows it.
        pid: Option<u32>,
    },
    /// The guest wrote a record, with this attempt's nonce, of how the command ended.
    CommandEnded {
        /// How.
        exit: Exit,
        /// Wall-clock time from the start of the command, in milliseconds.
        millis: u64,
    },
    /// The last lines of the console, where they help to understand what follows.
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
    /// A try is in a new phase.
    AttemptPhase(test_run::AttemptPhase),
    /// Belljar chose something for a try.
    AttemptChoice(test_run::AttemptChoice),
    /// Something worth knowing of a try.
    AttemptWarning(test_run::AttemptWarning),
    /// Something on the console during a try.
    AttemptAlarm(test_run::AttemptAlarm),
    /// A try takes long.
    UnitSlow(test_run::UnitSlow),
    /// What a try wrote.
    Output(test_run::Output),
    /// A case inside a test.
    Subresult(test_run::AttemptSubresult),
    /// The console's last lines of a try.
    AttemptConsole(test_run::AttemptConsole),
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
        let event = Event { seq: 3, at: "2026-01-02T03:04:05.678Z".parse().unwrap(), kind };
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
}
