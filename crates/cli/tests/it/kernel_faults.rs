//! What the guest's kernel says of itself: on its console, which shows what programs write as well and not all that the kernel
//! does, and by its own record, which the agent reads.

use crate::harness::{Lab, until};

const BUG: &str = "BUG: unable to handle page fault for address: ffffa0c0";

/// A guest whose agent has these manners. When its command says `mark now`, `what` happens, and then `said` is marked.
fn guest(manners: &str, what: &str) -> String {
    format!(
        "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\nwait now 80000\n{what}\nmark said\n\
         [agent]\nwait banner 80000\nagent {manners}\n"
    )
}

fn command() -> String {
    format!("mark now; {}; echo on", until("said"))
}

#[test]
fn a_fault_that_the_console_does_not_show_is_seen() {
    let script = guest("kernel=watched", &format!("kernel \"{BUG}\""));
    let lab = Lab::new();
    let outcome = lab.run(&script).sh(&command()).go();
    outcome.code(121).complains(BUG);
    assert_eq!(outcome.verdict(), "crash/oops");
    let lab = Lab::new();
    let outcome = lab.run(&script).args(["--oops", "note"]).sh(&command()).go();
    outcome.code(0).says("on\n").complains(BUG);
}

#[test]
fn words_of_a_program_are_no_fault_where_the_agent_knows_better() {
    let console = format!("send \"[   12.345678] {BUG}\\r\\n\"");
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", &console)).sh(&command()).go();
    outcome.code(0).says("on\n").complains("no message of the kernel's");
    // The same line is a fault where the agent does not read the record, or the kernel has it, too.
    let both = format!("{console}\nkernel \"{BUG}\"");
    for (manners, what) in [("kernel=unreadable", &console), ("kernel=silent", &console), ("kernel=watched", &both)] {
        let lab = Lab::new();
        let outcome = lab.run(&guest(manners, what)).sh(&command()).go();
        outcome.code(121).complains(BUG);
    }
}

#[test]
fn what_was_no_fault_is_none_of_the_next_kernel_s() {
    let console = format!("send \"[   12.345678] {BUG}\\r\\n\"");
    let lab = Lab::new();
    let command = format!(
        "[ $BELLJAR_REBOOT_COUNT = 1 ] && exit 3; {}; sleep 1; machine agent 'ask \"kexec half\"'; sleep 60",
        command()
    );
    let outcome = lab.run_image(&guest("kernel=watched pid1=off", &console)).sh(&command).go();
    outcome.code(3).complains("no message of the kernel's");
}

#[test]
fn a_console_that_shows_a_panic_is_believed_where_nobody_answers() {
    let panic = "send \"[   12.345678] Kernel panic - not syncing: Fatal exception\\r\\n\"";
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched pong=off", panic)).sh("mark now; exec sleep 60").go();
    outcome.code(121).complains("Fatal exception");
    assert_eq!(outcome.verdict(), "crash/panic");
}

#[test]
fn a_gap_in_the_record_is_told_and_vouches_for_nothing() {
    let lab = Lab::new();
    let lost = "7 messages of the guest's kernel were overwritten";
    // Nobody knows what guards would have said of them.
    let outcome = lab.run(&guest("kernel=watched", "kernel lost=7")).sh(&command()).go();
    outcome.code(122).complains(&format!("io-error: {lost}"));
    let unguarded = ["--guard", "warning=ignore", "--guard", "oom=ignore", "--guard", "io-error=ignore"];
    let outcome = lab.run(&guest("kernel=watched", "kernel lost=7")).args(unguarded).sh(&command()).go();
    outcome.code(0).complains(lost);
    let console = format!("kernel lost=7\nsend \"[   12.345678] {BUG}\\r\\n\"");
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", &console)).sh(&command()).go();
    outcome.code(121);
    // The kernel's flags say that it died (128), or only that a module of somebody else's was loaded (4096).
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", "kernel lost=7 tainted=128")).sh(&command()).go();
    outcome.code(121).complains("tainted");
    let lab = Lab::new();
    let script = guest("kernel=watched", "kernel lost=7 tainted=4096");
    let outcome = lab.run(&script).args(unguarded).sh(&command()).go();
    outcome.code(0);
}

#[test]
fn a_halted_guest_ends_the_run() {
    let halted = "send \"[   12.345678] reboot: System halted\\r\\n\"";
    let lab = Lab::new();
    let outcome = lab.run(&guest("pong=off", halted)).args(["--timeout", "70s"]).sh("mark now; exec sleep 80").go();
    outcome.code(121).complains("System halted");
    assert_eq!(outcome.verdict(), "crash/power-off");
    // Whoever answers has not halted.
    let lab = Lab::new();
    let outcome = lab.run(&guest("", halted)).sh(&command()).go();
    outcome.code(0).says("on\n");
}

#[test]
fn an_agent_on_a_serial_port_that_falls_silent_is_missed() {
    let script = "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\n[serial1]\nwait banner 80000\nagent pong=off\n";
    let lab = Lab::new();
    let outcome = lab.run(script).args(["--timeout", "70s"]).sh("exec sleep 80").go();
    outcome.code(121).complains("the agent has not answered");
    assert_eq!(outcome.verdict(), "crash/silent");
}

#[test]
fn a_guest_that_suspends_itself_is_said_to() {
    let lab = Lab::new();
    let outcome = lab.run(&guest("", "event SUSPEND\nsleep 300\nevent WAKEUP")).sh(&command()).go();
    outcome.code(0).says("on\n").complains("the guest suspended itself").complains("the guest woke after");
    // The port's device is switched off before QEMU tells, and on after that.
    let port = "port close\nsleep 300\nevent SUSPEND\nsleep 6000\nevent WAKEUP\nsleep 300\nport open";
    let lab = Lab::new();
    let outcome = lab.run(&guest("", port)).sh(&command()).go();
    outcome.code(0).says("on\n").complains("the guest woke after");
    // Of a kernel that only rests QEMU knows nothing. It says so twice, on the console and in its record.
    let rests = "send \"[   12.345678] PM: suspend entry (s2idle)\\r\\n\"\nport close\nsleep 6000\nsend \"[   18.345678] PM: suspend exit\\r\\n\"\n\
                 port open\nkernel \"PM: suspend entry (s2idle)\"\nkernel \"PM: suspend exit\"";
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", rests)).sh(&command()).go();
    outcome.code(0).says("on\n").complains("the guest woke after");
    assert_eq!(outcome.stderr.matches("suspended itself").count(), 1, "{}", outcome.stderr);
    let lab = Lab::new();
    let outcome = lab.run(&guest("", "event SUSPEND")).args(["--timeout", "2s"]).sh("mark now; exec sleep 60").go();
    outcome.code(124).complains("the guest suspended itself");
}

#[test]
fn tasks_that_hang_for_a_disk_that_hangs_by_order_are_no_fault() {
    const HUNG: &str = "INFO: task jbd2/vda-8:77 blocked for more than 120 seconds.";
    let record = format!("kernel \"{HUNG}\"");
    let console = format!("send \"[  243.123456] {HUNG}\\r\\n\"");
    let command = format!("sleep 1; {}", command());
    let disk = ["-v", "--disk", "size=1M,serial=data0,lab"];
    for (kernel, what) in
        [("watched", record.clone()), ("unreadable", console.clone()), ("watched", format!("{console}\n{record}"))]
    {
        let run = |asks: &str| {
            let lab = Lab::new();
            let outcome = lab.run(&guest(&format!("kernel={kernel} asks={asks}"), &what)).args(disk).sh(&command).go();
            (outcome.status.code(), outcome.verdict(), outcome.stderr.contains(HUNG))
        };
        assert_eq!(run("data0+hang"), (Some(0), "pass".to_owned(), true), "{kernel} {what}");
        // One that was healed a moment ago may have been the reason.
        assert_eq!(run("data0+hang,data0+heal"), (Some(0), "pass".to_owned(), true), "{kernel} {what}");
        assert_eq!(run("data0+error+write"), (Some(121), "crash/oops".to_owned(), true), "{kernel} {what}");
    }
}
