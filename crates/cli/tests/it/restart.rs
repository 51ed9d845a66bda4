//! Commands that have their machine go down, and are started again when it is up.

use crate::harness::{Lab, Outcome, WELL};

/// What a command is told of restarts, and that it goes on only when the machine has gone down.
const TELL: &str = r#"echo "$BELLJAR_REBOOT_COUNT ${BELLJAR_REBOOT_MARK-none} $TMT_REBOOT_COUNT ${AUTOPKGTEST_REBOOT_MARK-none}"
[ "$BELLJAR_REBOOT_COUNT" = 1 ] && exit 3; sleep 60; echo "it lived on""#;

fn asking(asks: &str) -> String {
    WELL.replace("\nagent\n", &format!("\nagent asks={asks}\n"))
}

/// What happened to the machine.
fn controls(outcome: &Outcome) -> Vec<String> {
    let of = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let events = outcome.events().into_iter().filter(|event| event["kind"] == "control");
    events
        .map(|event| format!("{}: {} ({})", of(&event, "device"), of(&event, "order"), of(&event, "outcome")))
        .collect()
}

/// The command was started again with this mark, and ended then. The first try is killed as soon as the machine is to go down, which may be before
/// it has said anything.
fn told_again(outcome: &Outcome, mark: &str) {
    outcome.code(3);
    let again = format!("1 {mark} 1 {mark}\n");
    let said = String::from_utf8_lossy(&outcome.stdout);
    let said = said.strip_prefix("0 none 0 none\n").unwrap_or(&said);
    assert_eq!(said, again);
}

#[test]
fn a_command_is_started_again_when_its_machine_is_up() {
    let lab = Lab::new();
    for (ask, ends) in [("reboot", "Shutdown(Reboot)"), ("power-button", "system_powerdown"), ("reset", "quit")] {
        let outcome = lab.run(&asking(&format!("{ask}+half"))).sh(TELL).go();
        told_again(&outcome, "half");
        assert!(lab.seen().contains(ends), "{ask}: {}", lab.seen());
        let told = controls(&outcome);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], format!("machine: {ask} half ()"));
        assert!(told[1].starts_with(&format!("machine: {ask} half (it is up again; it took ")), "{told:?}");
    }
}

#[test]
fn a_power_cut_is_one_for_lab_disks_too() {
    let lab = Lab::new();
    let disks = ["--disk", "size=1M,serial=data0,lab", "--disk", "size=1M,lab", "--disk", "size=1M"];
    let outcome = lab.run(&asking("data0+error+read,power-cut+half+seed=7,data0+counts")).args(disks).sh(TELL).go();
    told_again(&outcome, "half");
    let told = controls(&outcome);
    let lost = "data0 lost 0 of 0 changes that were not flushed; lab0 lost 0 of 0 changes that were not flushed";
    assert!(told.contains(&format!("machine: power-cut half seed=7 ({lost})")), "{told:?}");
    // The same servers go on, with their faults: the second one of this kind has another number.
    assert!(told.contains(&"disk data0: error read (fault 2)".to_owned()), "{told:?}");
}

#[test]
fn a_machine_that_goes_down_by_itself_does_so_unpunished_once_that_is_prepared() {
    let lab = Lab::new();
    let reboots = format!("[ $BELLJAR_REBOOT_COUNT = 1 ] || {{ sleep 1; reboot; }} & {TELL}");
    let outcome = lab.run(&asking("reboot-prepare+half")).sh(&reboots).go();
    told_again(&outcome, "half");
    let outcome = lab.run(WELL).sh("reboot; sleep 60").go();
    outcome.code(121).complains("rebooted");
    // Once, and only for what was prepared.
    let outcome = lab.run(&asking("reboot-prepare+half")).sh("reboot; sleep 60").go();
    outcome.code(121).complains("rebooted");
    let outcome = lab.run(&asking("reboot-prepare+half")).sh("panic; sleep 60").go();
    outcome.code(121).complains("panic");
}

#[test]
fn who_ends_in_the_moment_of_the_question_is_started_again_all_the_same() {
    let lab = Lab::new();
    let outcome = lab.run(&asking("reboot+half")).sh("[ $BELLJAR_REBOOT_COUNT = 0 ] || exit 5").go();
    outcome.code(5);
}

#[test]
fn what_goes_wrong_on_the_way_is_told() {
    let lab = Lab::new();
    let with = |more: &str| WELL.replace("\nagent\n", &format!("\nagent asks=reboot+half {more}\n"));
    // On the way down.
    let outcome = lab.run(&with("shutdown=panic")).sh(TELL).go();
    outcome.code(121).complains("panic");
    // What was written before did not arrive.
    let outcome = lab.run(&with("sync=fail")).sh(TELL).go();
    outcome.code(125).complains("No space left on device");
    // Nothing of the first try counts.
    let outcome = lab.run(&with("code=0")).sh("[ $BELLJAR_REBOOT_COUNT = 0 ]").go();
    outcome.code(0);
    assert_eq!(controls(&outcome).len(), 2);
}

#[test]
fn what_is_no_order_is_refused_and_the_command_goes_on() {
    let lab = Lab::new();
    let outcome = lab.run(&asking("reboot+a+b,link+sideways,power-cut+seed=x,nmi+now")).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(controls(&outcome), [""; 0]);
    for said in ["takes one word", "up or down", "seed=NUMBER", "there are reboot"] {
        assert!(lab.seen().contains(said), "{said}: {}", lab.seen());
    }
    // Of two the first is done.
    let outcome = lab.run(&asking("reboot+one,reset+two")).sh(TELL).go();
    told_again(&outcome, "one");
    assert!(lab.seen().contains("goes down already: reboot one"), "{}", lab.seen());
}
