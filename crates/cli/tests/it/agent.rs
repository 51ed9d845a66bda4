//! An agent that lies, stutters or falls silent: never a pass, never a hang, never more memory.

use std::fs::File;

use rustix::process::Signal;

use crate::harness::Lab;

fn script(manners: &str) -> String {
    format!(
        "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\n[agent]\nwait banner 80000\nagent {manners}\n"
    )
}

#[test]
fn a_wrong_nonce_never_passes() {
    let lab = Lab::new();
    for manners in ["nonce=wrong", "nonce=zero", "exited=other-id"] {
        let outcome = lab.run(&script(manners)).args(["--timeout", "2s"]).sh("echo out").go();
        assert!(matches!(outcome.status.code(), Some(121 | 124 | 125)), "{manners}: {}", outcome.stderr);
        assert_ne!(outcome.verdict(), "pass", "{manners}");
    }
}

#[test]
fn a_wrong_session_never_passes() {
    let lab = Lab::new();
    for manners in ["session=wrong", "session=zero"] {
        let outcome = lab.run(&script(manners)).args(["--boot-timeout", "2s"]).sh("true").go();
        assert!(matches!(outcome.status.code(), Some(121 | 124 | 125)), "{manners}: {}", outcome.stderr);
    }
}

#[test]
fn an_end_that_does_not_come_is_not_made_up() {
    let lab = Lab::new();
    for manners in ["exited=never", "exec=ignore", "silent-after=3"] {
        let outcome = lab.run(&script(manners)).args(["--timeout", "1s"]).sh("true").go();
        outcome.code(124);
        assert_eq!(outcome.verdict(), "timeout/command", "{manners}");
    }
}

#[test]
fn an_agent_that_says_it_is_lost() {
    let lab = Lab::new();
    let outcome = lab.run(&script("exec=fatal")).sh("true").go();
    outcome.code(121).complains("said by the script");
}

#[test]
fn what_cannot_be_forked_is_no_pass() {
    let lab = Lab::new();
    let outcome = lab.run(&script("exec=fail")).sh("true").go();
    outcome.code(126).complains("Cannot allocate memory");
}

#[test]
fn rubbish_between_frames_does_no_harm_or_ends_the_run() {
    let lab = Lab::new();
    for seed in 0..5 {
        let outcome = lab
            .run(&script(&format!("garbage=300 seed={seed}")))
            .args(["--timeout", "5s", "--boot-timeout", "5s"])
            .sh("echo out; exit 7")
            .go();
        // Rubbish may look like the beginning of a long frame, which nothing ends: then time runs out.
        assert!(matches!(outcome.status.code(), Some(7 | 121 | 124 | 125)), "{}", outcome.stderr);
        if outcome.status.code() == Some(7) {
            outcome.says("out\n");
        }
    }
}

#[test]
fn frames_byte_by_byte_and_twice() {
    let lab = Lab::new();
    lab.run(&script("split=on")).sh("echo out; exit 7").go().code(7).says("out\n");
    for manners in ["duplicate=on", "exec=twice-started"] {
        let outcome = lab.run(&script(manners)).args(["--timeout", "5s"]).sh("exit 7").go();
        assert!(matches!(outcome.status.code(), Some(7 | 121 | 125)), "{manners}: {}", outcome.stderr);
    }
    // An end that comes twice must not make a pass of a failure.
    let outcome = lab.run(&script("exited=twice")).sh("echo out; exit 7").go();
    assert_ne!(outcome.status.code(), Some(0), "{}", outcome.stderr);
    let outcome = lab.run(&script("exited=early")).args(["--timeout", "2s"]).sh("echo out; exit 7").go();
    assert!(matches!(outcome.status.code(), Some(0 | 121 | 124 | 125)), "{}", outcome.stderr);
}

#[test]
fn the_port_ends_in_the_middle_of_a_frame() {
    let lab = Lab::new();
    for frames in [0, 1, 2, 3, 4] {
        let outcome = lab
            .run(&script(&format!("eof-after={frames}")))
            .args(["--boot-timeout", "5s", "--timeout", "5s"])
            .sh("echo out")
            .go();
        // A port that closes before a greeting was answered leaves the other one to wait for.
        let code = outcome.status.code();
        assert!(
            matches!(code, Some(121 | 125)) || frames == 0 && code == Some(124),
            "{frames}: {code:?} {}",
            outcome.stderr
        );
    }
}

#[test]
fn silence_at_every_point_comes_to_an_end() {
    let lab = Lab::new();
    for frames in [0, 1, 2] {
        let outcome = lab
            .run(&script(&format!("silent-after={frames}")))
            .args(["--boot-timeout", "1s", "--timeout", "1s"])
            .sh("true")
            .go();
        assert!(matches!(outcome.status.code(), Some(121 | 124)), "{frames}: {:?} {}", outcome.status, outcome.stderr);
    }
}

#[test]
fn setup_that_is_never_answered() {
    let lab = Lab::new();
    // The agent is alive and answers every ping: only the deadline of the boot ends this.
    let outcome = lab.run(&script("setup=never")).args(["--boot-timeout", "1s"]).sh("true").go();
    assert!(matches!(outcome.status.code(), Some(121 | 124)), "{:?} {}", outcome.status, outcome.stderr);
    let outcome = lab.run(&script("setup=bad-index")).sh("true").go();
    assert!(matches!(outcome.status.code(), Some(121 | 125)), "{:?} {}", outcome.status, outcome.stderr);
}

#[test]
fn words_of_the_guest_carry_no_control_characters() {
    let lab = Lab::new();
    let manners = "log=\"\\e]0;owned\\x07\\e[2Jlog\" hostname=\"\\e[31mevil\"";
    let outcome = lab.run(&script(manners)).args(["-v"]).sh("true").go();
    outcome.code(0);
    assert!(!outcome.stderr.contains('\x1b') && !outcome.stderr.contains('\x07'), "{:?}", outcome.stderr);
}

#[test]
fn a_flood_of_output_costs_no_memory() {
    let lab = Lab::new();
    let null = File::options().write(true).open("/dev/null").expect("null");
    let script = script(&format!("flood={}M", if cfg!(debug_assertions) { 256 } else { 1024 }));
    let mut run = lab.run(&script).open_stdin().stdout(null).sh("mark flooded; exec cat").spawn();
    run.await_mark("flooded");
    let peak = run.kibibytes("VmHWM");
    run.signal(Signal::TERM);
    run.end().code(143);
    assert!(peak < 64 * 1024, "{peak} KiB");
}

#[test]
fn output_that_nobody_takes_stops_the_command_not_belljar() {
    let lab = Lab::new();
    // A pipe that nobody reads: the flood must wait in the guest, and the run must still end when told to.
    let (reader, writer) = std::io::pipe().expect("pipe");
    let mut run = lab.run(&script("flood=64M")).stdout(writer).sh("true").spawn();
    run.await_mark("exec");
    assert!(run.still_there_after(std::time::Duration::from_millis(500)));
    assert!(run.kibibytes("VmHWM") < 64 * 1024);
    run.signal(Signal::INT);
    run.end().code(130);
    drop(reader);
}

#[test]
fn a_command_that_gets_no_credit_for_input_waits() {
    let lab = Lab::new();
    let outcome =
        lab.run(&script("credit=off")).stdin(vec![b'x'; 1 << 20]).args(["--timeout", "1s"]).command(["cat"]).go();
    outcome.code(124);
}

#[test]
fn more_credit_than_there_can_be() {
    let lab = Lab::new();
    let outcome =
        lab.run(&script("credit=huge")).stdin(vec![b'x'; 1 << 20]).args(["--timeout", "10s"]).sh("cat | wc -c").go();
    assert!(matches!(outcome.status.code(), Some(0 | 121 | 125)), "{}", outcome.stderr);
}

#[test]
fn a_flood_of_words_costs_no_memory() {
    let lab = Lab::new();
    let text = "x".repeat(4000);
    let mut run = lab.run(&script(&format!("log={text} logs=20000"))).open_stdin().sh("mark up; exec cat").spawn();
    run.await_mark("up");
    let peak = run.kibibytes("VmHWM");
    run.signal(Signal::INT);
    run.end().code(130);
    assert!(peak < 64 * 1024, "{peak} KiB");
}
