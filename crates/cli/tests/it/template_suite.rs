//! Templates of whole suites: one for each guest, and copies of it for the tests.

use crate::harness::{Lab, Outcome, SUITE, WELL};

/// How the guests came to be, in order.
fn origins(outcome: &Outcome<'_>) -> Vec<String> {
    let ready = outcome.told("guest-ready", "");
    ready.iter().map(|e| e["how"].as_str().unwrap_or_default().to_owned()).collect()
}

const TESTS: [(&str, &str); 4] = [("a", "exit 0"), ("b", "exit 3"), ("c", "exit 0"), ("d", "exit 0")];
const VERDICTS: [(&str, &str); 4] = [("a", "pass"), ("b", "fail 3"), ("c", "pass"), ("d", "pass")];

#[test]
fn one_guest_boots_and_all_tests_get_copies() {
    let lab = Lab::new();
    lab.suite(SUITE, &TESTS);
    for expected in [vec!["made"], vec!["found"]] {
        let outcome = lab.test(["-j2"]).with_templates().go();
        outcome.code(100).verdicts_are(&VERDICTS);
        assert_eq!(outcome.warnings(), [""; 0]);
        assert!(
            origins(&outcome).len() >= 4 && origins(&outcome).iter().all(|how| how == "clone"),
            "{:?}",
            origins(&outcome)
        );
        let chosen = outcome.chosen("template");
        assert_eq!(chosen.iter().filter(|c| *c == "made").count(), usize::from(expected == ["made"]), "{chosen:?}");
        lab.template();
    }
    assert_eq!(lab.starts().0, 1);
}

#[test]
fn what_cannot_be_frozen_is_tried_once_in_a_run() {
    for (options, jobs) in [("migrate refuse", 2), ("migrate die", 2), ("incoming fail", 1)] {
        let lab = Lab::new();
        let guest = lab.machine("h", &format!("[options]\n{options}\n{WELL}"));
        let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"h\"]\n";
        lab.suite(&format!("{guest}\n{suite}"), &TESTS);
        // Of two that find it at the same time, both may find out that its copies do not go on.
        for jobs in 1..=jobs {
            let outcome = lab.test([format!("-j{jobs}")]).with_templates().go();
            outcome.code(100);
            let verdicts: Vec<String> = outcome.verdicts().into_values().collect();
            assert_eq!(verdicts, VERDICTS.map(|(_, v)| v), "{options}");
            outcome.warns_once("cannot be kept as a template");
            assert!(origins(&outcome).iter().all(|how| how == "boot"), "{options}: {:?}", origins(&outcome));
            assert_eq!((lab.asked("migrate"), lab.templates().len()), (1, 0), "{options}");
            std::fs::remove_file(lab.path("fake.log")).expect("log");
        }
    }
}

#[test]
fn each_guest_has_its_own() {
    let lab = Lab::new();
    let guest = lab.machine("h", &WELL.replace("\nagent\n", "\nagent hostname=other\n"));
    let more = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\", \"h\"]\n";
    lab.suite(&format!("{guest}\n{more}"), &[("a", "exit 0"), ("b", "exit 0")]);
    let outcome = lab.test(["-j2"]).with_templates().go();
    outcome.code(0);
    assert_eq!((lab.templates().len(), lab.starts().0), (2, 2));
    assert_eq!(lab.test(["--no-template"]).with_templates().go().code(0).chosen("template"), [""; 0]);
    assert_eq!(lab.starts().0, 6);
}

#[test]
fn nothing_is_left_when_it_is_killed_while_copies_wait() {
    let lab = Lab::new();
    let names: Vec<String> = (0..6).map(|n| format!("t{n}")).collect();
    let tests: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "mark busy; exec sleep 60")).collect();
    lab.suite(SUITE, &tests);
    let mut run = lab.test(["-j2"]).with_templates().spawn();
    run.await_mark("busy");
    run.kill();
    lab.template();
    // And the next run has its template.
    lab.suite(SUITE, &[("t0", "exit 0")]);
    let outcome = lab.test(["id(=s/t0@g)"]).with_templates().go();
    outcome.code(0);
    assert_eq!(lab.starts().0, 1);
}
