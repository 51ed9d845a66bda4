//! What the log of a run becomes: reports, and parts made one.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::harness::{Lab, Outcome, SUITE};

const TAP: &str = "# belljar: format = \"tap\"
echo 'TAP version 14'
echo '1..5'
echo 'ok 1 - mounts'
echo 'not ok 2 - unmounts'
echo '  ---'; echo '  message: target is busy'; echo '  ...'
echo 'ok 3 - trims # SKIP no discard here'
echo 'not ok 4 - shrinks # TODO'
echo '# Subtest: grows'; echo '    1..1'; echo '    ok 1 - by one'; echo 'ok 5 - grows'";

const JUNIT: &str = "# belljar: junit = \"*.xml\"
cat > $BELLJAR_OUT/r.xml <<X
<testsuite><testcase classname=\"disk\" name=\"reads\" time=\"0.25\"/><testcase classname=\"disk\" name=\"writes\"><failure message=\"short write\">trace</failure></testcase></testsuite>
X
exit 1";

const KSELFTEST: &str = "# belljar: format = \"kselftest\"
echo 'TAP version 13'; echo '1..2'
echo 'ok 1 selftests: net: basic'
echo 'ok 2 selftests: net: fast # SKIP'";

#[test]
fn what_is_inside_tests_is_in_every_report() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("tap", TAP), ("junit", JUNIT), ("kself", KSELFTEST), ("plain", "exit 0")]);
    let outcome = lab.test(["-j1", "--junit", "r.xml", "--tap", "r.tap", "--html", "r.html"]).go();
    outcome.code(100).verdicts_are(&[("tap", "fail 0"), ("junit", "fail 1"), ("kself", "pass"), ("plain", "pass")]);
    let subs = |test: &str| -> Vec<String> {
        let told = outcome.told("subresult", test);
        told.iter()
            .map(|s| format!("{}: {}", s["name"].as_str().unwrap_or("?"), s["result"].as_str().unwrap_or("?")))
            .collect()
    };
    assert_eq!(
        subs("tap"),
        ["mounts: pass", "unmounts: fail", "trims: skip", "shrinks: expected-fail", "grows > by one: pass"]
    );
    assert_eq!(subs("junit"), ["disk > reads: pass", "disk > writes: fail"]);
    assert_eq!(subs("kself"), ["selftests: net: basic: pass", "selftests: net: fast: skip"]);
    let read = |name: &str| fs::read_to_string(lab.path("workspace").join(name)).expect("report");
    for report in ["r.xml", "r.tap", "r.html"] {
        let text = read(report);
        for word in ["unmounts", "target is busy", "writes", "short write", "net: fast", "no discard here"] {
            assert!(text.contains(word), "{word} is not in {report}: {text}");
        }
    }
    let said = outcome.text();
    assert!(said.contains("unmounts") && said.contains("short write"), "{said}");
    // Made again they are the same.
    for (format, report) in [("junit", "r.xml"), ("tap", "r.tap"), ("html", "r.html")] {
        let again = lab.belljar(["report", "--format", format]).go();
        assert!(again.code(0).text() == read(report), "{format}");
    }
    let json = lab.belljar(["report", "last", "--format", "json"]).go();
    assert_eq!(json.text().into_bytes(), outcome.kept("events.jsonl"));
    let text = lab.belljar(["report"]).go().text();
    let end = |text: &str| text.split_once("────").map(|(_, end)| end.to_owned());
    assert_eq!(end(&text), end(&said));
    // So they are of a log of schema 1, where what a guest said during a try had kinds of its own.
    let log = lab.runs()[0].join("events.jsonl");
    let mut earlier = String::new();
    for line in fs::read_to_string(&log).expect("log").lines() {
        let mut event: Value = serde_json::from_str(line).expect("an event");
        match event["kind"].as_str().expect("a kind") {
            "test-run-started" => event["schema"] = 1.into(),
            "command-started" | "command-ended" => continue,
            "console-tail" => event["kind"] = "attempt-console".into(),
            kind @ ("phase" | "choice" | "warning" | "alarm") => event["kind"] = format!("attempt-{kind}").into(),
            _ => {}
        }
        earlier.push_str(&format!("{event}\n"));
    }
    assert!(earlier.contains("\"attempt-phase\"") && earlier.contains("\"attempt-choice\""), "{earlier}");
    fs::write(&log, earlier).expect("log");
    for (format, report) in [("junit", "r.xml"), ("tap", "r.tap"), ("html", "r.html")] {
        let again = lab.belljar(["report", "--format", format]).go();
        assert!(again.code(0).text() == read(report), "{format} of schema 1");
    }
}

#[test]
fn plans_that_do_not_come_true_fail() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}format = \"tap\"\n"),
        &[
            ("short", "echo 1..3; echo ok 1"),
            ("long", "echo 1..1; echo ok 1; echo ok 2"),
            ("none", "echo ok 1"),
            ("silent", ":"),
            ("bail", "echo 1..2; echo ok 1; echo 'Bail out! no disk'"),
            ("skip-all", "echo '1..0 # SKIP no raid here'"),
            ("todo", "echo 1..2; echo 'not ok 1 # TODO'; echo 'ok 2'"),
        ],
    );
    let outcome = lab.test(["-j2"]).go();
    outcome.code(100).verdicts_are(&[
        ("short", "fail 0"),
        ("long", "fail 0"),
        ("none", "fail 0"),
        ("silent", "fail 0"),
        ("bail", "fail 0"),
        ("skip-all", "skip: no raid here"),
        ("todo", "pass"),
    ]);
}

#[test]
fn junit_files_of_the_workspace_are_picked_up() {
    let lab = Lab::new();
    let bad = "mkdir -p sub; echo '<testsuite><testcase name=\"new\"><failure/></testcase></testsuite>' > sub/results.xml; sleep 1";
    lab.suite(SUITE, &[("a", &format!("# belljar: junit = \"**/results.xml\"\n{bad}; touch sub/results.xml; exit 0"))]);
    fs::create_dir(lab.path("workspace/old")).expect("directory");
    fs::write(
        lab.path("workspace/old/results.xml"),
        "<testsuite><testcase name=\"old\"><failure/></testcase></testsuite>",
    )
    .expect("file");
    // A guest knows times to the second.
    let old = fs::File::options().append(true).open(lab.path("workspace/old/results.xml")).expect("file");
    old.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("time");
    let outcome = lab.test([""; 0]).in_playground().go();
    outcome.code(100).verdicts_are(&[("a", "fail 0")]);
    let names: Vec<Value> = outcome.told("subresult", "a").iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["new"], "only what was written since the test began");
}

/// A suite of which everything happens, but nothing by chance.
fn mixed(lab: &Lab) {
    lab.suite(
        &format!("{}\n{SUITE}retries = 1\n", lab.guest("h", "")).replace("[\"g\"]", "[\"g\", \"h\"]"),
        &[
            ("pass", "echo fine"),
            ("fail", "echo broken; exit 3"),
            ("skip", "echo not here; exit 77"),
            ("skipped", "# belljar: skip = \"never\"\n:"),
            ("tap", TAP),
            ("junit", JUNIT),
            ("crash", "poweroff"),
            ("files", "echo x > $BELLJAR_OUT/a; echo y > $BELLJAR_OUT/b"),
            ("flaky", "[ $BELLJAR_ATTEMPT = 2 ]"),
            ("other", "exit 0"),
        ],
    );
}

/// An event log without times, order, and what names one run.
fn normalised(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let mut event: Value = serde_json::from_str(line).expect("event");
            let map = event.as_object_mut().expect("object");
            for key in ["seq", "at", "millis", "instance", "slot", "run", "command", "jobs", "peak_memory"] {
                map.remove(key);
            }
            for key in ["path", "dir"] {
                if let Some(Value::String(path)) = map.get_mut(key)
                    && let Some((_, rest)) = path.split_once('/').filter(|(part, _)| part.starts_with("part-"))
                {
                    *path = rest.to_owned();
                }
            }
            event.to_string()
        })
        .collect();
    lines.sort();
    lines
}

fn log(outcome: &Outcome<'_>) -> String {
    String::from_utf8(outcome.kept("events.jsonl")).expect("text")
}

#[test]
fn parts_merged_are_the_run_unparted() {
    let lab = Lab::new();
    mixed(&lab);
    // What is found out once for all runs is found out before.
    lab.test(["id(=s/pass@g)"]).go().code(0);
    let whole = lab.test(["-j2"]).go();
    whole.code(100);
    let whole_log = log(&whole);
    for how in ["slice", "hash"] {
        let mut dirs = Vec::new();
        for k in 1..=2 {
            let outcome = lab.test(["-j1", "--partition", &format!("{how}:{k}/2")]).go();
            assert!(matches!(outcome.status.code(), Some(0 | 100)), "{}", outcome.stderr);
            dirs.push(lab.runs().pop().expect("run"));
        }
        let out = lab.path(how);
        let merged = lab.belljar(["merge"]).args(&dirs).args(["--output".as_ref(), out.as_os_str()]).go();
        merged.code(100);
        let text = fs::read_to_string(out.join("events.jsonl")).expect("log");
        let (expected, found) = (normalised(&whole_log), normalised(&text));
        let only = |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
        assert_eq!(
            (only(&expected, &found), only(&found, &expected)),
            (Vec::new(), Vec::new()),
            "only in the whole, only in the merged"
        );
        assert_eq!(expected.len(), found.len());
        // And its files are where it says.
        for event in text.lines().map(|l| serde_json::from_str::<Value>(l).expect("event")) {
            for key in ["path", "dir"] {
                if let Some(path) = event[key].as_str() {
                    assert!(out.join(path).exists(), "{event}");
                }
            }
        }
        let junit = lab.belljar(["report", "--format", "junit"]).args([&out]).go();
        assert!(junit.code(0).text().contains("<flakyFailure"), "{}", junit.text());
    }
}

#[test]
fn parts_that_are_none_are_refused() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 0")]);
    lab.test([""; 0]).go().code(0);
    let run = lab.runs().pop().expect("run");
    lab.belljar(["merge"]).args([&run, &run]).go().code(125).complains(&format!("{0} is named twice", run.display()));
    lab.test([""; 0]).go().code(0);
    let again = lab.runs().pop().expect("run");
    let both = format!("@g` was run in {} and in {}", run.display(), again.display());
    lab.belljar(["merge"]).args([&run, &again]).go().code(125).complains(&both);
    lab.belljar(["merge", "no-such-run"]).go().code(125).complains("no-such-run");
    lab.belljar(["merge"]).go().code(2);
    lab.run(crate::harness::WELL).sh("true").go().code(0);
    let other = lab.runs().pop().expect("run");
    lab.belljar(["merge"]).args([&run, &other]).go().code(125).complains("belljar test");
    lab.belljar(["report"]).args([&other]).go().code(125).complains("belljar test");
    // `last` means the last run of a suite.
    assert!(lab.belljar(["report"]).go().code(0).text().contains("2 tests"));
}

/// Runs parts of a suite of three tests, each into the directory of its name.
fn parts(lab: &Lab, parts: &[(&str, &str)]) {
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 0"), ("c", "exit 0")]);
    for (dir, partition) in parts {
        let outcome = lab.test(["--partition", partition, "--run-dir", dir]).go();
        // By hash, a part may have no test.
        assert!(matches!(outcome.status.code(), Some(0 | 4)), "{}", outcome.stderr);
    }
}

#[test]
fn parts_of_which_one_is_missing_are_no_success() {
    for how in ["slice", "hash"] {
        let lab = Lab::new();
        let of = |part: &str| format!("{how}:{part}");
        parts(&lab, &[("s1", &of("1/3")), ("s2", &of("2/3")), ("f2", &of("2/4"))]);
        let missing = format!("parts of it are missing: {how}:3/3");
        let merged = lab.belljar(["merge", "-o", "m", "s1", "s2"]).go();
        assert!(merged.code(125).complains(&missing).text().contains(&missing), "{}", merged.text());
        assert!(merged.text().contains("merged into"), "{}", merged.text());
        // Its log says so, too, whatever is made of it.
        for format in ["text", "junit", "tap", "html"] {
            let report = lab.belljar(["report", "--format", format, "m"]).go();
            assert!(report.code(125).complains(&missing).text().contains(&missing), "{format}: {}", report.text());
        }
        lab.belljar(["report", "--format", "json", "m"]).go().code(125).complains(&missing);
        lab.belljar(["merge", "-q", "-o", "alone", "s2"]).go().code(125).complains(&format!("{how}:1/3, {how}:3/3"));
        // What was so made is no part.
        lab.belljar(["merge", "-o", "n", "m"]).go().code(125).complains("was itself merged of some");
        let both = format!("s1 is the part {how}:1/3, and f2 is the part {how}:2/4");
        lab.belljar(["merge", "-o", "n", "s1", "f2"]).go().code(125).complains(&both);
        lab.test(["--partition", &of("1/3"), "--run-dir", "again"]).go();
        let same = format!("s1 and again are both the part {how}:1/3");
        lab.belljar(["merge", "-o", "n", "s1", "again"]).go().code(125).complains(&same);
        assert!(!lab.path("workspace/n").exists());
    }
}

#[test]
fn parts_among_the_kept_runs_are_not_cleared_away_for_the_merged_one() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 0"), ("c", "exit 0")]);
    for part in ["slice:1/3", "slice:2/3", "slice:3/3"] {
        lab.test(["--partition", part]).go().code(0);
    }
    let runs = lab.runs();
    let merged = lab.belljar(["merge"]).args(&runs).env("BELLJAR_KEEP_RUNS", "1").go();
    assert!(merged.code(0).text().contains("3 tests"), "{}", merged.text());
    assert!(runs.iter().all(|run| run.join("events.jsonl").exists()));
}

#[test]
fn parts_are_merged_into_none_of_them() {
    let lab = Lab::new();
    parts(&lab, &[("s1", "slice:1/2"), ("s2", "slice:2/2")]);
    let at = |name: &str| lab.path("workspace").join(name);
    std::os::unix::fs::symlink("s1", at("link")).expect("link");
    let before = fs::read_dir(at("s1")).expect("part").count();
    for inside in ["s1", "s1/sub", "s1/a/b/c", "link", "link/sub", "new/../s1/sub", "./s2/../s1/sub"] {
        lab.belljar(["merge", "-o", inside, "s1", "s2"]).go().code(125).complains("it lies in the part s1");
        assert_eq!(fs::read_dir(at("s1")).expect("part").count(), before, "{inside}");
        assert!(!at("new").exists());
    }
    lab.belljar(["merge", "-o", "m", "s1", "link"]).go().code(125).complains("link is s1, which is named twice");
    lab.belljar(["merge", "-o", "s1-and-2", "s1", "s2"]).go().code(0);
}

#[test]
fn a_log_of_a_later_schema_is_read_by_nobody() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    lab.test(["--run-dir", "run"]).go().code(0);
    let log = lab.path("workspace/run/events.jsonl");
    let text = fs::read_to_string(&log).expect("log");
    for schema in ["3", "7"] {
        fs::write(&log, text.replacen("\"schema\":2", &format!("\"schema\":{schema}"), 1)).expect("log");
        let said =
            format!("cannot read the run in run: the event log has schema {schema}, and this Belljar knows up to 2");
        for words in [&["report", "run"][..], &["merge", "run"], &["report", "--format=json", "run"]] {
            let outcome = lab.belljar(words).go();
            outcome.code(125).complains(&said).complains("read it with the Belljar that wrote it, or a later one");
            assert_eq!(outcome.text(), "");
        }
    }
    fs::write(&log, text).expect("log");
    lab.belljar(["report", "run"]).go().code(0);
}

#[test]
fn the_record_of_a_killed_run_is_where_the_manual_says() {
    let lab = Lab::new();
    let mut run = lab
        .run(crate::harness::WELL)
        .args(["--workspace-mode", "rw", "--run-dir", "kept"])
        .sh("mark up; exec sleep 60")
        .spawn();
    run.await_mark("up");
    run.kill();
    let record = lab.runs().pop().expect("record");
    assert!(record.join("console.log").exists());
    let said = format!("{} is the record of a `belljar run`", record.display());
    lab.belljar(["report"]).go().code(125).complains("there is no run of `belljar test`").complains(&said);
    lab.belljar(["report"])
        .args([&record])
        .go()
        .code(125)
        .complains(&said)
        .complains("look into events.jsonl and console.log");
    let runs = lab.path("state/belljar/runs");
    lab.belljar(["report", "kept"])
        .go()
        .code(125)
        .complains("there is no run in kept")
        .complains(&runs.display().to_string());
    // Of tests it is a run like any other.
    lab.suite(&format!("{SUITE}workspace-mode = 'rw'\n"), &[("a", "mark there; exec sleep 60")]);
    let mut run = lab.test(["--run-dir", "tests"]).spawn();
    run.await_mark("there");
    run.kill();
    assert!(lab.belljar(["report"]).go().code(0).text().contains("UNFINISHED"));
}

#[test]
fn last_is_the_last_also_within_a_second() {
    let lab = Lab::new();
    let tests = ["a", "b", "c", "d", "e", "f"];
    lab.suite(SUITE, &tests.map(|test| (test, "exit 0")));
    for test in tests {
        lab.test(["-q", &format!("name(={test})")]).go().code(0);
        let log = lab.belljar(["report", "--format", "json"]).go();
        assert!(log.code(0).text().contains(&format!("\"s/{test}@g\",\"verdict\":\"pass\"")), "{test}: {}", log.text());
    }
}

#[test]
fn a_cut_off_part_makes_a_cut_off_run() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "mark up; exec sleep 60")]);
    lab.test(["--partition", "slice:1/2"]).go().code(0);
    let mut run = lab.test(["--partition", "slice:2/2"]).spawn();
    run.await_mark("up");
    run.kill();
    let merged = lab.belljar(["merge"]).args(lab.runs()).go();
    merged.code(125);
    assert!(merged.text().contains("UNFINISHED"), "{}", merged.text());
}

#[test]
fn parts_are_disjoint_and_complete() {
    let lab = Lab::new();
    mixed(&lab);
    let ids = |words: &[&str]| -> BTreeSet<String> {
        let listed = lab.belljar(["list", "--json"]).args(words).go();
        let listing: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        let units = listing["units"].as_array().expect("units");
        units.iter().map(|u| u["id"].as_str().expect("id").to_owned()).collect()
    };
    let all = ids(&[]);
    assert_eq!(all.len(), 18);
    for how in ["slice", "hash"] {
        let mut seen = BTreeSet::new();
        for k in 1..=3 {
            let part = ids(&["--partition", &format!("{how}:{k}/3")]);
            assert!(part.is_disjoint(&seen), "{how}:{k}/3");
            seen.extend(part);
        }
        assert_eq!(seen, all, "{how}");
    }
    for wrong in ["slice:0/3", "slice:4/3", "some:1/2", "hash:1", "hash:1/0"] {
        lab.belljar(["list", "--partition", wrong]).go().code(2).complains("--partition");
    }
}

#[test]
fn what_is_to_run_again_is_remembered() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "[ -e ok ]"), ("c", "exit 77")]);
    lab.test(["--rerun-failed"]).go();
    lab.test([""; 0]).go().code(100);
    let outcome = lab.test(["--rerun-failed"]).go();
    outcome.code(100).verdicts_are(&[("b", "fail 1")]);
    // A run of something else does not make it forgotten.
    lab.test(["name(a)"]).go().code(0);
    fs::write(lab.path("workspace/ok"), "").expect("file");
    lab.test(["--rerun-failed"]).go().code(0).verdicts_are(&[("b", "pass")]);
    let runs = lab.runs().len();
    lab.test(["--rerun-failed"]).go().code(0).complains("nothing is left to run again");
    assert_eq!(lab.runs().len(), runs, "and no run was made for it");
}
