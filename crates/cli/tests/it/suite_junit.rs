//! JUnit files: whatever a test leaves is read, or it is told that it was not, and then the test has not passed.

use std::{fs, os::unix::fs::symlink};

use crate::harness::{Lab, SUITE};

const WELL: &str = "<testsuite><testcase name=\"well\"/></testsuite>";
const BAD: &str = "<testsuite><testcase name=\"hidden\"><failure/></testcase></testsuite>";

/// Shell functions that write a result with a case that passes, and one with a case that fails.
fn functions() -> String {
    format!(
        "well() {{ mkdir -p \"${{1%/*}}\"; echo '{WELL}' >\"$1\"; }}\nbad() {{ mkdir -p \"${{1%/*}}\"; echo '{BAD}' >\"$1\"; }}\n"
    )
}

/// Runs these tests alone, one after another, each in a directory of its own in the workspace; says what became of them.
#[track_caller]
fn verdicts(lab: &Lab, junit: &str, tests: &[(&str, &str, &str)]) -> String {
    let files: Vec<(String, String)> = tests
        .iter()
        .map(|(name, text, _)| {
            let patterns = junit.replace("DIR", name);
            ((*name).to_owned(), format!("# belljar: {patterns}\n{}mkdir -p {name}; cd {name}\n{text}", functions()))
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    lab.suite(SUITE, &files);
    let outcome = lab.test(["-j1"]).go();
    let expected: Vec<(&str, &str)> = tests.iter().map(|(name, _, verdict)| (*name, *verdict)).collect();
    outcome.verdicts_are(&expected);
    outcome.text()
}

/// The failing case is in the workspace, where an honest pass lies in the output directory.
#[test]
fn nothing_in_the_workspace_is_hidden() {
    let lab = Lab::new();
    let honest = "well $BELLJAR_OUT/well.xml; ";
    let tests = [
        ("plain", "bad ./r.xml", "fail 0"),
        ("old", "bad ./r.xml; touch -d '1 hour ago' r.xml", "fail 0"),
        ("link", "bad ./run1/r.txt; ln -s run1/r.txt latest.xml", "fail 0"),
        ("absolute-link", "bad ./run1/r.txt; ln -s $PWD/run1/r.txt latest.xml", "fail 0"),
        ("deep", "bad ./a/b/c/d/r.xml", "fail 0"),
        ("dot", "bad ./.hidden/.r.xml", "fail 0"),
        ("hard-link", "bad ./r.txt; ln r.txt r.xml; touch -d '1 hour ago' r.txt", "fail 0"),
        ("tools", "find() { :; }; bad ./r.xml; PATH=/none", "fail 0"),
        ("fifo", "mkfifo r.xml", "fail 0"),
        ("elsewhere", "ln -s /etc/passwd r.xml", "fail 0"),
        ("nowhere", "ln -s none r.xml", "fail 0"),
        ("linked-directory", "bad ./run1/r.xml; mv run1 ../run1-of-it; ln -s ../run1-of-it run", "fail 0"),
        ("outside-directory", "ln -s /etc etc", "fail 0"),
        ("damaged", "echo '<testsuite>' >r.xml", "fail 0"),
        ("none", ":", "pass"),
        ("directory", "mkdir r.xml", "pass"),
    ];
    let tests: Vec<(&str, String, &str)> =
        tests.iter().map(|(n, text, v)| (*n, format!("{honest}{text}"), *v)).collect();
    let tests: Vec<(&str, &str, &str)> = tests.iter().map(|(n, text, v)| (*n, text.as_str(), *v)).collect();
    let said = verdicts(&lab, "format = \"junit\"", &tests);
    for why in ["is a FIFO, and was not read", "leads elsewhere", "leads nowhere", "the JUnit file is damaged"] {
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn nothing_in_the_output_directory_is_hidden() {
    let lab = Lab::new();
    let many = "for n in $(seq 1001); do echo \"$w\" >$BELLJAR_OUT/$n.xml; done; bad $BELLJAR_OUT/z.xml";
    let many = format!("w='{WELL}'; {many}");
    let tests = [
        ("file-1002", many.as_str(), "fail 0"),
        ("old", "bad $BELLJAR_OUT/r.xml; touch -d '1 hour ago' $BELLJAR_OUT/r.xml; well ./w.xml", "fail 0"),
        ("link", "well ./w.xml; bad $BELLJAR_OUT/run1/r.txt; ln -s run1/r.txt $BELLJAR_OUT/latest.xml", "fail 0"),
        ("linked-well", "well $BELLJAR_OUT/run1/r.txt; ln -s run1/r.txt $BELLJAR_OUT/latest.xml", "pass"),
        ("unreadable", "well ./w.xml; bad $BELLJAR_OUT/r.xml; chmod 0 $BELLJAR_OUT/r.xml", "fail 0"),
        ("shut", "well ./w.xml; bad $BELLJAR_OUT/d/r.xml; chmod 0 $BELLJAR_OUT/d", "fail 0"),
        ("fifo", "well ./w.xml; mkfifo $BELLJAR_OUT/r.xml", "fail 0"),
        ("many-well", "for n in $(seq 50); do well $BELLJAR_OUT/$n.xml; done", "pass"),
    ];
    verdicts(&lab, "format = \"junit\"", &tests);
    // What is shut is the host's to open again.
    let opened = std::process::Command::new("chmod").args(["-R", "u+rwX"]).arg(lab.path("state")).status();
    assert!(opened.expect("chmod").success());
}

/// A pattern is a promise, whatever else decides.
#[test]
fn a_pattern_that_matches_nothing_spoils_a_pass() {
    let lab = Lab::new();
    let tests = [
        ("none", "exit 0", "fail 0"),
        ("one-of-two", "well ./a.xml", "fail 0"),
        ("both", "well ./a.xml; well $BELLJAR_OUT/b.xml", "fail 0"),
        ("both-there", "well ./a.xml; well ./b.xml", "pass"),
        ("failed", "exit 3", "fail 3"),
        ("skipped", "echo not here; exit 77", "skip: not here"),
    ];
    let said = verdicts(&lab, "junit = [\"DIR/a.xml\", \"DIR/b.xml\"]", &tests);
    assert!(said.contains("no file matches `none/a.xml`, `none/b.xml`"), "{said}");
    assert!(said.contains("no file matches `both/b.xml`"), "{said}");
    let lab = Lab::new();
    let tests = [
        ("first", "well ./a.xml", "pass"),
        ("second", "well ./b.xml", "pass"),
        ("failing", "bad ./b.xml", "fail 0"),
        ("neither", "well ./c.xml", "fail 0"),
    ];
    verdicts(&lab, "junit = [\"DIR/{a,b}.xml\"]", &tests);
}

/// What was there before the test is none of its results, whatever is in it.
#[test]
fn what_was_there_before_does_not_count() {
    let lab = Lab::new();
    fs::write(lab.path("workspace/stale.xml"), BAD).expect("file");
    fs::create_dir(lab.path("workspace/old")).expect("directory");
    fs::write(lab.path("workspace/old/well.xml"), WELL).expect("file");
    symlink("/nowhere/at/all", lab.path("workspace/dangling.xml")).expect("link");
    symlink("/etc", lab.path("workspace/etc")).expect("link");
    let tests = [
        ("a-stale", "cp ../old/well.xml .", "pass"),
        ("b-only-stale", ":", "fail 0"),
        ("c-rewritten", "cat ../old/well.xml >../w; cat ../w >../old/well.xml", "pass"),
        ("d-moved", "mv ../stale.xml .", "fail 0"),
    ];
    let said = verdicts(&lab, "format = \"junit\"", &tests);
    assert!(said.contains("the test left no JUnit file in $BELLJAR_OUT, nor a new one in the workspace"), "{said}");
}

/// Times prove nothing after the guest's clock was set: what seems to be old can only make the verdict worse.
#[test]
fn a_clock_that_was_set_hides_nothing() {
    let lab = Lab::new();
    let guest = lab.machine("g", "[serial]\ndrain\n[agent]\nagent clock-set=on\n");
    let go = |stale: &str| {
        fs::write(lab.path("workspace/stale.xml"), stale).expect("file");
        let suite =
            "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\"]\nformat = \"junit\"\njunit = \"**/*.xml\"\n";
        fs::write(lab.path("workspace/belljar.toml"), format!("{guest}{suite}")).expect("configuration");
        lab.test_file("both", &format!("echo '{WELL}' >$BELLJAR_OUT/w.xml"));
        lab.test_file("none", "exit 0");
        lab.test(["-j1"]).go()
    };
    go(BAD).verdicts_are(&[("both", "fail 0"), ("none", "fail 0")]);
    go(WELL).verdicts_are(&[("both", "pass"), ("none", "fail 0")]);
}

/// The files are kept with the try, also those of a workspace whose changes end with the guest.
#[test]
fn files_of_the_workspace_are_kept() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", &format!("# belljar: format = \"junit\"\nmkdir d; echo '{WELL}' >d/r.xml"))]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(0).verdicts_are(&[("a", "pass")]);
    let place = outcome.told("attempt-ended", "a")[0]["dir"].as_str().expect("directory").to_owned();
    let kept: Vec<_> =
        fs::read_dir(lab.runs()[0].join(place).join("from-workspace")).expect("directory").flatten().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read_to_string(kept[0].path()).expect("file").trim(), WELL);
}
