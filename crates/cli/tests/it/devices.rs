//! Devices that a guest has where they are asked for.

use crate::harness::{Lab, WELL};

#[test]
fn a_watchdog_that_bites_is_a_verdict_of_its_own() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--watchdog", "auto", "-v"]).sh("echo begun; bite; sleep 60").go();
    outcome.code(121).says("begun\n").complains("watchdog bit").complains("watchdog: i6300esb");
    assert_eq!(outcome.verdict(), "crash/watchdog");
    assert!(lab.seen().contains("watchdog=reset") && lab.seen().contains("i6300esb"), "{}", lab.seen());
}

#[test]
fn a_bite_that_was_prepared_is_a_restart() {
    let lab = Lab::new();
    let asking = WELL.replace("\nagent\n", "\nagent asks=reboot-prepare+half\n");
    let bites = "[ $BELLJAR_REBOOT_COUNT = 0 ] || exit 3; sleep 1; bite; sleep 60";
    let outcome = lab.run(&asking).args(["--watchdog", "i6300esb"]).sh(bites).go();
    outcome.code(3);
    let events = outcome.events();
    let told: Vec<_> = events.iter().filter(|e| e["kind"] == "control").map(|e| e["outcome"].as_str()).collect();
    assert!(told.contains(&Some("the guest's watchdog bit")), "{told:?}");
    // Only once.
    let outcome = lab.run(&asking).args(["--watchdog", "i6300esb"]).sh("sleep 1; bite; sleep 60").go();
    assert_eq!(outcome.code(121).verdict(), "crash/watchdog");
}

#[test]
fn what_this_machine_or_qemu_has_not_got_is_told() {
    let lab = Lab::new();
    for (words, said) in [
        (
            &["--watchdog", "diag288"][..],
            "have no watchdog diag288; take i6300esb or ib700 or itco, or leave watchdog out",
        ),
        (&["--watchdog", "itco"][..], "is part of the machine type q35"),
    ] {
        let outcome = lab.run(WELL).args(words).sh("true").go();
        outcome.code(125).complains(said);
    }
    let outcome = lab.belljar(["run", "--container", "x", "--watchdog", "auto", "--", "true"]).script(WELL).go();
    outcome.code(2).complains("--watchdog does not go with --container: a container is no machine");
}
