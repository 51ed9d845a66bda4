use std::{io::Write, path::Path, process::Command};

use belljar_formats::junit::parse_junit;
use belljar_model::{EventKind, RunSummary, test_run::SubVerdict};
use belljar_report::junit::{Options, write};
use proptest::prelude::*;

use crate::plausible;

fn junit(run: &RunSummary) -> String {
    let mut out = Vec::new();
    write(run, &Options { run_dir: Some("run".into()), without_subresults: false }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// By xmllint: a check that passed for want of it would say nothing.
fn is_valid(document: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(document.as_bytes()).unwrap();
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reports/jenkins.xsd");
    let output =
        Command::new("xmllint").arg("--noout").arg("--nonet").arg("--schema").arg(schema).arg(file.path()).output();
    let output = output.unwrap_or_else(|e| {
        panic!("xmllint, which checks reports against their schema, could not be run: {e}. Install Debian's package libxml2-utils (testing/setup test does)")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn plausible_runs_are_valid() {
    for (count, hostile) in [(0, false), (54, false), (120, true)] {
        is_valid(&junit(&RunSummary::of(&plausible::log(count, hostile))));
    }
}

#[test]
fn one_suite_in_full() {
    let mut events = plausible::log(10, false);
    // What tells most: a pass, a failure, a flaky one, a crash that a signal made.
    events.retain(|e| match &e.kind {
        EventKind::UnitPlanned(u) => u.guest == "debian-12" || u.test == "mkfs-xfs.sh",
        _ => true,
    });
    insta::assert_snapshot!(junit(&RunSummary::of(&events)));
}

#[test]
fn a_run_that_was_cut_off_says_what_had_not_ended() {
    let events = plausible::log(54, false);
    for part in [1, 60, events.len() / 2, events.len() - 1] {
        let run = RunSummary::of(&events[..part]);
        let document = junit(&run);
        is_valid(&document);
        let counts = run.counts();
        let without = Options { run_dir: None, without_subresults: true };
        let mut plain = Vec::new();
        write(&run, &without, &mut plain).unwrap();
        let read = parse_junit(&plain);
        let errors = read.cases.iter().filter(|c| c.result == SubVerdict::Error).count() as u64;
        assert_eq!(errors, counts.error + counts.unfinished);
        assert_eq!(read.cases.len(), run.units.len());
        let passes = read.cases.iter().filter(|c| c.result == SubVerdict::Pass).count() as u64;
        assert_eq!(passes, counts.pass);
    }
}

#[test]
fn a_run_whose_parts_are_missing_is_an_error() {
    let mut events = plausible::log(54, false);
    let before = junit(&RunSummary::of(&events));
    if let EventKind::TestRunStarted(started) = &mut events[0].kind {
        started.missing = Some("hash:2/3".into());
    }
    let document = junit(&RunSummary::of(&events));
    is_valid(&document);
    let errors = |document: &str| {
        let cases = parse_junit(document.as_bytes()).cases;
        cases.iter().filter(|c| c.result == SubVerdict::Error).count()
    };
    assert_eq!(errors(&document), errors(&before) + 1);
    assert!(document.contains("hash:2/3"));
}

#[test]
fn a_test_attaches_no_file_by_what_it_writes() {
    let document = junit(&RunSummary::of(&plausible::log(60, true)));
    assert!(!document.contains("[[ATTACHMENT|/etc"));
    assert!(document.contains("[[ATTACHMENT|run/units/"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn any_text_gives_valid_xml(text in any::<String>(), other in "\\PC*|(\\x00|\\]|>|&|<|\\r|\\n|\u{fffe}|\u{10ffff})*") {
        let mut events = plausible::log(12, false);
        for event in &mut events {
            match &mut event.kind {
                EventKind::UnitPlanned(u) => u.suite.push_str(&text),
                EventKind::Output(o) => o.tail.push_str(&other),
                EventKind::AttemptEnded(e) => e.message = Some(text.clone()),
                EventKind::Subresult(s) => s.subresult.name = other.clone(),
                EventKind::TestRunStarted(s) => s.host.name = other.clone(),
                _ => {}
            }
        }
        let document = junit(&RunSummary::of(&events));
        is_valid(&document);
        // An independent reader agrees.
        prop_assert!(parse_junit(document.as_bytes()).problems.is_empty());
    }
}
