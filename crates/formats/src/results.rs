//! What a test says of itself, and what to make of it.

use belljar_model::{
    Exit, Verdict,
    test_run::{MAX_MESSAGE, MAX_NAME, SubVerdict, Subresult, keep_start},
};

/// Most cases that are kept of one test.
pub const MAX_CASES: usize = 10_000;
/// Most bytes of messages that are kept of one test.
const MAX_MESSAGES: usize = 4 * 1024 * 1024;
/// Most problems that are kept of one test.
const MAX_PROBLEMS: usize = 20;
/// Cases that a message names.
const NAMED: usize = 3;

/// What a test says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The cases, at most [`MAX_CASES`].
    pub cases: Vec<Subresult>,
    /// How many more there were.
    pub dropped: u64,
    /// How many of those were bad.
    pub dropped_bad: u64,
    /// What is wrong with what was read; with any of these the test did not pass.
    pub problems: Vec<String>,
    /// Results that a test which ran would have left and this one did not. As bad as a problem, unless the test says by its exit
    /// code that it does not apply.
    pub absent: Option<String>,
    /// The test says that it does not apply at all, for this reason.
    pub skipped: Option<String>,
    message_bytes: usize,
}

impl Results {
    /// Those of a test that should have left some.
    #[must_use]
    pub fn lacking(why: impl Into<String>) -> Self {
        Self { absent: Some(why.into()), ..Self::default() }
    }

    /// Whether anything is in them at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty() && self.dropped == 0 && self.skipped.is_none()
    }

    /// Adds those of another file of the same test.
    pub fn extend(&mut self, other: Self) {
        for case in other.cases {
            self.add(case);
        }
        self.dropped += other.dropped;
        self.dropped_bad += other.dropped_bad;
        for problem in other.problems {
            self.problem(problem);
        }
        self.absent = self.absent.take().or(other.absent);
        self.skipped = self.skipped.take().or(other.skipped);
    }

    /// Adds a case, cut to what an event may hold.
    pub(crate) fn add(&mut self, mut case: Subresult) {
        if self.cases.len() >= MAX_CASES {
            self.dropped += 1;
            self.dropped_bad += u64::from(case.result.is_bad());
            return;
        }
        if case.name.len() > MAX_NAME {
            case.name = keep_start(&case.name, MAX_NAME).to_owned();
        }
        let room = MAX_MESSAGE.min(MAX_MESSAGES.saturating_sub(self.message_bytes));
        case.message = case.message.filter(|m| !m.trim().is_empty() && room > 0).map(|mut m| {
            m.truncate(keep_start(&m, room).len());
            m
        });
        self.message_bytes += case.message.as_ref().map_or(0, String::len);
        self.cases.push(case);
    }

    /// Something is wrong with what was read, or was not read.
    pub fn problem(&mut self, what: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            let what: String = what.into();
            self.problems.push(keep_start(&what, MAX_MESSAGE / 4).to_owned());
        }
    }

    fn count(&self, which: impl Fn(SubVerdict) -> bool) -> u64 {
        self.cases.iter().filter(|c| which(c.result)).count() as u64
    }
}

/// The verdict on a test that ended with `exit` and wrote `results`, and what to tell of it.
///
/// It passes only if it exited with 0, at least one case passed, none was bad, and nothing is wrong with the results. `skips`: its
/// exit code says that it does not apply; that it is believed only where no case passed or failed. `said` is the last line of its
/// output, the reason where the results give none.
#[must_use]
pub fn judge(exit: Exit, results: &Results, skips: bool, said: Option<&str>) -> (Verdict, Option<String>) {
    let total = results.cases.len() as u64 + results.dropped;
    let passed = results.count(|r| r == SubVerdict::Pass);
    // What did not run, in a test that says that it does not apply.
    let excused = |r: SubVerdict| skips && r == SubVerdict::Missing;
    let counts = |r: SubVerdict| r.is_bad() && !excused(r);
    let bad = if passed > 0 { results.count(SubVerdict::is_bad) } else { results.count(counts) } + results.dropped_bad;
    if bad > 0 {
        let named: Vec<&str> =
            results.cases.iter().filter(|c| c.result.is_bad()).take(NAMED).map(|c| c.name.as_str()).collect();
        let more = if bad > named.len() as u64 { ", …" } else { "" };
        let mut message = format!("{bad} of {total} cases failed: {}{more}", named.join(", "));
        for problem in results.problems.iter().chain(&results.absent) {
            message.push('\n');
            message.push_str(problem);
        }
        return (Verdict::Fail(exit), Some(message));
    }
    if skips && passed == 0 && results.problems.is_empty() {
        let of_a_case =
            || results.cases.iter().filter(|c| c.result == SubVerdict::Skip).find_map(|c| c.message.clone());
        let why = results.skipped.clone().or_else(of_a_case).or_else(|| said.map(str::to_owned));
        return (Verdict::Skip(why.unwrap_or_else(|| exit.to_string())), None);
    }
    if results.absent.is_some() || !results.problems.is_empty() {
        let all: Vec<&str> = results.problems.iter().chain(&results.absent).map(String::as_str).collect();
        return (Verdict::Fail(exit), Some(all.join("\n")));
    }
    if exit != Exit::Code(0) {
        let message = if total > 0 { Some(format!("no case failed of {total}, but: {exit}")) } else { None };
        return (Verdict::Fail(exit), message);
    }
    if passed > 0 || results.dropped > results.dropped_bad {
        return (Verdict::Pass, None);
    }
    if let Some(why) = &results.skipped {
        return (Verdict::Skip(why.clone()), None);
    }
    if total > 0 {
        let why = match results.cases.iter().find_map(|c| c.message.as_deref()) {
            Some(why) => format!("none of {total} cases ran: {}", why.lines().next().unwrap_or_default()),
            None => format!("none of {total} cases ran"),
        };
        return (Verdict::Skip(why), None);
    }
    (Verdict::Fail(exit), Some("the test wrote no results".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(results: &[SubVerdict]) -> Results {
        let mut all = Results::default();
        for (n, result) in results.iter().enumerate() {
            all.add(Subresult { name: format!("c{n}"), result: *result, message: None, millis: None });
        }
        all
    }

    #[test]
    fn what_passes_nothing_is_no_pass() {
        let exit = Exit::Code(0);
        assert!(matches!(judge(exit, &with(&[]), false, None).0, Verdict::Fail(_)));
        assert!(matches!(judge(exit, &with(&[SubVerdict::Skip]), false, None).0, Verdict::Skip(_)));
        assert!(matches!(judge(exit, &with(&[SubVerdict::ExpectedFail]), false, None).0, Verdict::Skip(_)));
        assert_eq!(judge(exit, &with(&[SubVerdict::Pass, SubVerdict::Skip]), false, None).0, Verdict::Pass);
    }

    #[test]
    fn messages_name_the_first_failures() {
        let (verdict, message) = judge(Exit::Code(0), &with(&[SubVerdict::Fail; 5]), false, None);
        assert_eq!(verdict, Verdict::Fail(Exit::Code(0)));
        assert_eq!(message.as_deref(), Some("5 of 5 cases failed: c0, c1, c2, …"));
    }

    #[test]
    fn the_skip_code_skips_only_what_neither_passed_nor_failed() {
        let exit = Exit::Code(77);
        let told = |cases: &[SubVerdict], skips| judge(exit, &with(cases), skips, Some("no such device")).0;
        let skip = Verdict::Skip("no such device".into());
        assert_eq!(told(&[], true), skip);
        assert_eq!(told(&[SubVerdict::Skip, SubVerdict::Missing], true), skip);
        for ran in [SubVerdict::Pass, SubVerdict::Fail, SubVerdict::Error] {
            assert_eq!(told(&[ran, SubVerdict::Missing], true), Verdict::Fail(exit), "{ran:?}");
        }
        assert_eq!(told(&[], false), Verdict::Fail(exit));
        let mut none = Results::lacking("there is no TAP");
        assert_eq!(judge(exit, &none, true, None).0, Verdict::Skip("exit code 77".into()));
        assert_eq!(judge(exit, &none, false, None), (Verdict::Fail(exit), Some("there is no TAP".into())));
        none.problem("Bail out!");
        assert_eq!(judge(exit, &none, true, None).0, Verdict::Fail(exit));
    }

    proptest! {
        #[test]
        fn a_pass_needs_all_of_it(
            code in prop_oneof![Just(0_u8), any::<u8>()],
            killed in any::<bool>(),
            cases in prop::collection::vec(0..6_usize, 0..6),
            problem in any::<bool>(),
            absent in any::<bool>(),
            skips in any::<bool>(),
        ) {
            const ALL: [SubVerdict; 6] = [
                SubVerdict::Pass, SubVerdict::Fail, SubVerdict::Error,
                SubVerdict::Skip, SubVerdict::ExpectedFail, SubVerdict::Missing,
            ];
            let cases: Vec<SubVerdict> = cases.into_iter().map(|i| ALL[i]).collect();
            let mut results = with(&cases);
            if problem {
                results.problem("odd");
            }
            results.absent = absent.then(|| "there is none".to_owned());
            let exit = if killed { Exit::Signal { number: 9, core: false } } else { Exit::Code(code) };
            let good = exit == Exit::Code(0) && !problem && !absent
                && cases.contains(&SubVerdict::Pass) && !cases.iter().any(|c| c.is_bad());
            prop_assert_eq!(judge(exit, &results, skips, None).0 == Verdict::Pass, good);
        }
    }
}
