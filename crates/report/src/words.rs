//! How verdicts and times are said, the same in every report.

use belljar_model::{
    Exit, Verdict,
    summary::{RunSummary, UnitState, UnitSummary},
    verdict::{Fault, signal_name},
};

/// What became of a unit, as a report says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It passed at once.
    Pass,
    /// It passed after a try that failed.
    Flaky,
    /// It failed.
    Fail,
    /// A deadline passed.
    Timeout,
    /// The guest died.
    Crash,
    /// It could not be judged.
    Error,
    /// It was skipped.
    Skip,
    /// It was not begun, since the run stopped early.
    NotRun,
    /// It was begun or planned, and the log ends before its end.
    Unfinished,
}

impl Outcome {
    /// Of a unit of a run. What was planned and not begun is [`NotRun`](Self::NotRun) if the run came to its own end, and
    /// [`Unfinished`](Self::Unfinished) if it was cut off.
    #[must_use]
    pub fn of(unit: &UnitSummary, run: &RunSummary) -> Self {
        match &unit.state {
            UnitState::Skipped(_) => Self::Skip,
            UnitState::Ended(ended) => match &ended.verdict {
                Verdict::Pass if ended.flaky => Self::Flaky,
                verdict => Self::of_verdict(verdict),
            },
            UnitState::Planned if !run.is_cut_off() => Self::NotRun,
            UnitState::Planned | UnitState::Running => Self::Unfinished,
        }
    }

    /// Of one try.
    #[must_use]
    pub fn of_verdict(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Fail(_) => Self::Fail,
            Verdict::Skip(_) => Self::Skip,
            Verdict::Timeout(_) => Self::Timeout,
            Verdict::Crash(_) => Self::Crash,
            Verdict::Error(_) => Self::Error,
        }
    }

    /// One word for it, in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Flaky => "flaky",
            Self::Fail => "fail",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
            Self::Error => "error",
            Self::Skip => "skip",
            Self::NotRun => "not-run",
            Self::Unfinished => "unfinished",
        }
    }

    /// Whether somebody has to look at it.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Timeout | Self::Crash | Self::Error | Self::Unfinished)
    }
}

/// A verdict in a few words.
#[must_use]
pub fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Pass => "passed".to_owned(),
        Verdict::Fail(Exit::Code(0)) => "failed although its exit code is 0".to_owned(),
        Verdict::Fail(exit) => exit.to_string(),
        Verdict::Skip(why) => format!("skipped: {why}"),
        Verdict::Timeout(phase) => format!("timed out while {phase}"),
        Verdict::Crash(crash) => format!("{} while {}: {}", crash.kind, crash.phase, crash.seen),
        Verdict::Error(Fault::Host { message }) => message.clone(),
        Verdict::Error(Fault::Interrupted { signal }) => {
            format!("interrupted by {}", signal_name(*signal).unwrap_or("a signal"))
        }
        Verdict::Error(Fault::OutputClosed) => "nobody reads the output any more".to_owned(),
    }
}

/// Why a unit has the outcome that it has.
#[must_use]
pub fn reason(unit: &UnitSummary, run: &RunSummary) -> String {
    match (&unit.state, Outcome::of(unit, run)) {
        (UnitState::Skipped(why), _) => why.clone(),
        (UnitState::Ended(ended), _) => describe(&ended.verdict),
        (_, Outcome::NotRun) => {
            let why = run.stopping.as_ref().map_or("the run stopped early", |s| s.reason.as_str());
            format!("not run: {why}")
        }
        (UnitState::Running, _) => "it was running when the run was cut off".to_owned(),
        _ => "it was not begun when the run was cut off".to_owned(),
    }
}

/// Seconds to the millisecond.
#[must_use]
pub fn seconds(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// A duration for a person: `850ms`, `4.2s`, `3m 07s`, `2h 05m`.
#[must_use]
pub fn duration(millis: u64) -> String {
    let s = millis / 1000;
    match s {
        0 => format!("{millis}ms"),
        1..=59 => format!("{s}.{}s", millis % 1000 / 100),
        60..=3599 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s / 60 % 60),
    }
}

/// Text that can do nothing to a terminal: control characters, and characters that turn the direction of writing, become visible or
/// are replaced. Line feeds and tabs stay.
#[must_use]
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            // The pictures of the control characters.
            '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
            '\x7f' => '\u{2421}',
            '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => '\u{fffd}',
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(seconds(61_005), "61.005");
        assert_eq!([0, 999, 4250, 187_000, 7_500_000].map(duration), ["0ms", "999ms", "4.2s", "3m 07s", "2h 05m"]);
    }

    #[test]
    fn nothing_reaches_a_terminal() {
        assert_eq!(harmless("a\x1b[31m\r\u{9b}b\u{202e}\n\tä"), "a␛[31m␍\u{fffd}b\u{fffd}\n\tä");
    }
}
