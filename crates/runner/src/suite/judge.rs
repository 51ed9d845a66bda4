//! The verdict on a test whose end the guest vouches for.

use belljar_formats::{Results, judge};
use belljar_model::{Exit, Verdict};
use belljar_suite::config::Format;

/// The exit code by which a test says that it does not apply (automake's, and everybody's).
pub(crate) const SKIP: u8 = 77;
/// kselftest's (`KSFT_SKIP` in the kernel's `tools/testing/selftests/kselftest.h`).
const KSFT_SKIP: u8 = 4;

/// Weighs the exit code with what the test wrote. `tail` is the end of its output, where a skip's reason stands.
pub(crate) fn verdict(
    exit: Exit,
    format: Format,
    written: Option<&Results>,
    junit: Option<&Results>,
    tail: &str,
) -> (Verdict, Option<String>) {
    let skip_code = if format == Format::Kselftest { KSFT_SKIP } else { SKIP };
    let mut results = written.cloned();
    if let Some(junit) = junit {
        match &mut results {
            Some(results) => results.extend(junit.clone()),
            none => *none = Some(junit.clone()),
        }
    }
    if format == Format::Junit && results.is_none() {
        if exit == Exit::Code(0) {
            let why = "the test left no JUnit file in $BELLJAR_OUT, and no new one in the workspace (see `junit`)";
            return (Verdict::Fail(exit), Some(why.to_owned()));
        }
        results = None;
    }
    let said = match &results {
        // Files picked up beside the exit code count only if something is in them.
        Some(results) if format != Format::Exit || !results.is_empty() || !results.problems.is_empty() => {
            return judge(exit, results, skip_code);
        }
        _ => tail.lines().rev().map(str::trim).find(|l| !l.is_empty()),
    };
    if exit == Exit::Code(skip_code) {
        let why = said.map_or_else(|| format!("exit code {skip_code}"), str::to_owned);
        return (Verdict::Skip(why), None);
    }
    (Verdict::of_exit(exit), None)
}

#[cfg(test)]
mod tests {
    use belljar_formats::junit::parse_junit;

    use super::*;

    const ZERO: Exit = Exit::Code(0);

    #[test]
    fn exit_codes_alone() {
        assert_eq!(verdict(ZERO, Format::Exit, None, None, "").0, Verdict::Pass);
        assert_eq!(verdict(Exit::Code(1), Format::Exit, None, None, "").0, Verdict::Fail(Exit::Code(1)));
        let skip = verdict(Exit::Code(77), Format::Exit, None, None, "a\nno loop devices here \n\n").0;
        assert_eq!(skip, Verdict::Skip("no loop devices here".into()));
        assert_eq!(verdict(Exit::Code(4), Format::Exit, None, None, "").0, Verdict::Fail(Exit::Code(4)));
        let killed = Exit::Signal { number: 9, core: false };
        assert_eq!(verdict(killed, Format::Exit, None, None, "").0, Verdict::Fail(killed));
    }

    #[test]
    fn junit_files_can_only_make_it_worse() {
        let bad = parse_junit(br#"<testsuite><testcase name="a"><failure/></testcase></testsuite>"#);
        let good = parse_junit(br#"<testsuite><testcase name="a"/></testsuite>"#);
        assert_eq!(verdict(ZERO, Format::Exit, None, Some(&bad), "").0, Verdict::Fail(ZERO));
        assert_eq!(verdict(ZERO, Format::Exit, None, Some(&good), "").0, Verdict::Pass);
        assert_eq!(verdict(Exit::Code(1), Format::Exit, None, Some(&good), "").0, Verdict::Fail(Exit::Code(1)));
        assert_eq!(verdict(ZERO, Format::Junit, None, Some(&good), "").0, Verdict::Pass);
    }

    #[test]
    fn who_promises_results_and_leaves_none_fails() {
        let (verdict_, message) = verdict(ZERO, Format::Junit, None, None, "");
        assert_eq!(verdict_, Verdict::Fail(ZERO));
        assert!(message.unwrap().contains("no JUnit file"));
        assert_eq!(verdict(ZERO, Format::Tap, Some(&Results::default()), None, "").0, Verdict::Fail(ZERO));
        let damaged = parse_junit(b"<testsuite><testcase");
        assert_eq!(verdict(ZERO, Format::Exit, None, Some(&damaged), "").0, Verdict::Fail(ZERO));
    }
}
