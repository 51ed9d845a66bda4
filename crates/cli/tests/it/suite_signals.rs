//! Signals to a run of a suite, and what is left when it is killed.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::harness::{Lab, Live, Pty, SUITE};

/// The number of lines of this kind in the event log of the only run.
fn logged(lab: &Lab, kind: &str) -> usize {
    let needle = format!("\"kind\":\"{kind}\"");
    let run = lab.runs().pop();
    let log = run.and_then(|run| fs::read_to_string(run.join("events.jsonl")).ok()).unwrap_or_default();
    log.lines().filter(|l| l.contains(&needle)).count()
}

/// Waits until the event log has so many lines of this kind.
#[track_caller]
fn await_logged(lab: &Lab, run: &mut Live<'_>, kind: &str, count: usize) {
    while logged(lab, kind) < count {
        assert!(run.still_there_after(Duration::from_millis(3)), "belljar ended before {count} {kind}");
    }
}

const LONG: &str = "mark up; exec sleep 60";

#[test]
fn once_cancels_what_runs_and_tells() {
    for (signal, code, name) in
        [(Signal::INT, 130, "SIGINT"), (Signal::TERM, 143, "SIGTERM"), (Signal::HUP, 129, "SIGHUP")]
    {
        let lab = Lab::new();
        lab.suite(SUITE, &[("1-well", "exit 0"), ("2-long", LONG), ("3-never", "exit 0")]);
        let mut run = lab.test(["-j1"]).spawn();
        run.await_mark("up");
        run.signal(signal);
        let outcome = run.end();
        outcome.code(code).verdicts_are(&[("1-well", "pass"), ("2-long", "error interrupted"), ("3-never", "planned")]);
        let said = outcome.text();
        assert!(said.contains(&format!("interrupted by {name}")) && said.contains("Summary"), "{said}");
        let ended = outcome.told("test-run-ended", "");
        assert_eq!(ended[0]["exit_code"], code, "{ended:?}");
    }
}

#[test]
fn retries_and_repetitions_end_with_it() {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}retries = 5\n"), &[("long", LONG)]);
    for more in ["--repeat=9", "--until-fail", "--retries=9"] {
        let mut run = lab.test([more]).spawn();
        run.await_mark("up");
        run.signal(Signal::INT);
        let outcome = run.end();
        outcome.code(130);
        assert_eq!(outcome.tries("long"), ["error interrupted"], "{more}");
        fs::remove_file(lab.path("fake.log")).expect("log");
    }
}

#[test]
fn twice_ends_at_once() {
    let lab = Lab::new();
    // The guest does not answer: an orderly end would take its time.
    let guest =
        lab.machine("deaf", "[options]\nsigterm ignore\nquit ignore\n[serial]\ndrain\n[agent]\nagent silent-after=4\n");
    lab.suite(&format!("{guest}\n{}", SUITE.replace("\"g\"", "\"deaf\"")), &[("long", LONG)]);
    let mut run = lab.test([""; 0]).spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    run.await_note("to-agent", "Signal");
    run.signal(Signal::INT);
    let outcome = run.end();
    outcome.code(130);
    assert!(outcome.elapsed < Duration::from_secs(20), "{:?}", outcome.elapsed);
    assert_eq!(outcome.told("test-run-ended", "").len(), 1, "even so the log has its end");
}

#[test]
fn while_binaries_are_listed_and_guests_boot() {
    let lab = Lab::new();
    let guest = lab.machine("slow", "[serial]\nmark booting\ndrain\n");
    let suite = SUITE.replace("\"g\"", "\"slow\"");
    lab.suite(&format!("{guest}\n{suite}"), &[("a", "exit 0")]);
    let mut run = lab.test([""; 0]).spawn();
    run.await_mark("booting");
    run.signal(Signal::INT);
    run.end().code(130);
    fs::remove_file(lab.path("fake.log")).expect("log");
    lab.suite(&format!("{SUITE}format = \"libtest\"\n"), &[("a", LONG)]);
    let mut run = lab.test([""; 0]).spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    run.end().code(130);
}

#[test]
fn ctrl_z_stops_the_guests_and_every_timer() {
    let lab = Lab::new();
    // It would take half a second, is given three, and stands still for four. It must not end, and its guest with it, before the
    // guest is told to go on: a pretended one does not stand still.
    let waits = "until grep -q '\"cont\"' \"$FAKE_GUEST_SEEN\"; do sleep 0.01; done";
    lab.suite(SUITE, &[("a", &format!("# belljar: timeout = \"3s\"\nmark up; sleep 0.5; {waits}; exit 0"))]);
    let mut run = lab.test([""; 0]).spawn();
    run.await_mark("up");
    run.signal(Signal::TSTP);
    await_logged(&lab, &mut run, "paused", 1);
    run.await_note("qmp", "\"stop\"");
    assert!(run.still_there_after(Duration::from_secs(4)), "it stands still");
    assert_eq!(run.state(), 'T');
    assert_eq!(logged(&lab, "unit-ended"), 0);
    run.signal(Signal::CONT);
    let outcome = run.end();
    outcome.code(0).verdicts_are(&[("a", "pass")]);
    assert!(lab.seen().contains("\"cont\""), "{}", lab.seen());
    assert_eq!((logged(&lab, "paused"), logged(&lab, "resumed")), (1, 1));
}

#[test]
fn ctrl_z_then_ctrl_c() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", LONG)]);
    let mut run = lab.test([""; 0]).spawn();
    run.await_mark("up");
    run.signal(Signal::TSTP);
    await_logged(&lab, &mut run, "paused", 1);
    run.signal(Signal::INT);
    run.signal(Signal::CONT);
    run.end().code(130).verdicts_are(&[("a", "error interrupted")]);
}

#[test]
fn on_a_terminal_ctrl_c_reaches_belljar_only() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    lab.suite(SUITE, &[("a", LONG)]);
    let mut run = lab.test([""; 0]).env("TERM", "xterm").under(pty.wrapper()).spawn();
    run.await_mark("up");
    pty.type_in("\x03");
    run.end().code(130);
    pty.await_text("Summary");
    assert!(pty.is_cooked());
    let seen = String::from_utf8_lossy(&pty.seen()).into_owned();
    assert_eq!(seen.matches("\x1b[?25l").count(), seen.matches("\x1b[?25h").count(), "{seen:?}");
    assert!(!lab.seen().contains("\"kind\":\"signal\""), "{}", lab.seen());
}

#[test]
fn nobody_reads_what_is_said() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 1")]);
    for (filter, code) in [("name(a)", 0), ("name(b)", 100)] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let outcome = lab.test([filter]).stdout(writer).go();
        outcome.code(code);
        assert_eq!(outcome.told("unit-ended", "").len(), 1);
    }
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    lab.belljar(["report"]).stdout(writer).go().code(0);
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    lab.belljar(["list"]).stdout(writer).go().code(0);
}

#[test]
fn a_full_disk_under_the_terminal_is_no_pass_and_no_panic() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    let full = fs::File::options().write(true).open("/dev/full").expect("device");
    // The log has it all: what could not be told can be told again.
    lab.test([""; 0]).stdout(full).go().code(125).complains("cannot write to standard output: No space left on device");
}

#[test]
fn killed_in_the_middle() {
    let lab = Lab::new();
    lab.suite(
        SUITE,
        &[
            ("1-well", "exit 0"),
            ("2-bad", "exit 1"),
            ("3-long", LONG),
            ("4-never", "exit 0"),
            ("5-skip", "# belljar: skip = \"no\"\n:"),
        ],
    );
    let mut run = lab.test(["-j1"]).spawn();
    run.await_mark("up");
    // Nothing is left running: `kill` looks for it.
    let outcome = run.kill();
    assert_eq!(outcome.status.code(), None);
    let report = lab.belljar(["report", "--format", "junit"]).go();
    let xml = report.code(0).text();
    well_formed(&xml);
    for (test, words) in
        [("3-long", "it was running when the run was cut off"), ("4-never", "not begun when the run was cut off")]
    {
        let at = xml.find(&format!("name=\"{test}\"")).unwrap_or_else(|| panic!("{test}: {xml}"));
        assert!(xml[at..].split("</testcase>").next().is_some_and(|case| case.contains(words)), "{xml}");
    }
    assert!(xml.contains("errors=\"2\"") && xml.contains("failures=\"1\"") && xml.contains("skipped=\"1\""), "{xml}");
    let text = lab.belljar(["report"]).go().text();
    assert!(text.contains("UNFINISHED") && text.contains("cut off"), "{text}");
    lab.belljar(["report", "--format", "html", "-o", "r.html"]).go().code(0);
    let tap = lab.belljar(["report", "--format", "tap"]).go().text();
    assert_eq!(tap.lines().filter(|l| l.starts_with("not ok")).count(), 3, "{tap}");
    // Whoever was not seen to pass runs again.
    lab.test_file("3-long", "exit 0");
    let outcome = lab.test(["--rerun-failed"]).go();
    outcome.code(100).verdicts_are(&[("2-bad", "fail 1"), ("3-long", "pass"), ("4-never", "pass")]);
    let outcome = lab.test(["--rerun-failed"]).go();
    outcome.code(100).verdicts_are(&[("2-bad", "fail 1")]);
}

#[test]
fn killed_at_many_moments() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}setup = \"setup.sh\"\n"),
        &[("./setup.sh", ":"), ("a", "echo x; exit 0"), ("b", "exit 1"), ("c", "exit 0")],
    );
    let start = std::time::Instant::now();
    lab.test(["-j2"]).go().code(100);
    let whole = start.elapsed();
    for moment in 0..20 {
        let mut run = lab.test(["-j2"]).spawn();
        run.still_there_after(whole * moment / 20);
        let outcome = run.kill();
        if !outcome.has_events() {
            continue;
        }
        let last = lab.runs().pop().expect("run");
        let report = lab.belljar(["report", "--format", "junit"]).args([last]).go();
        let xml = report.code(0).text();
        well_formed(&xml);
        assert!(xml.contains("<testsuites"), "{xml}");
    }
    lab.test(["-j2"]).go().code(100);
}

/// As an XML parser sees it.
#[track_caller]
fn well_formed(xml: &str) {
    let mut reader = quick_xml::Reader::from_str(xml);
    reader.config_mut().check_end_names = true;
    loop {
        match reader.read_event() {
            Ok(quick_xml::events::Event::Eof) => return,
            Ok(_) => {}
            Err(e) => panic!("{e}: {xml}"),
        }
    }
}
