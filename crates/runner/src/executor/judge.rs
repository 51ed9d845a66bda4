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
    let skips = exit == Exit::Code(SKIP) || (format == Format::Kselftest && exit == Exit::Code(KSFT_SKIP));
    let said = tail.lines().rev().map(str::trim).find(|l| !l.is_empty());
    let mut results = written.cloned();
    if let Some(junit) = junit {
        match &mut results {
            Some(results) => results.extend(junit.clone()),
            none => *none = Some(junit.clone()),
        }
    }
    match results {
        // Files picked up beside the exit code count only if something is in them, or is wrong with them.
        Some(r)
            if format == Format::Exit
                && r.is_empty()
                && r.problems.is_empty()
                && (r.absent.is_none() || exit != Exit::Code(0)) => {}
        Some(results) => return judge(exit, &results, skips, said),
        // Who promised a file and left none.
        None if format == Format::Junit => return judge(exit, &Results::default(), skips, said),
        None => {}
    }
    if skips {
        return (Verdict::Skip(said.map_or_else(|| exit.to_string(), str::to_owned)), None);
    }
    (Verdict::of_exit(exit), None)
}

#[cfg(test)]
mod tests {
    use belljar_formats::{
        junit::parse_junit,
        libtest::LibtestParser,
        tap::{Dialect, TapParser},
    };

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
        assert_eq!(verdict(ZERO, Format::Junit, None, None, "").0, Verdict::Fail(ZERO));
        assert_eq!(verdict(ZERO, Format::Tap, Some(&Results::default()), None, "").0, Verdict::Fail(ZERO));
        let damaged = parse_junit(b"<testsuite><testcase");
        assert_eq!(verdict(ZERO, Format::Exit, None, Some(&damaged), "").0, Verdict::Fail(ZERO));
        let absent = Results::lacking("no file");
        for format in [Format::Exit, Format::Junit, Format::Tap] {
            let (verdict, message) = verdict(ZERO, format, None, Some(&absent), "");
            assert_eq!((verdict, message.as_deref()), (Verdict::Fail(ZERO), Some("no file")), "{format:?}");
        }
    }

    /// What a test of this format writes: nothing of it, a case that passes, one that fails, one that is skipped.
    fn outputs(format: Format) -> [String; 4] {
        let junit = |inner: &str| format!("<testsuite><testcase name=\"a\">{inner}</testcase></testsuite>");
        let cargo =
            |line: &str, total: &str| format!("running 1 test\ntest a ... {line}\ntest result: {total}; 0 measured\n");
        let nothing = "no such device\n".to_owned();
        match format {
            Format::Exit => [nothing, String::new(), String::new(), String::new()],
            Format::Tap | Format::Kselftest => {
                [nothing, "1..1\nok 1 a\n".into(), "1..1\nnot ok 1 a\n".into(), "1..1\nok 1 a # SKIP why\n".into()]
            }
            Format::Libtest => [
                nothing,
                cargo("ok", "ok. 1 passed; 0 failed; 0 ignored"),
                cargo("FAILED", "FAILED. 0 passed; 1 failed; 0 ignored"),
                cargo("ignored, why", "ok. 0 passed; 0 failed; 1 ignored"),
            ],
            Format::Junit => [nothing, junit(""), junit("<failure/>"), junit("<skipped message=\"why\"/>")],
        }
    }

    fn read(format: Format, text: &str) -> (Option<Results>, Option<Results>) {
        let tap = |dialect| {
            let mut parser = TapParser::new(dialect);
            parser.feed(text.as_bytes());
            Some(parser.finish())
        };
        match format {
            Format::Exit => (None, None),
            Format::Tap => (tap(Dialect::Tap), None),
            Format::Kselftest => (tap(Dialect::Kselftest), None),
            Format::Libtest => {
                let mut parser = LibtestParser::default();
                parser.feed(text.as_bytes());
                (Some(parser.finish()), None)
            }
            Format::Junit => (None, text.starts_with('<').then(|| parse_junit(text.as_bytes()))),
        }
    }

    /// Every format with every exit code that means something, and what was written: nothing, a pass, a failure, a skip.
    #[test]
    fn formats_and_exit_codes() {
        const ALL: [Format; 5] = [Format::Exit, Format::Tap, Format::Kselftest, Format::Libtest, Format::Junit];
        let mut table = String::new();
        for format in ALL {
            for code in [0, 1, 4, 77] {
                let words = outputs(format).map(|text| {
                    let (written, junit) = read(format, &text);
                    let (verdict, _) =
                        verdict(Exit::Code(code), format, written.as_ref(), junit.as_ref(), "no such device\n");
                    match verdict {
                        Verdict::Pass => "pass".to_owned(),
                        Verdict::Fail(_) => "fail".to_owned(),
                        Verdict::Skip(why) => format!("skip: {why}"),
                        other => format!("{other:?}"),
                    }
                });
                // A test whose format is its exit code writes nothing that is read.
                let words = if format == Format::Exit { &words[..1] } else { &words[..] };
                table.push_str(&format!("{format:?} {code}: {}\n", words.join(", ")));
            }
        }
        insta::assert_snapshot!(table, @r"
        Exit 0: pass
        Exit 1: fail
        Exit 4: fail
        Exit 77: skip: no such device
        Tap 0: fail, pass, fail, skip: none of 1 cases ran: why
        Tap 1: fail, fail, fail, fail
        Tap 4: fail, fail, fail, fail
        Tap 77: skip: no such device, fail, fail, skip: why
        Kselftest 0: fail, pass, fail, skip: none of 1 cases ran: why
        Kselftest 1: fail, fail, fail, fail
        Kselftest 4: skip: no such device, fail, fail, skip: why
        Kselftest 77: skip: no such device, fail, fail, skip: why
        Libtest 0: fail, pass, fail, skip: none of 1 cases ran: why
        Libtest 1: fail, fail, fail, fail
        Libtest 4: fail, fail, fail, fail
        Libtest 77: skip: no such device, fail, fail, skip: why
        Junit 0: fail, pass, fail, skip: none of 1 cases ran: why
        Junit 1: fail, fail, fail, fail
        Junit 4: fail, fail, fail, fail
        Junit 77: skip: no such device, fail, fail, skip: why
        ");
    }

    #[test]
    fn a_skip_may_leave_its_plan_unfinished_but_nothing_may_have_failed() {
        let told = |format, code, text: &str| {
            let (written, junit) = read(format, text);
            verdict(Exit::Code(code), format, written.as_ref(), junit.as_ref(), text).0
        };
        let tap = Format::Tap;
        assert_eq!(told(Format::Kselftest, 4, "1..3\nok 1 # SKIP no card\n"), Verdict::Skip("no card".into()));
        assert_eq!(told(tap, 77, "1..3\n# no card\n"), Verdict::Skip("# no card".into()));
        for text in ["1..3\nnot ok 1\n", "1..3\nok 1\n", "Bail out! no card\n", "1..1\nok 1 # SKIP\nok 2 # SKIP\n"] {
            assert_eq!(told(tap, 77, text), Verdict::Fail(Exit::Code(77)), "{text}");
        }
        assert_eq!(told(Format::Libtest, 77, "running 3 tests\n"), Verdict::Fail(Exit::Code(77)));
        assert_eq!(told(Format::Junit, 77, "<testsuite>"), Verdict::Fail(Exit::Code(77)));
    }
}
