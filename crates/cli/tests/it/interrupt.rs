//! Ctrl-C and its like.

use std::time::Duration;

use rustix::process::Signal;
use write_program::write_program;

use crate::harness::{Lab, WELL};

#[test]
fn once_ends_cleanly() {
    let lab = Lab::new();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut run = lab.run(WELL).sh("mark up; exec sleep 60").spawn();
        run.await_mark("up");
        run.signal(signal);
        let outcome = run.end();
        outcome.code(code);
        assert_eq!(outcome.verdict(), "error/interrupted");
        std::fs::remove_file(lab.path("fake.log")).expect("log");
    }
}

#[test]
fn a_copy_of_an_image_in_the_making_is_given_up() {
    use std::fs;

    let lab = Lab::new();
    let image = lab.image("data.qcow2", "qcow2");
    fs::create_dir(lab.path("bin")).expect("directory");
    let program = lab.path("bin/qemu-img");
    let begun = lab.path("begun");
    let script = format!(
        "#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin\ncase $1 in convert) echo part >&0; touch {}; exec sleep 600 ;; esac\nexec qemu-img \"$@\"\n",
        begun.display()
    );
    write_program(&program, script);
    let path = format!("{}:{}", lab.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let start = || {
        let disk = format!("file={},lab", image.display());
        let mut run = lab.run(WELL).env("PATH", &path).args(["--disk", &disk]).sh("true").spawn();
        while !begun.exists() {
            assert!(run.still_there_after(Duration::from_millis(10)), "it has begun to copy");
        }
        fs::remove_file(&begun).expect("note");
        run
    };
    let run = start();
    run.signal(Signal::INT);
    let outcome = run.end();
    outcome.code(130);
    assert!(outcome.elapsed < Duration::from_secs(20), "{:?}", outcome.elapsed);
    start().kill();
    // Nothing half is taken for a copy, and what a killed run has locked is nobody's.
    let disk = format!("file={},lab", image.display());
    lab.run(WELL).args(["-v", "--disk", &disk]).sh("true").go().code(0).complains("(made now, in ");
}

#[test]
fn once_reaches_the_command_first() {
    let lab = Lab::new();
    // The command is killed before its guest is, so that the log says so.
    let mut run = lab.run(WELL).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    run.end().code(130);
    assert!(lab.seen().contains("Signal { id: 1"), "{}", lab.seen());
}

#[test]
fn twice_ends_at_once() {
    let lab = Lab::new();
    // The agent is silent: an orderly end would take its time.
    let script = "[serial]\ndrain\n[agent]\nagent silent-after=3\n";
    let mut run = lab.run(script).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    // Two signals in the same moment are one to the kernel.
    run.await_note("to-agent", "Signal");
    run.signal(Signal::INT);
    let outcome = run.end();
    outcome.code(130);
    assert!(outcome.elapsed < Duration::from_secs(20), "{:?}", outcome.elapsed);
}

#[test]
fn once_ends_even_a_guest_that_does_not_answer() {
    let lab = Lab::new();
    let script = "[serial]\ndrain\n[agent]\nagent silent-after=3\n";
    let mut run = lab.run(script).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    run.end().code(130);
}

#[test]
fn during_the_boot() {
    let lab = Lab::new();
    for script in ["[serial]\nmark booting\ndrain\n", "[start]\nmark booting\nhang\n"] {
        let mut run = lab.run(script).sh("true").spawn();
        run.await_mark("booting");
        run.signal(Signal::INT);
        run.end().code(130);
        std::fs::remove_file(lab.path("fake.log")).expect("log");
    }
}

#[test]
fn during_the_login() {
    let lab = Lab::new();
    let mut run = lab.run_image("[serial]\nsend \"fake login: \"\nmark asked\n").sh("true").spawn();
    run.await_mark("asked");
    run.signal(Signal::TERM);
    run.end().code(143);
}

#[test]
fn a_qemu_that_ignores_sigterm_is_killed() {
    let lab = Lab::new();
    let script = format!("[options]\nsigterm ignore\nquit ignore\npowerdown ignore\n{WELL}");
    let mut run = lab.run(&script).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    run.signal(Signal::INT);
    run.end().code(130);
    lab.run(&script).sh("exit 7").go().code(7);
}
