//! What guards see while a command runs, and what comes of it.

use crate::harness::{Lab, SUITE, until};

/// A guest in which `what` happens when its command says `mark now`; then `said` is marked.
fn guest(manners: &str, what: &str) -> String {
    format!(
        "[serial]\nsend \"[    0.000000] Linux version 6.1.0-fake\\r\\n\"\nmark banner\ndrain\nwait now 80000\n{what}\nmark said\n\
         [agent]\nwait banner 80000\nagent {manners}\n"
    )
}

fn command(end: &str) -> String {
    format!("mark now; {}; {end}", until("said"))
}

const WARNING: &str = "WARNING: CPU: 0 PID: 7 at kernel/x.c:1 x+0x1/0x2";

#[test]
fn a_command_that_succeeds_fails_for_what_a_guard_sees() {
    let what = format!(
        "guard coredump crasher 11\nkernel \"{WARNING}\"\nguard taint 4096\nguard unit cron.service exit-code\n\
         kernel \"Out of memory: Killed process 7 (hog)\"\nkernel \"I/O error, dev vdb, sector 8\""
    );
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", &what)).sh(&command("echo on")).go();
    outcome.code(122).says("on\n").complains("the guard coredump fails it").complains("5 more findings");
    for told in [
        "coredump: crasher (41, started by sh) was killed by SIGSEGV (signal 11), core dumped",
        "warning: WARNING: CPU: 0 PID: 7",
        "taint: the kernel is tainted: O",
        "unit: cron.service failed (exit-code)",
        "oom: Out of memory",
        "io-error: I/O error, dev vdb",
    ] {
        outcome.complains(told);
    }
    assert_eq!(outcome.verdict(), "fail/code");
}

#[test]
fn a_command_that_fails_keeps_its_own_end() {
    let lab = Lab::new();
    let outcome = lab.run(&guest("kernel=watched", "guard coredump crasher 6")).sh(&command("exit 3")).go();
    outcome.code(3).complains("coredump: crasher");
    assert!(!outcome.stderr.contains("fails it"), "{}", outcome.stderr);
}

#[test]
fn a_guard_may_warn_or_look_away() {
    let what = format!("guard coredump crasher 6\nkernel \"{WARNING}\"");
    let lab = Lab::new();
    let guards = ["--guard", "coredump=ignore", "--guard", "warning=warn"];
    let outcome = lab.run(&guest("kernel=watched", &what)).args(guards).sh(&command("echo on")).go();
    outcome.code(0).complains("warning: WARNING");
    assert!(!outcome.stderr.contains("crasher"), "{}", outcome.stderr);
    let lab = Lab::new();
    lab.run("").args(["--guard", "coredump=never"]).sh("true").go().code(2).complains("one of fail, warn, ignore");
}

#[test]
fn what_the_console_alone_shows_counts_where_nobody_reads_the_record() {
    let what = format!("send \"[   12.345678] {WARNING}\\r\\n\"\nsleep 500");
    let lab = Lab::new();
    lab.run(&guest("kernel=unreadable", &what)).sh(&command("echo on")).go().code(122).complains("the guard warning");
    // A program may write what it likes to the console.
    let lab = Lab::new();
    lab.run(&guest("kernel=watched", &what)).sh(&command("echo on")).go().code(0);
}

#[test]
fn a_guard_that_cannot_see_says_so() {
    let lab = Lab::new();
    let script = guest("kernel=watched", "guard blind \"no connector\"");
    let outcome = lab.run(&script).args(["-v"]).sh(&command("echo on")).go();
    outcome.code(0).complains("guard coredump: cannot see (no connector)");
}

/// In a suite each test has its own guards, also where tests share a guest.
#[test]
fn each_test_of_a_suite_has_its_own() {
    // A step is played a moment later than it is asked for.
    let step = |name: &str, step: &str| format!("machine serial '{step}' 'mark {name}'; {}", until(name));
    let crash = |name| step(name, "guard coredump crasher 11");
    let warns = |name| step(name, &format!("kernel \"{WARNING}\""));
    let allowed = "# belljar: guards = { warning = \"fail\", allow = [{ guard = \"warning\", match = \"at kernel/*\", reason = \"known\" }] }";
    let tests = [
        ("a-trips", crash("a")),
        ("b-fails", format!("{}; exit 3", crash("b"))),
        ("c-skips", format!("{}; echo no card; exit 77", crash("c"))),
        ("d-clean", "true".to_owned()),
        ("e-warns", format!("# belljar: guards = {{ coredump = \"warn\" }}\n{}", crash("e"))),
        ("f-allows", format!("{allowed}\n{}", warns("f"))),
        ("g-warned", warns("g")),
    ];
    let tests: Vec<(&str, &str)> = tests.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for isolation in ["test", "suite"] {
        let lab = Lab::new();
        lab.suite(&SUITE.replace("[[suites]]", &format!("[[suites]]\nisolation = \"{isolation}\"")), &tests);
        let outcome = lab.test(["-j2"]).go();
        outcome.code(100).verdicts_are(&[
            ("a-trips", "fail 0"),
            ("b-fails", "fail 3"),
            ("c-skips", "skip: no card"),
            ("d-clean", "pass"),
            ("e-warns", "pass"),
            ("f-allows", "pass"),
            ("g-warned", "fail 0"),
        ]);
        let said = outcome.text();
        assert!(said.contains("the guard coredump fails it: crasher") && said.contains("the guard warning"), "{said}");
        assert!(!said.contains("allowed"), "at -v: {said}");
        let allowed = &outcome.told("finding", "f-allows")[0];
        assert_eq!((allowed["outcome"].as_str(), allowed["reason"].as_str()), (Some("allowed"), Some("known")));
        assert_eq!(outcome.told("finding", "e-warns")[0]["outcome"], "warn");
        assert!(outcome.told("finding", "d-clean").is_empty());
    }
}

/// An error of a disk that was told to fail is not held against a test, one of another disk is, and neither is one of which nobody knows the disk. What the
/// disk was told, and when it is too early or too late for that.
#[test]
fn an_error_is_ordered_where_it_is_of_a_disk_that_was_told_to_fail() {
    let disks = ["--disk", "size=1M,serial=a,lab", "--disk", "size=1M,serial=b,lab"];
    let error = |device: &str, of: &str| format!("kernel \"I/O error, dev {device}, sector 8\"{of}");
    let go = |asks: &str, what: &str| {
        let lab = Lab::new();
        let manners = format!("kernel=watched asks={asks}");
        let command = command("sleep 0.3");
        let outcome = lab.run(&guest(&manners, what)).args(disks).sh(&command).go();
        let stderr = outcome.stderr.clone();
        (outcome.verdict(), stderr)
    };
    let passes = |asks: &str, what: &str| assert_eq!(go(asks, what).0, "pass", "{asks}: {what}");
    let fails = |asks: &str, what: &str, told: &str| {
        let (verdict, stderr) = go(asks, what);
        assert!(verdict == "fail/code" && stderr.contains(told), "{asks}: {what}: {verdict} {stderr}");
    };
    passes("a+error,a+heal", &format!("sleep 1000\n{}", error("vdb", " disks=a")));
    // What stands on it and on another one.
    passes("a+error", &format!("sleep 1000\n{}", error("dm-0", " disks=b,a")));
    let other = "I/O error, dev vdc, sector 8 (of b, which nobody told to fail)";
    fails("a+error", &format!("sleep 1000\n{}", error("vdc", " disks=b")), other);
    let unknown = "I/O error, dev dm-0, sector 8 (of no disk that was told to fail, as far as is known)";
    fails("a+error", &format!("sleep 1000\n{}", error("dm-0", "")), unknown);
    fails(
        "a+counts,a+heal,a+limit+none,a+error+nonsense",
        &format!("sleep 1000\n{}", error("vdb", " disks=a")),
        "io-error: I/O error, dev vdb, sector 8",
    );
    // A disk of QEMU's own that is pulled out, of which that is known, too.
    passes("unplug+disk+b", &format!("sleep 1000\n{}", error("vdc", " disks=b")));
}
