//! What reaches the user's terminal, and in what state it is left.

use std::{ffi::OsString, fs, io::Write as _};

use rustix::process::Signal;

use crate::harness::{Lab, Pty, WELL, until};

/// Everything by which a guest could take a terminal over.
const NASTY: &str =
    "printf 'a\\033[31mred\\033[0m\\033]0;title\\007\\033[2J\\033[6n\\033P$q\\033\\\\\\302\\233b\\r\\nend\\n'";

#[test]
fn a_terminal_gets_no_control_sequences_of_the_guest() {
    let lab = Lab::new();
    let pty = Pty::new();
    let outcome = lab.run(WELL).stdout(pty.stdio()).sh(NASTY).go();
    outcome.code(0);
    pty.await_text("end");
    let seen = pty.seen();
    assert!(!seen.contains(&0x1b) && !seen.contains(&7), "{:?}", String::from_utf8_lossy(&seen));
    assert!(!seen.windows(2).any(|w| w == [0xc2, 0x9b]), "a C1 control: {:?}", String::from_utf8_lossy(&seen));
}

#[test]
fn a_pipe_gets_every_byte() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).sh(NASTY).go();
    outcome.code(0).says("a\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b[2J\x1b[6n\x1bP$q\x1b\\\u{9b}b\r\nend\n");
}

#[test]
fn the_console_is_shown_without_control_sequences() {
    let lab = Lab::new();
    let script = "[serial]\nsend \"\\e[2J\\e[31mLinux\\e[0m \\x07\\xff version\\e]0;owned\\x07\\r\\n\"\ndrain\nwait oops 80000\nsend \"[    1.000000] \\e[5mKernel panic - not syncing: \\e]0;owned\\x07x\\r\\n\"\npanicked\n[agent]\nagent\n";
    let outcome = lab.run(script).args(["-vv"]).sh("mark oops; exec sleep 60").go();
    outcome.code(121);
    assert!(!outcome.stderr.contains(['\x1b', '\x07']), "{:?}", outcome.stderr);
    // What is kept is what came.
    assert!(outcome.kept("console.log").starts_with(b"\x1b[2J\x1b[31mLinux"));
}

#[test]
fn progress_on_a_terminal_leaves_it_clean() {
    let lab = Lab::new();
    let pty = Pty::new();
    let run = lab.run(WELL).env("TERM", "xterm").under(pty.wrapper()).sh("echo out; exit 7").spawn();
    run.end().code(7);
    pty.await_text("exit code 7");
    assert!(pty.is_cooked());
    let seen = String::from_utf8_lossy(&pty.seen()).into_owned();
    assert!(seen.contains("out\r\n"), "{seen:?}");
    // A hidden cursor is shown again.
    assert_eq!(seen.matches("\x1b[?25l").count(), seen.matches("\x1b[?25h").count(), "{seen:?}");
}

#[test]
fn no_colours_when_told() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["-v"]).sh("exit 7").go();
    assert!(!outcome.code(7).stderr.contains('\x1b'), "{:?}", outcome.stderr);
}

#[test]
fn a_shell_is_a_terminal() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    let run = lab
        .shell(WELL)
        .env("TERM", "xterm-256color")
        .under(pty.wrapper())
        .command(["sh", "-c", "stty size; echo TERM=$TERM; trap 'stty size' WINCH; echo ready-$((1+1)); while :; do read -r line || continue; echo got-$line; [ \"$line\" = bye ] && exit 5; done"])
        .spawn();
    pty.await_text("24 80");
    pty.await_text("TERM=xterm-256color");
    pty.await_text("ready-2");
    assert!(!pty.is_cooked(), "the guest's terminal edits and echoes, not ours");
    pty.resize(40, 132);
    pty.type_in("one\r");
    pty.await_text("got-one");
    pty.await_text("40 132");
    pty.type_in("bye\r");
    run.end().code(5);
    assert!(pty.is_cooked(), "the terminal is left as it was");
}

#[test]
fn ctrl_c_in_a_shell_is_the_guests() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    let run = lab
        .shell(WELL)
        .under(pty.wrapper())
        .command([
            "sh",
            "-c",
            "trap 'echo caught-$((1+1)); exit 9' INT; echo ready-$((1+1)); while :; do sleep 0.05; done",
        ])
        .spawn();
    pty.await_text("ready-2");
    pty.type_in("\x03");
    pty.await_text("caught-2");
    run.end().code(9);
    assert!(pty.is_cooked());
}

#[test]
fn a_terminal_is_restored_whatever_happens() {
    let lab = Lab::new();
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let pty = Pty::new();
        let run = lab
            .shell(WELL)
            .under(pty.wrapper())
            .command(["sh", "-c", "printf '\\033[?1049h'; echo ready-$((1+1)); exec sleep 60"])
            .spawn();
        pty.await_text("ready-2");
        assert!(!pty.is_cooked());
        run.signal(signal);
        run.end();
        assert!(pty.is_cooked(), "{signal:?}");
    }
}

#[test]
fn a_crash_under_a_shell_restores_the_terminal() {
    let lab = Lab::new();
    let pty = Pty::new();
    let script = "[serial]\ndrain\nwait oops 80000\nsignal 9\n[agent]\nagent\n";
    let run = lab.shell(script).under(pty.wrapper()).command(["sh", "-c", "mark oops; exec sleep 60"]).spawn();
    run.end().code(121);
    assert!(pty.is_cooked());
    pty.await_text("QEMU ended");
}

#[test]
fn a_command_with_a_terminal_of_its_own() {
    let lab = Lab::new();
    let pty = Pty::new();
    let run = lab.run(WELL).args(["--tty"]).under(pty.wrapper()).sh("test -t 0 && test -t 1 && tty; exit 6").spawn();
    run.end().code(6);
    pty.await_text("/dev/pts/");
}

#[test]
fn a_command_has_a_terminal_where_belljar_has_none() {
    let lab = Lab::new();
    // As under CI: pipes on all sides, and no controlling terminal.
    let text = "test -t 0 && test -t 1 && test -t 2 && stty size; printf 'to-stderr\\n' >&2; exit 6";
    let outcome = lab.run(WELL).args(["--tty"]).under(["setsid", "--wait"]).sh(text).go();
    outcome.code(6).says("24 80\r\nto-stderr\r\n");
    // What comes from a pipe is typed.
    let outcome = lab.run(WELL).args(["--tty"]).stdin("typed\n").sh("stty -echo; read -r line; echo got-$line").go();
    assert!(String::from_utf8_lossy(&outcome.code(0).stdout).ends_with("got-typed\r\n"), "{:?}", outcome.stdout);
    // A terminal on standard output alone says how large it is, and is left as it is.
    let pty = Pty::new();
    pty.resize(30, 100);
    let run = lab.run(WELL).args(["--tty"]).stdout(pty.stdio()).sh("stty size").spawn();
    run.end().code(0);
    pty.await_text("30 100");
    assert!(pty.is_cooked());
    // One that does not know its size.
    let pty = Pty::new();
    pty.resize(0, 0);
    lab.run(WELL).args(["--tty"]).under(pty.wrapper()).sh("stty size").spawn().end().code(0);
    pty.await_text("24 80");
}

/// Runs Belljar as a job of a shell with job control.
fn job(pty: &Pty, script: &str) -> Vec<OsString> {
    let shell = ["bash", "-c", script, "sh"];
    pty.wrapper().into_iter().chain(shell.map(OsString::from)).collect()
}

#[test]
fn in_the_background_input_that_nobody_reads_does_not_stop_it() {
    let lab = Lab::new();
    let pty = Pty::new();
    // The exit code of a job that was stopped would be its signal's.
    let script = "set -m; \"$@\" & wait $!; echo code-$?";
    lab.run(WELL).under(job(&pty, script)).sh("exit 6").spawn().end().code(0);
    pty.await_text("code-6");
    // With a terminal for the command, which is not made raw while somebody else has it.
    let pty = Pty::new();
    lab.run(WELL).args(["-t"]).under(job(&pty, script)).sh("echo hello; exit 6").spawn().end().code(0);
    pty.await_text("hello");
    pty.await_text("code-6");
    assert!(pty.is_cooked());
}

#[test]
fn a_job_reads_once_it_is_in_the_foreground() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    let script = "set -m; \"$@\" & read -r go; fg; echo code-$?";
    let mut run = lab.run(WELL).under(job(&pty, script)).sh("mark up; read -r line; echo got-$line; exit 7").spawn();
    run.await_mark("up");
    pty.type_in("go\n");
    // The shell says which job it is.
    pty.await_text("\r\n\"$@\"");
    pty.type_in("typed\n");
    run.end().code(0);
    pty.await_text("got-typed");
    pty.await_text("code-7");
}

#[test]
fn a_hang_up_does_not_end_what_was_started_to_outlive_it() {
    let lab = Lab::new();
    let mut run = lab.run(WELL).under(["nohup"]).sh(&format!("mark up; {}; exit 8", until("go"))).spawn();
    run.await_mark("up");
    run.signal(Signal::HUP);
    let note = "{\"kind\":\"mark\",\"value\":\"go\"}\n";
    fs::OpenOptions::new().append(true).open(lab.path("fake.log")).unwrap().write_all(note.as_bytes()).unwrap();
    run.end().code(8);
}

#[test]
fn ctrl_c_on_the_terminal_reaches_belljar_only_once() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    let mut run = lab.run(WELL).under(pty.wrapper()).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    pty.type_in("\x03");
    run.end().code(130);
    assert!(pty.is_cooked());
    // QEMU is in a process group of its own and has not heard it.
    assert!(!lab.seen().contains("\"kind\":\"signal\""), "{}", lab.seen());
}
