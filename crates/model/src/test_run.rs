//! What the event log of `belljar test` holds, beside the kinds that `belljar run` has too.
//!
//! ```text
//! test-run-started
//! unit-planned | unit-skipped            once for each unit, before anything runs
//! guest-started guest-ready guest-ended  one span for each machine
//! setup-started setup-ended
//! attempt-started
//!   phase, choice, warning, alarm        with the try's names: see Scope
//!   command-started command-ended
//!   unit-slow, output, subresult, console-tail, attempt-files
//! attempt-ended                          retry_in says whether there is another one
//! unit-ended                             the unit's final verdict
//! paused resumed stopping
//! test-run-ended                         a log without it is of a run that was cut off
//! ```
//!
//! All text in here has been cleaned of control sequences by whoever logs it; a reader still escapes it for its medium. Paths
//! are relative to the run's directory and have no `..`. Nothing here may make a line longer than
//! [`MAX_LINE`](crate::event::MAX_LINE): texts are cut to the bounds below before they are logged.

use std::{borrow::Borrow, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    exit_code,
    run_id::RunId,
    verdict::{Exit, Verdict},
};

/// Longest inline tail of an output, in bytes; the whole is in a file.
pub const MAX_TAIL: usize = 8 * 1024;
/// Longest name of a subresult, in bytes.
pub const MAX_NAME: usize = 512;
/// Longest message of anything, in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024;
/// Most files that one [`AttemptFiles`] names.
pub const MAX_FILES: usize = 100;

/// Names a unit: `suite/test@guest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitId(String);

impl UnitId {
    /// The unit of `test` of `suite` on `guest`.
    #[must_use]
    pub fn new(suite: &str, test: &str, guest: &str) -> Self {
        Self(format!("{suite}/{test}@{guest}"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for UnitId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Borrow<str> for UnitId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one try at a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// Of which unit.
    pub unit: UnitId,
    /// Which of the repetitions that `--repeat` asks for; the first is 1.
    pub repeat: u32,
    /// Which try within that repetition; the first is 1, what follows are retries.
    pub attempt: u32,
}

/// A run of `belljar test` begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRunStarted {
    /// [`SCHEMA`](crate::event::SCHEMA).
    pub schema: u32,
    /// Which run.
    pub run: RunId,
    /// Belljar's version.
    pub version: String,
    /// Where it runs.
    pub host: Host,
    /// The profile in force.
    pub profile: String,
    /// The command line, program first.
    pub command: Vec<String>,
    /// Which part of the suite, such as `hash:2/4`; `None` is all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Of a merged run: which parts it lacks, for a person, such as `hash:2/4, hash:3/4`. Its tests are not all that there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// How many machines at once at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs: Option<u32>,
}

/// The machine that the run is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its host name.
    pub name: String,
    /// Its kernel, such as `Linux 6.12.5`.
    pub kernel: String,
    /// Such as `x86_64`.
    pub arch: String,
    /// Processors that may be used.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// `kvm` or `tcg`.
    pub accelerator: String,
}

/// One test on one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `suite/test@guest`.
    pub unit: UnitId,
    /// The suite's name.
    pub suite: String,
    /// The test's name within the suite.
    pub test: String,
    /// The guest's name.
    pub guest: String,
    /// Its tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The test's file, relative to the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// A unit will not run, as was known before anything ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSkipped {
    /// The test and its guest.
    #[serde(flatten)]
    pub unit: Unit,
    /// In a person's words, such as that the guest's image is not there.
    pub reason: String,
}

/// A try begins. Logged before anything is done for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptStarted {
    /// The try that begins.
    #[serde(flatten)]
    pub id: AttemptId,
    /// In which machine (see [`GuestStarted`]), where that is known already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
    /// On which of the places that `-j` gives; the first is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
}

/// Where an output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// The command's standard output.
    Stdout,
    /// The command's standard error.
    Stderr,
    /// Both, in the order in which they came.
    Combined,
    /// The guest's console.
    Console,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Combined => "output",
            Self::Console => "console",
        })
    }
}

/// What a try wrote to one stream, when it had ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The try that wrote it.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Which stream.
    pub stream: Stream,
    /// How many bytes there were.
    pub bytes: u64,
    /// Whether the file lacks some of them (a limit was reached).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The file that holds them; none if there was nothing to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The last of it, at most [`MAX_TAIL`] bytes, without control sequences.
    pub tail: String,
}

/// What became of one case inside a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubVerdict {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It could not be judged.
    Error,
    /// It does not apply here.
    Skip,
    /// It failed, as its author says it would (TAP's `TODO`, kselftest's `XFAIL`).
    ExpectedFail,
    /// It was announced and never heard of.
    Missing,
}

impl SubVerdict {
    /// Whether the test as a whole cannot pass with this in it.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Error | Self::Missing)
    }

    /// One word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Skip => "skip",
            Self::ExpectedFail => "expected-fail",
            Self::Missing => "missing",
        }
    }
}

impl fmt::Display for SubVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One case inside a test: a TAP line, a JUnit case, a libtest or kselftest result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subresult {
    /// Its name; parts of a nested one are joined by ` > `.
    pub name: String,
    /// What became of it.
    pub result: SubVerdict,
    /// Why, at most [`MAX_MESSAGE`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
}

/// A case inside a test of a try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptSubresult {
    /// The try that it is a part of.
    #[serde(flatten)]
    pub id: AttemptId,
    /// The case's name and what became of it.
    #[serde(flatten)]
    pub subresult: Subresult,
}

/// A try takes longer than `slow-timeout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSlow {
    /// The try that is slow.
    #[serde(flatten)]
    pub id: AttemptId,
    /// How long it has run by now, in milliseconds.
    pub millis: u64,
}

/// One file left for the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftFile {
    /// Relative to the output directory.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// What a try left in its output directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptFiles {
    /// The try that left them.
    #[serde(flatten)]
    pub id: AttemptId,
    /// The output directory.
    pub dir: String,
    /// At most [`MAX_FILES`].
    pub files: Vec<LeftFile>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// A try is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEnded {
    /// The try that is over.
    #[serde(flatten)]
    pub id: AttemptId,
    /// What became of it. Where the results inside the test say that it failed although it exited with 0, this is
    /// `Fail(Exit::Code(0))`, and `message` says why.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// From its start, in milliseconds.
    pub millis: u64,
    /// How the command ended, if it was run and its end is vouched for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Where the verdict alone does not say it: what happened, what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The directory with everything that is kept of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<String>,
    /// The test is tried again, after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in: Option<u64>,
}

/// A unit is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitEnded {
    /// The unit that is over.
    pub unit: UnitId,
    /// The last word on it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// It passed, after a try that failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flaky: bool,
    /// How many tries there were, over all repetitions.
    pub attempts: u32,
    /// From the start of the first try to the end of the last, in milliseconds.
    pub millis: u64,
    /// Where the verdict alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A machine begins to exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStarted {
    /// Names it within the run.
    pub instance: u64,
    /// The guest's name.
    pub guest: String,
    /// On which of the places that `-j` gives; the first is 0.
    pub slot: u32,
}

/// A machine is ready for commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReady {
    /// The machine, as numbered by [`GuestStarted`].
    pub instance: u64,
    /// How it came to be, such as `boot` or `clone`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub how: String,
}

/// A machine is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEnded {
    /// The machine, as numbered by [`GuestStarted`].
    pub instance: u64,
    /// Why, if not because it was done with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The most memory that it took from the host, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// A set-up script begins on a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupStarted {
    /// The script, relative to the workspace; or, in words, what else was asked of the guest before its tests.
    pub script: String,
    /// On which guest.
    pub guest: String,
    /// In which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
}

/// A set-up script is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupEnded {
    /// As in [`SetupStarted`].
    pub script: String,
    /// On which guest.
    pub guest: String,
    /// In which machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u64>,
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// In milliseconds.
    pub millis: u64,
    /// Where the verdict alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The file with its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The last of its output, at most [`MAX_TAIL`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tail: String,
}

/// No new tests begin from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Why, such as `fail-fast` or `interrupted by SIGINT`.
    pub reason: String,
    /// How many tries are running and are cancelled or waited for.
    #[serde(default, skip_serializing_if = "is_zero_u32")]
    pub running: u32,
}

/// A run of `belljar test` is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRunEnded {
    /// How many units ended how.
    pub counts: Counts,
    /// The exit code of the program.
    pub exit_code: u8,
    /// From the start, without pauses, in milliseconds.
    pub millis: u64,
    /// Where the counts alone do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How many units ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// All that were planned, skipped ones included.
    pub units: u64,
    /// Passed, flaky ones included.
    pub pass: u64,
    /// Passed after a try that failed; part of `pass`.
    pub flaky: u64,
    /// Failed.
    pub fail: u64,
    /// Ran into a deadline.
    pub timeout: u64,
    /// Lost their guest.
    pub crash: u64,
    /// Could not be judged: our side, or the host's.
    pub error: u64,
    /// Skipped, by plan or by the test itself.
    pub skip: u64,
    /// Planned, and not ended.
    pub unfinished: u64,
}

impl Counts {
    /// Those on which a test or its guest failed.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.fail + self.timeout + self.crash
    }

    /// Those that ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.pass + self.bad() + self.error + self.skip
    }

    /// Counts one unit's end.
    pub fn add(&mut self, verdict: &Verdict, flaky: bool) {
        match verdict {
            Verdict::Pass => {
                self.pass += 1;
                self.flaky += u64::from(flaky);
            }
            Verdict::Fail(_) => self.fail += 1,
            Verdict::Skip(_) => self.skip += 1,
            Verdict::Timeout(_) => self.timeout += 1,
            Verdict::Crash(_) => self.crash += 1,
            Verdict::Error(_) => self.error += 1,
        }
    }

    /// With which code `belljar test` exits, if nobody interrupted it: failed tests outrank errors, and a unit that did not
    /// end is no success.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.units == 0 {
            exit_code::NO_TESTS
        } else if self.bad() > 0 {
            exit_code::TESTS_FAILED
        } else if self.error > 0 || self.unfinished > 0 {
            exit_code::CANNOT_RUN
        } else {
            exit_code::OK
        }
    }
}

/// Cuts `text` from its front to at most `max` bytes, at a character's edge; for tails.
#[must_use]
pub fn keep_end(text: &str, max: usize) -> &str {
    let mut from = text.len().saturating_sub(max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Cuts `text` from its end to at most `max` bytes, at a character's edge; for names and messages.
#[must_use]
pub fn keep_start(text: &str, max: usize) -> &str {
    let mut to = max.min(text.len());
    while !text.is_char_boundary(to) {
        to -= 1;
    }
    &text[..to]
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!(keep_end("aé", 1), "");
        assert_eq!(keep_end("aé", 2), "é");
        assert_eq!(keep_start("éa", 1), "");
        assert_eq!(keep_start("éa", 2), "é");
        assert_eq!(keep_start("", 5), "");
    }

    #[test]
    fn failed_tests_outrank_errors() {
        let counts = Counts { units: 3, fail: 1, error: 1, pass: 1, ..Counts::default() };
        assert_eq!(counts.exit_code(), exit_code::TESTS_FAILED);
        assert_eq!(Counts { fail: 0, ..counts }.exit_code(), exit_code::CANNOT_RUN);
        assert_eq!(Counts { units: 1, pass: 1, ..Counts::default() }.exit_code(), exit_code::OK);
        assert_eq!(Counts { units: 1, unfinished: 1, ..Counts::default() }.exit_code(), exit_code::CANNOT_RUN);
        assert_eq!(Counts::default().exit_code(), exit_code::NO_TESTS);
    }
}
