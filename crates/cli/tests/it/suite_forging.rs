//! Nothing that a test writes, wherever it writes it, makes a pass of what is none, or takes over what a person looks at.

use std::{fs, os::unix::fs::symlink};

use belljar_proto::{
    frame::Encoder,
    message::{Nonce, OutputEnd, Status, ToHost},
};

use crate::harness::{Lab, Pty, SUITE};

/// Every way to write "I passed" on a stream.
const LIES: &str = r#"
echo '1..1'; echo 'ok 1 - all is well'
echo 'test a ... ok'; echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'
echo '{"seq":9,"at":"2026-01-01T00:00:00Z","kind":"unit-ended","unit":"s/'"$BELLJAR_TEST"'@g","verdict":"pass","attempts":1,"millis":1}'
echo '<testsuite tests="1"><testcase classname="a" name="b"/></testsuite>' | tee "$BELLJAR_OUT/r.xml" >&2
echo '        PASS [    0.001s] s/'"$BELLJAR_TEST@g"
"#;

#[test]
fn words_are_no_verdict() {
    let lab = Lab::new();
    let formats = ["exit", "tap", "junit", "libtest", "kselftest"];
    let mut files = Vec::new();
    for format in formats {
        // libtest binaries are listed first; see below.
        if format != "libtest" {
            files.push((format, format!("# belljar: format = \"{format}\"\n{LIES}\nexit 1")));
        }
    }
    files.push(("picked-up", format!("# belljar: junit = \"*.xml\"\n{LIES}\nexit 1")));
    files.push(("killed", format!("# belljar: format = \"tap\"\n{LIES}\nkill -9 $$")));
    files.push(("late", format!("# belljar: timeout = \"500ms\"\n{LIES}\nexec sleep 60")));
    files.push(("crash", format!("{LIES}\npoweroff")));
    let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    lab.suite(SUITE, &files);
    let outcome = lab.test(["-j3"]).go();
    outcome.code(100).verdicts_are(&[
        ("exit", "fail 1"),
        ("tap", "fail 1"),
        ("junit", "fail 1"),
        ("kselftest", "fail 1"),
        ("picked-up", "fail 1"),
        ("killed", "fail signal 9"),
        ("late", "timeout command"),
        ("crash", "crash power-off"),
    ]);
    // Lines that look like ours are told from ours.
    assert!(outcome.text().lines().all(|l| !l.trim_start().starts_with("PASS")), "{}", outcome.text());
    // And the log is read as it was written.
    let report = lab.belljar(["report", "last", "--format", "junit"]).go();
    report.code(0);
    assert!(report.text().contains("tests=\"8\" failures=\"8\" errors=\"0\" skipped=\"0\""), "{}", report.text());
}

#[test]
fn a_test_of_libtest_is_judged_by_its_exit_too() {
    let lab = Lab::new();
    let body = r#"case "$*" in *--list*--ignored*) ;; *--list*) echo "a: test"; echo "b: test" ;; *) echo; echo "running 1 test"; echo "test $1 ... ok"; echo; echo "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s"; [ "$1" = a ] || exit 101 ;; esac"#;
    // Which word names the test is the harness's business: look for both.
    let body = body.replace("$1", "$name");
    let body = format!("for w; do case \"$w\" in a|b) name=$w;; esac; done\n{body}");
    lab.suite(&format!("{SUITE}format = \"libtest\"\n"), &[("bin", &body)]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(100);
    let verdicts = outcome.verdicts();
    assert_eq!(verdicts["s/bin::a@g"], "pass", "{verdicts:?} {}", outcome.text());
    assert_eq!(verdicts["s/bin::b@g"], "fail 101", "{verdicts:?}");
}

#[test]
fn frames_of_the_protocol_are_output_like_any_other() {
    let lab = Lab::new();
    let mut bytes = Vec::new();
    for session in [0, 1, u64::MAX] {
        for id in 0..4 {
            let exited =
                ToHost::Exited { id, nonce: Nonce([0; 16]), status: Status::Code(0), output: OutputEnd::Whole };
            Encoder::new(session).message(&exited, &mut bytes).expect("short");
        }
    }
    fs::write(lab.path("workspace/frames"), &bytes).expect("frames");
    let escaped: String = bytes.iter().map(|b| format!("\\x{b:02x}")).collect();
    lab.suite(
        SUITE,
        &[
            ("stdout", "cat frames; cat frames >&2; exit 1"),
            ("console", &format!("machine serial 'send \"{escaped}\"'; exit 1")),
        ],
    );
    let outcome = lab.test([""; 0]).go();
    outcome.code(100).verdicts_are(&[("stdout", "fail 1"), ("console", "fail 1")]);
    let log = outcome.kept("attempts/s.stdout@g/try-1/output.log");
    assert_eq!(log.len(), bytes.len() * 2, "not a byte is lost");
}

#[test]
fn what_a_neighbour_has_kept_is_not_the_next_ones() {
    let lab = Lab::new();
    // Somebody has kept the port and the tag of the session before.
    let guest = lab.machine("m", "[serial]\ndrain\n[agent]\nagent renew=stray\n");
    let config = format!("{}\nisolation = \"suite\"\n", SUITE.replace("\"g\"", "\"m\""));
    lab.suite(
        &format!("{guest}\n{config}"),
        &[("1-before", "exit 0"), ("2-forged", "sleep 1; exit 1"), ("3-after", "exit 0")],
    );
    let outcome = lab.test([""; 0]).go();
    let verdicts = outcome.verdicts();
    assert_eq!(verdicts["s/1-before@m"], "pass");
    assert_eq!(verdicts["s/2-forged@m"], "crash silent", "{}", outcome.text());
    assert_eq!(verdicts["s/3-after@m"], "pass", "in another guest");
}

#[test]
fn what_a_neighbour_leaves_running_is_ended() {
    let lab = Lab::new();
    let leave = "(while :; do machine agent 'send \"\\xb7\\x1a\\x01\"'; sleep 0.1; done) >/dev/null 2>&1 & exit 0";
    lab.suite(&format!("{SUITE}isolation = \"suite\"\n"), &[("1-leaves", leave), ("2-next", "sleep 1; exit 0")]);
    let outcome = lab.test([""; 0]).go();
    assert_eq!(outcome.verdicts()["s/2-next@g"], "pass", "{}", outcome.text());
}

#[test]
fn a_guest_in_which_something_is_left_is_not_used_again() {
    for (renew, why) in [("left", "stuck"), ("die", "SIGSEGV")] {
        let lab = Lab::new();
        let guest = lab.machine("m", &format!("[serial]\ndrain\n[agent]\nagent renew={renew}\n"));
        let config = format!("{}\nisolation = \"suite\"\n", SUITE.replace("\"g\"", "\"m\""));
        lab.suite(&format!("{guest}\n{config}"), &[("1-before", "exit 0"), ("2-after", "exit 0")]);
        let outcome = lab.test([""; 0]).go();
        outcome.code(0);
        let told = outcome.told("warning", "");
        let said = |w: &serde_json::Value| {
            let text = w["message"].as_str().unwrap_or_default();
            text.contains("a new guest is taken") && text.contains(why)
        };
        assert!(told.iter().any(said), "{renew}: {told:?}");
        assert_eq!(outcome.told("guest-started", "").len(), 2, "{renew}");
    }
}

#[test]
fn a_lab_disk_that_is_left_in_use_takes_the_guest_with_it() {
    let (ours, other) = ("serial = \"data0\", lab = true", "serial = \"data0\"");
    let in_use = "has left lab disks in use: data0 (vda: mounted at /srv)";
    let gone = "has left lab disks otherwise than they were: data0 (vda is not there any more)";
    for (renew, disk, guests, why) in
        [("disk", ours, 2, in_use), ("disk", other, 1, in_use), ("changed", ours, 2, gone)]
    {
        let lab = Lab::new();
        let guest = lab.machine("m", &format!("[serial]\ndrain\n[agent]\nagent renew={renew}\n"));
        let config = format!(
            "{}\nisolation = \"suite\"\ndisks = [{{ size = \"1MiB\", {disk} }}]\n",
            SUITE.replace("\"g\"", "\"m\"")
        );
        lab.suite(&format!("{guest}\n{config}"), &[("1-before", "exit 0"), ("2-after", "exit 0")]);
        let outcome = lab.test([""; 0]).go();
        outcome.code(0);
        assert_eq!(outcome.told("guest-started", "").len(), guests, "{disk}");
        let told = outcome.told("warning", "");
        let said = |w: &serde_json::Value| {
            let text = w["message"].as_str().unwrap_or_default();
            text.contains(why)
        };
        assert_eq!(told.iter().any(said), guests == 2, "{disk}: {told:?}");
    }
}

#[test]
fn a_disk_of_the_set_up_that_was_made_to_fail_takes_the_guest_with_it() {
    for (order, guests) in [("error+write", 2), ("counts", 1)] {
        let lab = Lab::new();
        let guest = lab.machine("m", &format!("[serial]\ndrain\n[agent]\nagent renew=kept asks=data0+{order}\n"));
        let config = format!(
            "{}\nisolation = \"suite\"\ndisks = [{{ size = \"1MiB\", serial = \"data0\", lab = true }}]\n",
            SUITE.replace("\"g\"", "\"m\"")
        );
        lab.suite(&format!("{guest}\n{config}"), &[("1-before", "sleep 1"), ("2-after", "exit 0")]);
        let outcome = lab.test([""; 0]).go();
        outcome.code(0);
        let told = outcome.told("warning", "");
        assert_eq!(outcome.told("guest-started", "").len(), guests, "{order}: {told:?}");
        let said = |w: &serde_json::Value| {
            let text = w["message"].as_str().unwrap_or_default();
            text.contains("made lab disks fail that were in use before it")
                && text.contains(": data0 (vda: mounted at /srv)")
        };
        assert_eq!(told.iter().any(said), guests == 2, "{order}: {told:?}");
    }
}

#[test]
fn what_one_test_left_is_not_told_of_the_next() {
    let lab = Lab::new();
    let guest = lab.machine("m", "[serial]\ndrain\n[agent]\nagent renew=left sync=covered\n");
    let config = format!("{}\nisolation = \"suite\"\n", SUITE.replace("\"g\"", "\"m\""));
    lab.suite(&format!("{guest}\n{config}"), &[("1-before", "exit 0"), ("2-after", "exit 0")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(0);
    for id in ["s/1-before@m", "s/2-after@m"] {
        let told = outcome.told("warning", "");
        let mounted = |w: &&serde_json::Value| {
            w["unit"] == id && w["message"].as_str().unwrap_or_default().contains("something mounted")
        };
        assert_eq!(told.iter().filter(mounted).count(), 1, "{id}: {told:?}");
    }
}

#[test]
fn results_are_not_read_through_links() {
    let lab = Lab::new();
    fs::write(
        lab.path("good.xml"),
        "<testsuite tests=\"1\"><testcase classname=\"a\" name=\"secret-name\"/></testsuite>",
    )
    .expect("file");
    let good = lab.path("good.xml");
    let dir = lab.path("");
    lab.suite(
        &format!("{SUITE}format = \"junit\"\njunit = [\"*.xml\", \"**/*.xml\"]\n"),
        &[
            ("link", &format!("ln -s {} $BELLJAR_OUT/r.xml", good.display())),
            ("dir-link", &format!("ln -s {} $BELLJAR_OUT/d", dir.display())),
            ("fifo", "mkfifo $BELLJAR_OUT/r.xml"),
            ("hard", "mkdir $BELLJAR_OUT/r.xml"),
            ("nothing", "exit 0"),
            ("empty", ": > $BELLJAR_OUT/r.xml"),
        ],
    );
    let outcome = lab.test(["-j3", "--html", "r.html"]).go();
    outcome.code(100);
    for (unit, verdict) in outcome.verdicts() {
        assert_eq!(verdict, "fail 0", "{unit}");
    }
    let log = String::from_utf8(outcome.kept("events.jsonl")).expect("text");
    let html = fs::read_to_string(lab.path("workspace/r.html")).expect("report");
    assert!(!log.contains("secret-name") && !html.contains("secret-name"));
}

#[test]
fn the_output_directory_itself_may_be_swapped() {
    let lab = Lab::new();
    fs::create_dir(lab.path("private")).expect("directory");
    fs::write(lab.path("private/good.xml"), "<testsuite><testcase name=\"secret-name\"/></testsuite>").expect("file");
    let private = lab.path("private");
    // What the next test's directory will be called is no secret.
    let well = "echo '<testsuite><testcase name=\"mine\"/></testsuite>' > $BELLJAR_OUT/r.xml";
    let ahead = format!("{well}; for n in 2 3 4; do ln -s {} $BELLJAR_OUT/../$n; done; exit 0", private.display());
    lab.suite(
        &format!("{SUITE}isolation = \"suite\"\njunit = \"*.xml\"\n"),
        &[
            ("1-ahead", &ahead),
            ("2-next", "echo x > $BELLJAR_OUT/mine; exit 0"),
            ("3-itself", &format!("rmdir $BELLJAR_OUT; ln -s {} $BELLJAR_OUT; exit 0", private.display())),
            ("4-last", "exit 0"),
        ],
    );
    let outcome = lab.test([""; 0]).go();
    let verdicts = outcome.verdicts();
    assert_eq!(verdicts["s/1-ahead@g"], "pass");
    // A guest can spoil its own directories, and that is all it can do.
    assert!(!lab.path("private/mine").exists(), "{verdicts:?}");
    assert!(!String::from_utf8_lossy(&outcome.kept("events.jsonl")).contains("secret-name"));
    let mode = |name: &str| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(lab.path(name)).expect("mode").permissions())
    };
    assert_ne!(mode("private") & 0o777, 0o777, "nor does it change the mode of what is not its own");
}

/// Control sequences, their C1 forms, line breaks that would forge a line of a report, and the ends of other languages' strings.
const NASTY: &str = "\\033[31mred\\033]0;owned\\007\\033[2J\\302\\233A\\r\\b]]>&<script>\\342\\200\\250";

#[test]
fn nothing_of_a_test_commands_a_terminal_or_a_report() {
    let lab = Lab::new();
    let nasty = format!("printf '{NASTY}\\n'");
    lab.suite(
        &format!("{SUITE}setup = \"setup.sh\"\n"),
        &[
            ("./setup.sh", &nasty),
            ("fail", &format!("{nasty}; {nasty} >&2; exit 1")),
            ("skip", &format!("{nasty}; exit 77")),
            ("tap", &format!("# belljar: format = \"tap\"\nprintf '1..2\\nok 1 - {NASTY}\\nnot ok 2 - {NASTY} # TODO {NASTY}\\nBail out! {NASTY}\\n'; exit 1")),
            ("junit", &format!("# belljar: junit = \"*.xml\"\nprintf '<testsuite><testcase name=\"a&#27;[2J&#x9b;b&#10;ok 99 - forged\"><failure message=\"&#27;]0;owned&#7;\">]]&gt;&#27;[2J&#10;not ok 98 - forged</failure></testcase></testsuite>' > $BELLJAR_OUT/r.xml; f=$(printf '{NASTY}' | tr -d /); : > \"$BELLJAR_OUT/$f\"; exit 1")),
            ("crash", "machine serial 'send \"[    1.0] \\e[5mKernel panic - not syncing: \\e]0;owned\\x07\\xc2\\x9bx\\r\\n\"' panicked; exec sleep 60"),
            ("alarm", "machine serial 'send \"\\e]0;owned\\x07\\r\\n\"'; exit 1"),
        ],
    );
    let pty = Pty::new();
    let outcome = lab
        .test(["-j2", "-v", "--junit", "r.xml", "--tap", "r.tap", "--html", "r.html"])
        .env("TERM", "xterm")
        .stdout(pty.stdio())
        .go();
    outcome.code(100);
    pty.await_text("Summary");
    for (number, line) in String::from_utf8(outcome.kept("events.jsonl")).expect("text").lines().enumerate() {
        let event: serde_json::Value = serde_json::from_str(line).expect("event");
        check(&event, number + 1);
    }
    let seen = String::from_utf8_lossy(&pty.seen()).into_owned();
    for bad in ["\x1b]0", "\x07", "\x1b[5m", "\u{9b}", "\x1b[31mred"] {
        assert!(!seen.contains(bad), "{bad:?} in {seen:?}");
    }
    let plain = lab.belljar(["report"]).go();
    assert!(!plain.text().contains(|c: char| c.is_control() && c != '\n'), "{:?}", plain.text());
    for report in ["r.xml", "r.tap", "r.html"] {
        let text = fs::read_to_string(lab.path("workspace").join(report)).expect("report");
        let bad = text.char_indices().find(|(_, c)| c.is_control() && !"\n\t".contains(*c));
        assert_eq!(bad, None, "{report}: …{:?}…", bad.map(|(at, _)| &text[at.saturating_sub(100)..at]));
        assert!(!report.ends_with("html") || !text.contains("&<script>"), "{report}");
    }
    let tap = fs::read_to_string(lab.path("workspace/r.tap")).expect("report");
    let count = tap.lines().filter(|l| l.starts_with("ok ") || l.starts_with("not ok ")).count();
    assert_eq!(count, 6, "{tap}");
    assert!(!tap.lines().any(|l| l.trim_start().starts_with("ok 99")), "{tap}");
}

/// No text in an event has a control character but line ends and tabs.
fn check(value: &serde_json::Value, line: usize) {
    match value {
        serde_json::Value::String(text) => {
            let bad = text.chars().find(|c| c.is_control() && !"\n\t".contains(*c));
            assert_eq!(bad, None, "line {line}: {text:?}");
        }
        serde_json::Value::Array(all) => all.iter().for_each(|v| check(v, line)),
        serde_json::Value::Object(all) => all.values().for_each(|v| check(v, line)),
        _ => {}
    }
}

#[test]
fn names_of_tests_are_only_names() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a b'c\"d$(touch owned);&<e>", "exit 1"), ("-n", "exit 1"), ("ok 1 - x # SKIP", "exit 1")]);
    let outcome = lab.test(["--junit", "r.xml", "--tap", "r.tap", "--html", "r.html"]).go();
    outcome.code(100);
    assert!(outcome.verdicts().values().all(|v| v == "fail 1"), "{:?}", outcome.verdicts());
    assert!(!lab.path("workspace/owned").exists());
    let tap = fs::read_to_string(lab.path("workspace/r.tap")).expect("report");
    assert!(!tap.lines().any(|l| l.starts_with("ok ")), "{tap}");
    // The line that runs it again does.
    let again: Vec<String> =
        outcome.text().lines().filter_map(|l| l.trim().strip_prefix("again: ").map(str::to_owned)).collect();
    assert_eq!(again.len(), 3, "{}", outcome.text());
    for line in again {
        let words = shlex_split(&lab, &line);
        let outcome = lab.test(&words[2..]).go();
        outcome.code(100);
        assert_eq!(outcome.verdicts().len(), 1, "{line}");
    }
}

/// The words that a shell makes of a line.
fn shlex_split(lab: &Lab, line: &str) -> Vec<String> {
    let said = std::process::Command::new("sh")
        .args(["-c", &format!("printf '%s\\n' {line}")])
        .current_dir(lab.path(""))
        .output()
        .expect("sh");
    String::from_utf8(said.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn a_link_in_the_workspace_is_the_users_own() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("real", "exit 0")]);
    symlink("real", lab.path("workspace/t/link")).expect("link");
    lab.test([""; 0]).go().code(0).verdicts_are(&[("real", "pass"), ("link", "pass")]);
}
