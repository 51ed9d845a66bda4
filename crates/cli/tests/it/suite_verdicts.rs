//! Every verdict of a suite, made to happen.

use std::fs;

use crate::harness::{Lab, SUITE};

const PANIC: &str =
    "machine serial 'send \"[   12.345678] Kernel panic - not syncing: Fatal exception\\r\\n\"' panicked";

#[test]
fn of_the_tests_own() {
    let lab = Lab::new();
    lab.suite(
        SUITE,
        &[
            ("pass", "echo fine"),
            ("fail", "echo broken; exit 3"),
            ("signal", "kill -9 $$"),
            ("skip", "echo; echo no loop devices here; exit 77"),
            ("skipped", "# belljar: skip = \"not on Tuesdays\"\nexit 1"),
            ("requires", "# belljar: requires = [\"sh\", \"no-such-command\"]\nexit 1"),
            ("has-it", "# belljar: requires = [\"sh\"]\nexit 0"),
        ],
    );
    let outcome = lab.test(["-j4"]).go();
    outcome.code(100).verdicts_are(&[
        ("pass", "pass"),
        ("fail", "fail 3"),
        ("signal", "fail signal 9"),
        ("skip", "skip: no loop devices here"),
        ("skipped", "skipped: not on Tuesdays"),
        ("requires", "skip: the guest has no `no-such-command`"),
        ("has-it", "pass"),
    ]);
    let said = outcome.text();
    assert!(said.contains("exit code 3") && said.contains("SIGKILL"), "{said}");
    // The command that a try is for begins and ends in the log, as in `belljar run`; Belljar's own questions do not.
    for (test, times) in [("pass", 1), ("fail", 1), ("has-it", 1), ("requires", 0)] {
        let of = |kind: &str| outcome.told(kind, test).len();
        assert_eq!((of("command-started"), of("command-ended")), (times, times), "{test}");
    }
    assert_eq!(outcome.told("command-ended", "fail")[0]["exit"]["code"], 3);
}

/// A test that cannot run here has nothing to say in its format.
#[test]
fn skips_of_every_format() {
    let lab = Lab::new();
    let with = |format: &str, text: &str| format!("# belljar: format = \"{format}\"\n{text}");
    let tests = [
        ("tap", with("tap", "echo no such device; exit 77"), "skip: no such device"),
        ("libtest", with("libtest", "echo no such device; exit 77"), "skip: no such device"),
        ("junit", with("junit", "echo no such device; exit 77"), "skip: no such device"),
        ("kselftest", with("kselftest", "echo SKIP: needs root; exit 4"), "skip: SKIP: needs root"),
        ("kselftest77", with("kselftest", "echo needs root; exit 77"), "skip: needs root"),
        ("failed", with("tap", "echo not ok 1; echo no such device; exit 77"), "fail 77"),
        ("not-tap", with("tap", "echo fine; exit 4"), "fail 4"),
        ("no-tap", with("tap", "echo fine"), "fail 0"),
    ];
    let files: Vec<(&str, &str)> = tests.iter().map(|(name, text, _)| (*name, text.as_str())).collect();
    lab.suite(SUITE, &files);
    let outcome = lab.test(["-j4"]).go();
    outcome.code(100).verdicts_are(&tests.each_ref().map(|(name, _, verdict)| (*name, *verdict)));
}

#[test]
fn nothing_but_skips_and_passes_is_well() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 77"), ("b", "exit 0"), ("c", "# belljar: skip = \"no\"\nexit 1")]);
    lab.test([""; 0]).go().code(0);
}

#[test]
fn a_test_without_an_end_times_out() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("ever", "# belljar: timeout = \"3s\"\necho begun; exec sleep 60"), ("next", "exit 0")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(100).verdicts_are(&[("ever", "timeout command"), ("next", "pass")]);
    assert!(outcome.text().contains("begun"), "{}", outcome.text());
}

#[test]
fn a_guest_that_does_not_boot_times_out() {
    let lab = Lab::new();
    let guest = lab.machine("silent", "[serial]\nsend \"[    0.000000] Linux\\r\\n\"\nhang\n");
    lab.suite(
        &format!(
            "{guest}boot-timeout = \"300ms\"\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"silent\"]\n"
        ),
        &[("a", "exit 0")],
    );
    let outcome = lab.test([""; 0]).go();
    outcome.code(100);
    assert_eq!(outcome.verdicts()["s/a@silent"], "timeout boot");
}

#[test]
fn guests_that_die_take_only_their_own_test() {
    let lab = Lab::new();
    let dying = |how: &str| format!("echo begun; {how}; exec sleep 60");
    lab.suite(
        SUITE,
        &[
            ("panic", &dying(PANIC)),
            ("quiet-panic", &dying("machine serial panicked")),
            ("power-off", &dying("poweroff")),
            ("reboot", &dying("reboot")),
            ("silent", &dying("machine agent close")),
            ("killed", &dying("machine machine \"signal 9\"")),
            ("well", "exit 0"),
        ],
    );
    let outcome = lab.test(["-j3"]).go();
    outcome.code(100).verdicts_are(&[
        ("panic", "crash panic"),
        ("quiet-panic", "crash panic"),
        ("power-off", "crash power-off"),
        ("reboot", "crash reboot"),
        ("silent", "crash silent"),
        ("killed", "crash qemu"),
        ("well", "pass"),
    ]);
    assert!(outcome.text().contains("Fatal exception"), "{}", outcome.text());
}

#[test]
fn a_fault_just_before_a_pass_is_a_crash() {
    let lab = Lab::new();
    let oops = "machine serial 'send \"[   12.345678] BUG: unable to handle page fault for address: ffffa0c0\\r\\n\"' 'mark said'";
    let test = format!("{oops}; {}", crate::harness::until("said"));
    lab.suite(SUITE, &[("oops", &test)]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(100).verdicts_are(&[("oops", "crash oops")]);
}

#[test]
fn without_qemu_nothing_can_be_said() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    let outcome = lab.test(["--qemu", "/no/such/qemu"]).go();
    outcome.code(125).complains("/no/such/qemu");
    let outcome = lab.test(["--qemu", "/bin/false"]).go();
    outcome.code(125);
}

#[test]
fn a_guest_that_qemu_will_not_start_is_an_error() {
    let lab = Lab::new();
    let guest = lab.machine("odd", "[start]\nstderr \"qemu-system-x86_64: cannot set up guest memory\"\nexit 1\n");
    lab.suite(
        &format!("{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"odd\"]\n"),
        &[("a", "exit 0")],
    );
    let outcome = lab.test(["--error-retries", "0"]).go();
    outcome.code(125);
    assert_eq!(outcome.verdicts()["s/a@odd"], "error host");
    assert!(outcome.text().contains("cannot set up guest memory"), "{}", outcome.text());
}

#[test]
fn a_guest_without_room_is_an_error() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("large", "# belljar: memory = \"70GiB\"\nexit 0"), ("small", "exit 0")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(125).verdicts_are(&[("large", "error host"), ("small", "pass")]);
    assert!(outcome.text().contains("max-memory"), "{}", outcome.text());
}

/// What a test left behind is part of its result: where it cannot be brought to the host, nothing is said of the test.
#[test]
fn an_output_directory_that_cannot_be_written_is_an_error() {
    let lab = Lab::new();
    let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\"]\n";
    for (sync, verdict) in [("fail", "error host"), ("ok", "pass")] {
        let script = format!("[serial]\ndrain\n[agent]\nagent sync={sync}\n");
        lab.suite("", &[("a", "echo kept > $BELLJAR_OUT/x; exit 0")]);
        let guest = lab.machine("g", &script);
        fs::write(lab.path("workspace/belljar.toml"), format!("{guest}{suite}")).expect("configuration");
        for isolation in ["test", "suite"] {
            let set = format!("{guest}{suite}isolation = \"{isolation}\"\n");
            fs::write(lab.path("workspace/belljar.toml"), set).expect("configuration");
            let outcome = lab.test(["--error-retries", "0"]).go();
            outcome.code(if sync == "ok" { 0 } else { 125 }).verdicts_are(&[("a", verdict)]);
            assert_eq!(outcome.text().contains("may not have reached the host"), sync == "fail", "{}", outcome.text());
        }
    }
}

/// Something is where the directory of the next guest, or of the next test in it, is to be.
#[test]
fn an_output_directory_that_cannot_be_made_is_an_error() {
    let lab = Lab::new();
    for (isolation, next) in [("test", "../../1"), ("suite", "../2")] {
        let spoil = format!("echo x > $BELLJAR_OUT/{next}; exit 0");
        lab.suite(&format!("{SUITE}isolation = \"{isolation}\"\n"), &[("1", &spoil), ("2", "exit 0"), ("3", "exit 0")]);
        let outcome = lab.test(["-j1", "--error-retries", "0"]).go();
        outcome.code(125).verdicts_are(&[("1", "pass"), ("2", "error host"), ("3", "pass")]);
        assert!(outcome.text().contains("cannot make "), "{isolation}: {}", outcome.text());
    }
}

#[test]
fn a_set_up_that_fails_is_an_error_of_every_test() {
    let lab = Lab::new();
    for isolation in ["test", "suite"] {
        lab.suite(
            &format!("{SUITE}setup = \"setup.sh\"\nisolation = \"{isolation}\"\n"),
            &[("a", "exit 0"), ("b", "exit 0"), ("./setup.sh", "echo cannot mount it; exit 5")],
        );
        let outcome = lab.test([""; 0]).go();
        outcome.code(125).verdicts_are(&[("a", "error host"), ("b", "error host")]);
        assert!(outcome.text().contains("cannot mount it"), "{}", outcome.text());
        // Not the fault of the host: another try comes to the same.
        assert_eq!(outcome.tries("a").len(), 1, "{isolation}");
    }
}
