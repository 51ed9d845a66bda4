use belljar_formats::tap::{Dialect, TapParser};
use belljar_model::{EventKind, RunSummary, test_run::SubVerdict};

use crate::plausible;

fn tap(run: &RunSummary) -> String {
    let mut out = Vec::new();
    belljar_report::tap::write(run, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn in_full() {
    insta::assert_snapshot!(tap(&RunSummary::of(&plausible::log(54, false))));
}

#[test]
fn what_is_written_is_read() {
    for hostile in [false, true] {
        let events = plausible::log(120, hostile);
        for part in [40, events.len() / 2, events.len()] {
            let run = RunSummary::of(&events[..part]);
            let mut parser = TapParser::new(Dialect::Tap);
            parser.feed(tap(&run).as_bytes());
            let results = parser.finish();
            assert_eq!(results.problems, Vec::<String>::new());
            let has_cases = |u: &&belljar_model::summary::UnitSummary| {
                u.telling_attempt().is_some_and(|a| !a.subresults.is_empty())
            };
            let bad_alone = run
                .units
                .iter()
                .filter(|u| !has_cases(u) && belljar_report::words::Outcome::of(u, &run).is_bad())
                .count();
            // Points without subtests stand for themselves.
            let names = results.cases.iter().filter(|c| c.result.is_bad() && !c.name.contains(" > ")).count();
            assert!(names >= bad_alone, "{names} {bad_alone}");
            let flat = run.units.iter().filter(|u| !has_cases(u)).count();
            assert!(results.cases.len() >= flat);
            if run.counts().bad() > 0 {
                assert!(results.cases.iter().any(|c| c.result == SubVerdict::Fail));
            }
        }
    }
}

#[test]
fn a_run_whose_parts_are_missing_bails_out() {
    let mut events = plausible::log(54, false);
    if let EventKind::TestRunStarted(started) = &mut events[0].kind {
        started.missing = Some("hash:2/3".into());
    }
    for part in [1, events.len()] {
        let text = tap(&RunSummary::of(&events[..part]));
        assert!(text.lines().last().unwrap().starts_with("Bail out! ") && text.contains("hash:2/3"), "{text}");
        let mut parser = TapParser::new(Dialect::Tap);
        parser.feed(text.as_bytes());
        assert!(!parser.finish().problems.is_empty());
    }
}

#[test]
fn nothing_matched() {
    insta::assert_snapshot!(tap(&RunSummary::default()), @r"
    TAP version 14
    1..0 # SKIP no test matched
    ");
}
