//! Getting in over the serial line, whatever is on it, against real shells.

use std::path::Path;

use crate::harness::{Lab, snapshot};

/// What follows on the agent's port when it is started by hand.
const AGENT: &str = "[agent]\nwait agent 85000\nagent pid1=off\n";
/// A guest in which the agent cannot run: the session stays on the console.
const BROKEN: (&str, &str) = ("FAKE_GUEST_AGENT", "broken");

/// More than any buffer.
const FLOOD: &str = if cfg!(debug_assertions) { "12MiB" } else { "64MiB" };

fn serial(steps: &str) -> String {
    format!("[serial]\nsend \"SeaBIOS (version 1.16.2)\\r\\n\"\n{steps}\n{AGENT}")
}

/// Every shell of Debian that may be somebody's login shell. Not busybox: it would mount by itself; see the initramfs.
const SHELLS: [&str; 9] = [
    "/bin/sh",
    "/bin/bash --norc --noprofile",
    "/bin/bash --norc --noprofile --noediting",
    "/bin/mksh",
    "/bin/zsh -f",
    "/usr/bin/fish --no-config",
    "/bin/csh -f",
    "/bin/tcsh -f",
    "/bin/ksh93",
];

fn is_there(shell: &str) -> bool {
    Path::new(shell.split(' ').next().unwrap_or_default()).exists()
}

#[test]
fn every_shell_that_is_installed() {
    let lab = Lab::new();
    for shell in SHELLS.iter().filter(|s| is_there(s)) {
        let outcome = lab.run_image(&serial(&format!("shell program=\"{shell}\""))).sh("echo in; exit 7").go();
        assert_eq!((outcome.status.code(), outcome.text().as_str()), (Some(7), "in\n"), "{shell}: {}", outcome.stderr);
    }
}

#[test]
fn prompts_with_colours_and_worse() {
    let lab = Lab::new();
    for prompt in [
        "\\e[01;32mroot@host\\e[00m:\\e[01;34m~\\e[00m# ",
        "\\e]0;title\\x07\\e[?2004h# ",
        "",
        "42-$ > ",
        "a prompt\\r\\nof two lines\\r\\n>>> ",
    ] {
        let outcome = lab.run_image(&serial(&format!("shell prompt=\"{prompt}\""))).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{prompt:?}: {}", outcome.stderr);
    }
}

#[test]
fn no_echo_and_narrow_lines() {
    let lab = Lab::new();
    for shell in ["shell echo=off", "shell cols=20 program=\"/bin/bash --norc --noprofile\"", "shell cols=80 rows=24"] {
        let outcome = lab.run_image(&serial(shell)).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{shell}: {}", outcome.stderr);
    }
}

#[test]
fn characters_that_are_typed_too_early_are_lost() {
    let lab = Lab::new();
    for count in [1, 5, 30, 200] {
        let outcome = lab.run_image(&serial(&format!("drop {count}\nshell"))).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{count}: {}", outcome.stderr);
    }
}

#[test]
fn messages_of_the_kernel_in_the_middle_of_everything() {
    let lab = Lab::new();
    for seed in 0..4 {
        let outcome = lab.run_image(&serial(&format!("faults noise=15 seed={seed}\nshell"))).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{seed}: {}", outcome.stderr);
    }
}

#[test]
fn characters_of_the_guest_that_get_lost() {
    let lab = Lab::new();
    for seed in 0..3 {
        let outcome = lab.run_image(&serial(&format!("faults lose=3 seed={seed}\nshell"))).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{seed}: {}", outcome.stderr);
    }
}

#[test]
fn bytes_one_at_a_time() {
    let lab = Lab::new();
    lab.run_image(&serial("faults chunk=1\nshell prompt=\"\\e[31m#\\e[0m \"")).sh("exit 7").go().code(7);
}

#[test]
fn a_flood_before_the_shell() {
    let lab = Lab::new();
    for kind in ["text", "line", "random"] {
        let outcome =
            lab.run_image(&serial(&format!("flood {FLOOD} kind={kind}\nsend \"\\r\\n\"\nshell"))).sh("exit 7").go();
        assert_eq!(outcome.status.code(), Some(7), "{kind}: {}", outcome.stderr);
    }
}

#[test]
fn a_flood_during_the_command() {
    let lab = Lab::new();
    let script = &format!("[serial]\ndrain\nwait flood 80000\nflood {FLOOD}\nmark flooded\n[agent]\nagent\n");
    let mut run = lab.run(script).open_stdin().sh("mark flood; cat; exit 7").spawn();
    run.await_mark("flooded");
    let peak = run.kibibytes("VmHWM");
    assert!(peak < 64 * 1024, "{peak} KiB");
    run.signal(rustix::process::Signal::INT);
    run.end().code(130);
}

#[test]
fn a_login_with_a_password() {
    let lab = Lab::new();
    let script = serial("login user=tester password=\"s3cret word\"");
    let outcome = lab.run_image(&script).args(["--login", "tester:s3cret word", "-vv"]).sh("exit 7").go();
    outcome.code(7).keeps_secret("s3cret word");
    // In the environment it is not seen by others.
    let outcome = lab.run_image(&script).env("BELLJAR_LOGIN", "tester:s3cret word").args(["-v"]).sh("exit 7").go();
    outcome.code(7).keeps_secret("s3cret word");
}

#[test]
fn root_without_a_password() {
    let lab = Lab::new();
    lab.run_image(&serial("login user=root")).sh("exit 7").go().code(7);
}

#[test]
fn a_login_that_is_refused() {
    let lab = Lab::new();
    let script = serial("login user=root password=right");
    let outcome =
        lab.run_image(&script).args(["--login", "root:wrong-secret", "--boot-timeout", "20s"]).sh("true").go();
    outcome.code(125).keeps_secret("wrong-secret");
    snapshot!(outcome);
    // And where none was given, the guest that asks for one is explained.
    let outcome = lab.run_image(&script).args(["--boot-timeout", "20s"]).sh("true").go();
    outcome.code(125).complains("--login");
}

#[test]
fn a_login_amid_messages_of_services() {
    let lab = Lab::new();
    let steps = "faults noise=10 text=\"[  OK  ] Started \\e[0;1;39mcron.service\\e[0m.\" seed=3\nlogin user=root password=secret";
    let outcome = lab.run_image(&serial(steps)).args(["--login", "root:secret"]).sh("exit 7").go();
    outcome.code(7);
}

#[test]
fn a_motd_like_a_prompt() {
    let lab = Lab::new();
    let steps = "login user=root password=secret motd=\"Last login: Mon on ttyS0\\r\\nPassword: change it\\r\\nroot@x:~# not yet\\r\\n\"";
    lab.run_image(&serial(steps)).args(["--login", "root:secret"]).sh("exit 7").go().code(7);
}

#[test]
fn the_session_stays_on_the_console_where_the_agent_cannot_run() {
    let lab = Lab::new();
    let run = |text: &str| lab.run_image(&serial("shell")).env(BROKEN.0, BROKEN.1).args(["-v"]).sh(text);
    let outcome = run("echo out; echo err >&2; exit 7").go();
    outcome.code(7).complains("sh on the console");
    assert!(outcome.text().contains("out\n"), "{:?}: {}", outcome.text(), outcome.stderr);
    run("kill -9 $$").go().code(137);
    let outcome = run("pwd; echo made > made").go();
    outcome.code(0);
    assert_eq!(std::fs::read_to_string(lab.path("workspace/made")).expect("made"), "made\n");
}

#[test]
fn long_commands_on_the_console() {
    let lab = Lab::new();
    // A terminal cuts a line at 4095 characters.
    let long = "x".repeat(9000);
    let outcome = lab
        .run_image(&serial("shell"))
        .env(BROKEN.0, BROKEN.1)
        .command(["sh", "-c", "echo ${#1}; exit 7", "sh", &long])
        .go();
    outcome.code(7);
    assert!(outcome.text().contains("9000\n"), "{:?}", outcome.text());
    let outcome = lab.run(crate::harness::WELL).command(["sh", "-c", "echo ${#1}", "sh", &long]).go();
    outcome.code(0).says("9000\n");
}

#[test]
fn long_lines_of_output_on_the_console() {
    let lab = Lab::new();
    let text = "head -c 100000 /dev/zero | tr '\\0' y; echo; exit 7";
    let outcome = lab.run_image(&serial("shell cols=80")).env(BROKEN.0, BROKEN.1).sh(text).go();
    outcome.code(7);
    assert!(outcome.text().contains(&"y".repeat(100_000)), "{} bytes", outcome.stdout.len());
}

#[test]
fn a_timeout_on_the_console() {
    let lab = Lab::new();
    let outcome =
        lab.run_image(&serial("shell")).env(BROKEN.0, BROKEN.1).args(["--timeout", "1s"]).sh("exec sleep 60").go();
    outcome.code(124);
}

#[test]
fn a_panic_on_the_console_session() {
    let lab = Lab::new();
    let steps = "shell\nwait oops 80000\nsend \"\\r\\n[   12.345678] Kernel panic - not syncing: Fatal exception\\r\\n\"\npanicked";
    let outcome = lab.run_image(&serial(steps)).env(BROKEN.0, BROKEN.1).sh("mark oops; exec sleep 60").go();
    outcome.code(121);
    assert_eq!(outcome.verdict(), "crash/panic");
}

#[test]
fn a_kernel_without_9p_on_the_console() {
    let lab = Lab::new();
    let without = |script: &str| lab.run_image(script).env("FAKE_GUEST_9P", "off").sh("true");
    let outcome = without(&serial("shell")).env(BROKEN.0, BROKEN.1).go();
    outcome.code(125).complains("9p").complains("the output directory").complains("--workspace none");
    // The agent, which is typed there, finds the same.
    let outcome = without(&serial("shell").replace("agent pid1=off", "agent pid1=off setup=no9p")).go();
    outcome.code(125).complains("no 9p file system").complains("--workspace none");
}

/// The words for a guest whose initramfs is a cpio archive of nothing.
fn initramfs(lab: &Lab) -> [String; 4] {
    let mut cpio = b"07070100000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000b00000000TRAILER!!!\0".to_vec();
    cpio.resize(512, 0);
    std::fs::write(lab.path("initrd"), cpio).expect("initrd");
    let (kernel, initrd) = (lab.path("vmlinux").display().to_string(), lab.path("initrd").display().to_string());
    ["--kernel".into(), kernel, "--initrd".into(), initrd]
}

#[test]
fn a_guest_that_wants_no_share_needs_no_9p() {
    let lab = Lab::new();
    let guest = initramfs(&lab);
    let run = || {
        let script = "[serial]\ndrain\n[agent]\nagent setup=no9p\n";
        lab.belljar(["run", "--accel", "tcg", "-v", "-w", "none", "--access", "init"]).script(script).args(&guest)
    };
    let has_9p = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).contains("virtio-9p");
    let outcome = run().sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("share: none").complains("$BELLJAR_OUT stays in the guest");
    assert!(!outcome.stderr.contains("9p"), "{}", outcome.stderr);
    assert!(!has_9p(outcome.kept("qemu.cmd")), "no device that nobody needs");
    let out = lab.path("results");
    let outcome = run().args(["--out".as_ref(), out.as_os_str()]).sh("true").go();
    outcome.code(125).complains("no 9p file system");
    assert!(has_9p(outcome.kept("qemu.cmd")), "the output directory was asked for");
}

#[test]
fn an_initramfs_with_a_shell() {
    let lab = Lab::new();
    let guest = initramfs(&lab);
    let script = serial("send \"~ # \"\nshell program=\"/bin/busybox ash\" prompt=\"~ # \"");
    lab.run_bare(&script).args(&guest).in_playground().sh("echo in; exit 7").go().code(7).says("in\n");
    let script = "[serial]\ndrain\n[agent]\nagent\n";
    lab.run_bare(script).args(&guest).args(["--access", "init"]).sh("echo in; exit 7").go().code(7).says("in\n");
}
