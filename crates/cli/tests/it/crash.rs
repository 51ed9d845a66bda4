//! Guests that die under a command: never a pass, and named.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Lab, snapshot, until};

/// A guest that works until its command says `mark oops`, and what comes then.
fn dying(what: &str) -> String {
    format!(
        "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\nwait oops 80000\n{what}\n[agent]\nwait banner 80000\nagent\n"
    )
}

/// Says that it has begun, and would pass if it could.
const COMMAND: &str = "echo begun; mark oops; exec sleep 60";

#[test]
fn a_panic_under_a_command() {
    let lab = Lab::new();
    let panic = "wait output 80000\nsend \"[   12.345678] Kernel panic - not syncing: Fatal exception in interrupt\\r\\n[   12.345679] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---\\r\\n\"\npanicked";
    let outcome = lab.run(&dying(panic)).sh(COMMAND).go();
    outcome.code(121).says("begun\n");
    assert_eq!(outcome.verdict(), "crash/panic");
    snapshot!(outcome);
}

#[test]
fn a_panic_that_only_the_console_tells_of() {
    let lab = Lab::new();
    let panic = "send \"[   12.345678] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\\r\\n\"";
    let outcome = lab.run(&dying(panic)).sh(COMMAND).go();
    outcome.code(121).complains("Attempted to kill init");
    assert_eq!(outcome.verdict(), "crash/panic");
}

#[test]
fn a_panic_that_only_qemu_tells_of() {
    let lab = Lab::new();
    let outcome = lab.run(&dying("panicked")).sh(COMMAND).go();
    outcome.code(121);
    assert_eq!(outcome.verdict(), "crash/panic");
}

#[test]
fn memory_is_kept_where_that_is_asked_for() {
    let lab = Lab::new();
    let oops = "send \"[   12.345678] BUG: unable to handle page fault for address: ffffa0c0\\r\\n\"";
    for (dying, how) in [(dying("panicked"), "crash/panic"), (dying(oops), "crash/oops")] {
        let outcome = lab.run(&dying).args(["--panic-dump", "1M"]).sh(COMMAND).go();
        outcome.code(121).complains("the guest's memory, for crash(8): ").complains("memory.kdump (1 MiB)");
        assert_eq!(outcome.verdict(), how);
        assert_eq!(outcome.kept("memory.kdump").len(), 1 << 20);
        let outcome = lab.run(&dying).args(["--panic-dump", "1023K"]).sh(COMMAND).go();
        outcome.code(121).complains("the guest's memory is not kept: it is more than 1023 KiB, which is its limit");
        assert!(outcome.kept("memory.kdump").is_empty());
    }
    // At the boot, too.
    let panic = "[serial]\nwait qmp\nsend \"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\\r\\n\"\npanicked";
    let outcome = lab.run(panic).args(["--panic-dump", "1M"]).sh(COMMAND).go();
    outcome.code(121).complains("memory.kdump (1 MiB)");
    let outcome = lab.run(&dying("panicked")).sh(COMMAND).go();
    assert!(!outcome.stderr.contains("memory"), "{}", outcome.stderr);
}

#[test]
fn a_panic_is_told_however_long_its_memory_takes() {
    let lab = Lab::new();
    let script = format!("[options]\ndump 8\n{}", dying("panicked"));
    // The command has less time than that.
    let outcome = lab.run(&script).args(["--panic-dump", "1M", "--timeout", "5s"]).sh(COMMAND).go();
    outcome.code(121).complains("memory.kdump (1 MiB)");
    let script = script.replace("dump 8", "dump 60");
    let lab = Lab::new();
    let mut run = lab.run(&script).args(["--panic-dump", "1M"]).sh(COMMAND).spawn();
    run.await_note("qmp", "dump-guest-memory");
    run.signal(Signal::INT);
    let outcome = run.end();
    outcome.code(121).complains("panicked").complains("the guest's memory is not kept: that was interrupted");
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
    assert!(outcome.kept("memory.kdump").is_empty());
}

#[test]
fn an_oops_counts_unless_told_otherwise() {
    let lab = Lab::new();
    let oops = "send \"[   12.345678] BUG: unable to handle page fault for address: ffffa0c0\\r\\n[   12.345678] Oops: 0002 [#1] PREEMPT SMP\\r\\n\"\nmark said";
    let outcome = lab.run(&dying(oops)).sh(COMMAND).go();
    outcome.code(121);
    assert_eq!(outcome.verdict(), "crash/oops");
    // The command goes on for long enough that the fault is seen, then passes.
    let outcome =
        lab.run(&dying(oops)).args(["--oops", "note"]).sh(&format!("mark oops; {}; echo on", until("said"))).go();
    outcome.code(0).says("on\n");
}

#[test]
fn an_oops_just_before_the_end_is_no_pass() {
    let lab = Lab::new();
    let oops = "send \"[   12.345678] BUG: unable to handle page fault for address: ffffa0c0\\r\\n\"\nmark said";
    // The message is on the line before the command ends, if only just.
    let outcome = lab.run(&dying(oops)).sh(&format!("mark oops; {}", until("said"))).go();
    outcome.code(121);
    assert_eq!(outcome.verdict(), "crash/oops");
}

#[test]
fn power_off_and_reboot_unasked() {
    let lab = Lab::new();
    let outcome = lab.run(crate::harness::WELL).sh("poweroff").go();
    outcome.code(121).complains("powered off");
    assert_eq!(outcome.verdict(), "crash/power-off");
    let outcome = lab.run(crate::harness::WELL).sh("reboot").go();
    outcome.code(121).complains("rebooted unasked");
    assert_eq!(outcome.verdict(), "crash/reboot");
}

#[test]
fn qemu_dies() {
    let lab = Lab::new();
    let outcome = lab.run(&dying("stderr \"KVM internal error. Suberror: 1\"\nsignal 6")).sh(COMMAND).go();
    outcome.code(121).complains("QEMU ended").complains("SIGABRT");
    assert_eq!(outcome.verdict(), "crash/qemu");
    assert!(String::from_utf8_lossy(&outcome.kept("qemu.log")).contains("Suberror: 1"));
    let outcome = lab.run(&dying("signal 9")).sh(COMMAND).go();
    outcome.code(121).complains("SIGKILL");
    let outcome = lab.run(&dying("exit 0")).sh(COMMAND).go();
    outcome.code(121);
}

#[test]
fn qmp_goes_away() {
    let lab = Lab::new();
    // What was running is done; the guest is ended without QMP's help.
    let outcome =
        lab.run(&dying("qmp close\nmark closed")).sh(&format!("mark oops; {}; echo on", until("closed"))).go();
    outcome.code(0).says("on\n");
    let outcome = lab.run(&dying("qmp mute\nmark closed")).sh(&format!("mark oops; {}; exit 3", until("closed"))).go();
    outcome.code(3);
    assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
    let outcome = lab
        .run(&dying("qmp send \"}{ rubbish \\x00\\xff\\r\\n\"\nmark sent"))
        .sh(&format!("mark oops; {}; exit 3", until("sent")))
        .go();
    outcome.code(3);
}

#[test]
fn qmp_never_answers() {
    let lab = Lab::new();
    // Nothing runs in a machine that cannot be controlled.
    for (script, says) in
        [("[start]\nqmp mute\n", "did not answer `(greeting)`"), ("[start]\nqmp close\n", "control channel")]
    {
        let script = format!("{script}[serial]\ndrain\n[agent]\nagent\n");
        let outcome = lab.run(&script).args(["--boot-timeout", "5s"]).sh("mark ran").go();
        outcome.code(125).complains(says);
        assert!(!lab.seen().contains("\"ran\""), "{}", lab.seen());
    }
}

#[test]
fn the_disk_is_full_on_the_host() {
    let lab = Lab::new();
    let full = "event BLOCK_IO_ERROR \"{\\\"device\\\":\\\"\\\",\\\"operation\\\":\\\"write\\\",\\\"action\\\":\\\"stop\\\",\\\"nospace\\\":true,\\\"reason\\\":\\\"No space left on device\\\"}\"\nevent STOP";
    let outcome = lab.run(&dying(full)).sh(COMMAND).go();
    assert_ne!(outcome.status.code(), Some(0));
    outcome.complains("No space left on device");
}

#[test]
fn a_stopped_guest_is_noticed() {
    let lab = Lab::new();
    let outcome = lab.run(&dying("event STOP")).sh(COMMAND).go();
    outcome.code(121);
}

#[test]
fn an_agent_that_was_killed_is_noticed_at_once() {
    let lab = Lab::new();
    // The console is the guest's, QEMU goes on, and nobody is left who could say anything.
    let outcome = lab.run(&dying("port close")).args(["--timeout", "60s"]).sh(COMMAND).go();
    outcome.code(121).complains("the agent was killed");
    assert_eq!(outcome.verdict(), "crash/silent");
    // Some other port's end means nothing.
    let other = "event VSERPORT_CHANGE \"{\\\"open\\\":false,\\\"id\\\":\\\"mine\\\"}\"\nmark said";
    let outcome = lab.run(&dying(other)).sh(&format!("mark oops; {}; echo on", until("said"))).go();
    outcome.code(0).says("on\n");
}

#[test]
fn the_command_passes_and_the_guest_dies() {
    let lab = Lab::new();
    // The result is in, but what it wrote may not be: the guest is gone before it could be synced.
    let run = |sync: &str| {
        lab.run(&format!("[serial]\ndrain\n[agent]\nagent sync={sync}\n")).sh("echo done").go().status.code()
    };
    assert_eq!(run("die"), Some(121));
    assert_eq!(run("fail"), Some(125));
    let outcome = lab.run("[serial]\ndrain\n[agent]\nagent sync=gone\n").sh("umount -a -l").go();
    outcome.code(125).complains("/mnt/hostos (unmounted)").complains("changed what is mounted");
    assert!(!outcome.stderr.contains("disk full"), "{}", outcome.stderr);
    let outcome = lab.run("[serial]\ndrain\n[agent]\nagent sync=covered-out\n").sh("true").go();
    outcome.code(125).complains("left something mounted in its output directory").complains("/run/belljar/out/d");
    let outcome = lab.run("[serial]\ndrain\n[agent]\nagent sync=covered\n").sh("true").go();
    outcome.code(0).complains("left something mounted in the workspace").complains("/mnt/hostos/d");
}

#[test]
fn qemu_says_more_than_anybody_wants_to_know() {
    let lab = Lab::new();
    for flood in ["qmp flood 16M", "qmp endless 16M", "stderr-flood 16M"] {
        let mut run = lab.run(&dying(flood)).open_stdin().sh("mark oops; cat; exit 3").spawn();
        run.await_mark("oops");
        // Who has heard enough may stop to listen: the flood need not come to its end.
        assert!(run.still_there_after(Duration::from_secs(1)), "{flood} ended the run");
        let peak = run.kibibytes("VmHWM");
        run.signal(Signal::INT);
        let outcome = run.end();
        outcome.code(130);
        assert!(peak < 64 * 1024, "{flood}: {peak} KiB");
        assert!(outcome.kept("qemu.log").len() < 9 << 20, "{flood}");
        std::fs::remove_file(lab.path("fake.log")).expect("log");
    }
}
