//! What a person sees of a suite while it runs, and what is left on the screen.

use std::num::NonZero;

use crate::harness::{Lab, Pty, SUITE};

/// The screen after all that was written, on one so tall that nothing leaves it, without empty lines at the end.
fn screen(pty: &Pty) -> Vec<String> {
    let size = |n| NonZero::new(n).expect("size");
    let mut parser = vt100::Parser::new(size(500), size(80), 0);
    parser.process(&pty.seen());
    let mut lines: Vec<String> = parser.screen().rows(0, 80).collect();
    while lines.last().is_some_and(|l| l.trim().is_empty()) {
        lines.pop();
    }
    lines
}

#[test]
fn live_lines_tell_what_runs_and_how_long_it_will_take() {
    let lab = Lab::new();
    lab.suite(
        SUITE,
        &[
            ("1-long", "sleep 2.5"),
            ("2-again", "# belljar: retries = 1\n[ $BELLJAR_ATTEMPT = 2 ] && sleep 0.3"),
            ("3-fail", "sleep 0.3; echo '\\033[31mbroken'; exit 3"),
        ],
    );
    // It is not known yet how long they take.
    let first = Pty::new();
    lab.test(["-j1"]).env("TERM", "xterm").stdout(first.stdio()).go().code(100);
    first.await_text("Summary");
    assert!(!String::from_utf8_lossy(&first.seen()).contains("left"));

    let pty = Pty::new();
    let outcome = lab.test(["-j1"]).env("TERM", "xterm").stdout(pty.stdio()).go();
    outcome.code(100);
    pty.await_text("Summary");
    let seen = String::from_utf8_lossy(&pty.seen()).into_owned();
    for live in
        ["s/1-long@g · booting", "s/1-long@g · running", "s/2-again@g (try 2) · running", " 0/3 ", " 1/3 ", " 2/3 "]
    {
        assert!(seen.contains(live), "{live:?} was not shown: {seen:?}");
    }
    // The long one takes a second of it; what is said is cut to tenths.
    let at_first = left(&seen, "0 passed · about ");
    let later = left(&seen, "1 passed · about ");
    assert!(at_first.len() > 1 && !later.is_empty(), "{seen:?}");
    assert!(
        at_first.iter().all(|s| *s >= 1.6) && later.iter().all(|s| *s <= at_first[0] - 0.9),
        "{at_first:?} {later:?}"
    );

    // Nothing live is left, and no line of the account is broken by it.
    let lines = screen(&pty);
    let text = lines.join("\n");
    assert!(!text.contains("· running") && !text.contains("about ") && !text.contains("/3 "), "{text}");
    let count = |start: &str| lines.iter().filter(|l| l.trim_start().starts_with(start)).count();
    assert_eq!(
        (count("PASS ["), count("FLAKY 2 ["), count("TRY 1 FAIL ["), count("FAIL ["), count("Summary [")),
        (1, 1, 1, 2, 1),
        "{text}"
    );
    assert!(text.contains("2 passed (1 flaky), 1 failed"), "{text}");
    assert_eq!(seen.matches("\x1b[?25l").count(), seen.matches("\x1b[?25h").count(), "{seen:?}");
    assert!(pty.is_cooked());
}

/// The seconds that are said to be left after each of these.
fn left(seen: &str, before: &str) -> Vec<f64> {
    let said = seen.split(before).skip(1).filter_map(|rest| Some(rest.split_once(" left")?.0));
    said.filter_map(|time| match time.strip_suffix("ms") {
        Some(millis) => Some(millis.parse::<f64>().ok()? / 1000.0),
        None => time.strip_suffix('s')?.parse().ok(),
    })
    .collect()
}

#[test]
fn a_terminal_that_cannot_move_its_cursor_gets_plain_lines() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    let pty = Pty::new();
    lab.test([""; 0]).env("TERM", "dumb").env("NO_COLOR", "1").stdout(pty.stdio()).go().code(0);
    pty.await_text("Summary");
    assert!(!pty.seen().contains(&0x1b), "{:?}", String::from_utf8_lossy(&pty.seen()));
}
