//! Commands that have their machine go down, and are started again when it is up.

use std::{fs, io::Read as _, time::Duration};

use crate::harness::{Lab, Outcome, Pty, WELL};

/// What a command is told of restarts, and that it goes on only when the machine has gone down.
const TELL: &str = r#"echo "$BELLJAR_REBOOT_COUNT ${BELLJAR_REBOOT_MARK-none} $TMT_REBOOT_COUNT ${AUTOPKGTEST_REBOOT_MARK-none}"
[ "$BELLJAR_REBOOT_COUNT" = 1 ] && exit 3; sleep 60; echo "it lived on""#;

fn asking(asks: &str) -> String {
    WELL.replace("\nagent\n", &format!("\nagent asks={asks}\n"))
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
        let script = asking(&format!("{ask}+half"));
        // Belljar's own init does not listen for a button.
        let of_image = script.replace("agent asks", "agent pid1=off asks");
        let guest = if ask == "power-button" { lab.run_image(&of_image) } else { lab.run(&script) };
        let outcome = guest.sh(TELL).go();
        told_again(&outcome, "half");
        assert!(lab.seen().contains(ends), "{ask}: {}", lab.seen());
        let told = outcome.controls();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], format!("machine: {ask} half ()"));
        assert!(told[1].starts_with(&format!("machine: {ask} half (it is up again; it took ")), "{told:?}");
    }
}

#[test]
fn a_machine_goes_on_when_another_kernel_or_all_programs_begin() {
    for (ask, ends) in [
        ("kexec+half", "Shutdown(Kexec { loaded: false })"),
        ("kexec+half+loaded", "Shutdown(Kexec { loaded: true })"),
        ("soft-reboot+half", "Shutdown(SoftReboot)"),
    ] {
        let lab = Lab::new();
        let outcome = lab.run_image(&asking(ask)).sh(TELL).go();
        told_again(&outcome, "half");
        let seen = lab.seen();
        let at = |what: &str| seen.find(what).unwrap_or_else(|| panic!("{what}: {seen}"));
        assert!(at("GoesDown") < at("Sync") && at("Sync") < at("Quiesce") && at("Quiesce") < at(ends), "{seen}");
        assert_eq!(seen.matches("AwaitBoot").count(), 2, "{seen}");
        assert_eq!(seen.matches("Setup(").count(), 2, "{seen}");
        assert!(!seen.contains("\"stop\""), "{seen}");
        let told = outcome.controls();
        let order = ask.replace('+', " ");
        assert_eq!(told[0], format!("machine: {order} ()"));
        assert!(told[1].starts_with(&format!("machine: {order} (it is up again; it took ")), "{told:?}");
    }
    let lab = Lab::new();
    // Without an initramfs of its own there is no other kernel for it.
    let outcome = lab.run(&asking("kexec+half")).sh("exit 4").go();
    outcome.code(4);
    assert!(lab.seen().contains("take a guest with its system on an image"), "{}", lab.seen());
}

/// A command that has its machine kept, and brought back.
const GO_BACK: &str = r#"echo "$BELLJAR_REBOOT_COUNT ${BELLJAR_REBOOT_MARK-none}"
case ${BELLJAR_REBOOT_MARK-} in
"") machine agent 'ask "snapshot s half"' ;;
half) machine agent 'ask "return s back"' ;;
back) exit 3 ;;
esac
sleep 60"#;

#[test]
fn a_machine_is_kept_as_it_is_and_goes_back_there() {
    for more in [&["--no-template"][..], &[], &["--disk", "size=1M,serial=data0,lab"]] {
        let lab = Lab::new();
        let outcome = lab.run_image(WELL).args(more).sh(GO_BACK).go();
        outcome.code(3);
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "0 none\n1 half\n2 back\n", "{more:?}");
        let seen = lab.seen();
        let from = seen.find("GoesDown").unwrap_or_else(|| panic!("{seen}"));
        let at = |what: &str| seen[from..].find(what).unwrap_or_else(|| panic!("{what}: {seen}"));
        assert!(at("Sync") < at("Quiesce") && at("Quiesce") < at("\"stop\""), "{seen}");
        assert!(at("\"stop\"") < at("\"migrate\"") && at("\"migrate\"") < at("\"cont\""), "{seen}");
        assert!(at("\"cont\"") < at("Setup(") && at("Setup(") < at("\"migrate-incoming\""), "{seen}");
        let told = outcome.controls();
        assert_eq!(told[0], "machine: snapshot s half ()");
        assert!(told[1].starts_with("machine: snapshot s half (it is kept, and goes on; it took "), "{told:?}");
        assert!(told[3].starts_with("machine: return s back (it is what it was; it took "), "{told:?}");
    }
}

#[test]
fn a_machine_that_is_not_kept_or_does_not_come_back_is_no_pass() {
    let lab = Lab::new();
    for (step, code, says) in [
        ("migrate refuse", 125, "snapshot s half: QEMU refused `migrate`: State blocked by non-migratable device"),
        ("migrate fail", 125, "snapshot s half: said by the script"),
        ("migrate die", 121, "QEMU"),
        ("incoming fail", 125, "it does not go on from there"),
        ("incoming die", 125, "it does not go on from there"),
    ] {
        let script = format!("[options]\n{step}\n{WELL}");
        let outcome = lab.run_image(&script).args(["--no-template"]).sh(GO_BACK).go();
        outcome.code(code).complains(says);
    }
    // Belljar's own init has its root from the host.
    let outcome = lab.run(WELL).sh("machine agent 'ask \"snapshot s half\"'; exit 4").go();
    outcome.code(4);
    assert!(lab.seen().contains("its root is the host's own"), "{}", lab.seen());
}

#[test]
fn what_is_ordered_behind_a_restart_is_done_before_it() {
    for ask in ["reboot", "kexec"] {
        let lab = Lab::new();
        let script = asking(&format!("{ask}+half,reset+two,data0+error+read"));
        let outcome = lab.run_image(&script).args(["--disk", "size=1M,serial=data0,lab"]).sh(TELL).go();
        told_again(&outcome, "half");
        let told = outcome.controls();
        assert!(told.contains(&"disk data0: error read (fault 1)".to_owned()), "{told:?}");
    }
}

#[test]
fn a_kernel_or_programs_that_do_not_begin_are_no_pass() {
    let lab = Lab::new();
    let with = |ask: &str, more: &str| asking(ask).replace("\nagent ", &format!("\nagent {more} "));
    for ask in ["kexec+half", "soft-reboot+half"] {
        let outcome = lab.run_image(&with(ask, "shutdown=refused")).sh("sleep 60").go();
        outcome.code(125).complains(&format!(
            "did not begin again, as it was asked to: {}: nothing of the kind",
            ask.replace('+', " ")
        ));
        let outcome = lab.run_image(&with(ask, "shutdown=panic")).sh("sleep 60").go();
        outcome.code(121).complains("panicked");
        let outcome = lab.run_image(&with(ask, "shutdown=slow")).sh("sleep 60").go();
        outcome.code(121).complains("powered off");
        let outcome = lab.run_image(&with(ask, "quiesce=die")).sh("sleep 60").go();
        assert!(!outcome.status.success(), "{ask}: {}", outcome.stderr);
    }
    let outcome = lab.run_image(&with("soft-reboot+half", "boot=emergency")).sh("sleep 60").go();
    outcome.code(121).complains("sulogin");
    let outcome =
        lab.run_image(&with("kexec+half", "shutdown=gone")).args(["--boot-timeout", "8s"]).sh("sleep 60").go();
    outcome.code(124).complains("the guest has booted before");
}

#[test]
fn a_power_cut_is_one_for_lab_disks_too() {
    let lab = Lab::new();
    let disks = ["--disk", "size=1M,serial=data0,lab", "--disk", "size=1M,lab", "--disk", "size=1M"];
    let outcome = lab.run(&asking("data0+error+read,power-cut+half+seed=7,data0+counts")).args(disks).sh(TELL).go();
    told_again(&outcome, "half");
    let told = outcome.controls();
    let lost = "data0 lost 0 of 0 changes that were not flushed; lab0 lost 0 of 0 changes that were not flushed";
    assert!(told.contains(&format!("machine: power-cut half seed=7 ({lost})")), "{told:?}");
    // The processors stand still before the power goes, and QEMU's own flush comes too late.
    let seen = lab.seen();
    let at = |what: &str| seen.find(what).unwrap_or_else(|| panic!("{what}: {seen}"));
    assert!(at("GoesDown") < at("Sync") && at("Sync") < at("\"stop\"") && at("\"stop\"") < at("\"quit\""), "{seen}");
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
    assert_eq!(outcome.controls().len(), 2);
}

#[test]
fn what_is_no_order_is_refused_and_the_command_goes_on() {
    let lab = Lab::new();
    let outcome = lab.run(&asking("reboot+a+b,link+sideways,power-cut+seed=x,nmi+now")).sh("sleep 1").go();
    outcome.code(0);
    assert_eq!(outcome.controls(), [""; 0]);
    for said in ["takes one word", "up or down", "seed=NUMBER", "there are reboot"] {
        assert!(lab.seen().contains(said), "{said}: {}", lab.seen());
    }
    let outcome = lab.run(&asking("power-button+half")).sh("sleep 1").go();
    outcome.code(0);
    assert!(lab.seen().contains("nobody in this guest listens for the power button"), "{}", lab.seen());
    // Of two the first is done.
    let outcome = lab.run(&asking("reboot+one,reset+two")).sh(TELL).go();
    told_again(&outcome, "one");
    assert!(lab.seen().contains("goes down already: reboot one"), "{}", lab.seen());
}

#[test]
fn what_was_written_is_on_the_host_before_the_machine_may_go_down_by_itself() {
    let lab = Lab::new();
    let writes = "[ $BELLJAR_REBOOT_COUNT = 1 ] && exit 3; echo kept >$BELLJAR_OUT/first; machine agent 'ask \"reboot-prepare half\"'; \
                  sleep 5; reboot; sleep 60";
    for share in ["disk", "9p"] {
        let outcome = lab.run(WELL).args(["--share", share]).sh(writes).go();
        outcome.code(3);
        let out = lab.runs().pop().unwrap().join("out/first");
        assert_eq!(fs::read_to_string(out).unwrap(), "kept\n", "{share}");
        let is_told = outcome.stderr.contains("what it wrote to them after that");
        assert_eq!(is_told, share == "disk", "{}", outcome.stderr);
        for run in lab.runs() {
            fs::remove_dir_all(run).unwrap();
        }
    }
    // What cannot be brought refuses it, so that the reboot is one that nobody asked for.
    for (how, why) in [("gone", "unmounted"), ("fail", "No space left on device")] {
        let well = WELL.replace("\nagent\n", &format!("\nagent sync={how}\n"));
        let outcome = lab.run(&well).sh(writes).go();
        outcome.code(121).complains("rebooted");
        let told = outcome.controls();
        assert!(told[0].starts_with("machine: reboot-prepare half (") && told[0].contains(why), "{told:?}");
    }
    // Who does not wait for the answer is told so.
    let well = WELL.replace("\nagent\n", "\nagent sync=never\n");
    let outcome = lab.run(&well).sh(writes).go();
    outcome.code(121).complains("wait for the answer");
}

#[test]
fn a_line_that_was_begun_is_ended_when_the_machine_goes_down() {
    let lab = Lab::new();
    let tap = "[ $BELLJAR_REBOOT_COUNT = 1 ] && { echo 'not ok 1 - a'; exit 3; }; echo 1..1; printf 'ok 1 - begun '; printf whole >&2; \
               machine agent 'ask \"reset half\"'; sleep 60";
    let outcome = lab.run(WELL).sh(tap).go();
    outcome.code(3).says("1..1\nok 1 - begun \nnot ok 1 - a\n");
    assert!(outcome.stderr.contains("whole\n"), "{:?}", outcome.stderr);
}

#[test]
fn who_reads_the_output_slowly_gets_all_of_it() {
    let lab = Lab::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let reading = std::thread::spawn(move || {
        // Longer than what is killed has to end.
        std::thread::sleep(Duration::from_secs(8));
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        all
    });
    let talks = "[ $BELLJAR_REBOOT_COUNT = 1 ] && { echo again; exit 3; }; seq 1 20000; machine agent 'ask \"reset half\"'; sleep 60";
    let outcome = lab.run(WELL).stdout(writer).sh(talks).go();
    outcome.code(3);
    let all: String = (1..=20000).map(|number| format!("{number}\n")).chain(["again\n".to_owned()]).collect();
    let read = reading.join().unwrap();
    assert!(read == all, "{} bytes of {}: {:?}", read.len(), all.len(), &read[read.len().saturating_sub(40)..]);
}

#[test]
fn a_terminal_goes_on_when_the_machine_is_up_again() {
    let lab = Lab::new();
    let mut pty = Pty::new();
    let shell = "echo ready-$BELLJAR_REBOOT_COUNT; while read -r line; do echo got-$line; case $line in again) machine agent 'ask \"reset half\"' ;; \
                 bye) exit 5 ;; esac; done; exit 6";
    let run = lab.shell(WELL).under(pty.wrapper()).command(["sh", "-c", shell]).spawn();
    pty.await_text("ready-0");
    pty.type_in("again\r");
    pty.await_text("ready-1");
    pty.type_in("bye\r");
    pty.await_text("got-bye");
    run.end().code(5);
    assert!(pty.is_cooked());
}

#[test]
fn a_copy_keeps_its_address_and_what_is_gone_is_told() {
    let lab = Lab::new();
    let outcome = lab.run(&asking("link+down,reset+half")).with_templates().sh(TELL).go();
    told_again(&outcome, "half");
    outcome.complains("the network card's cable was plugged out; with the restart it is plugged in");
    let seen = lab.seen();
    let identities: Vec<&str> = seen.split("mac: [").skip(1).filter_map(|rest| rest.split(']').next()).collect();
    let [copy, again] = identities[..] else { panic!("{identities:?}: {seen}") };
    assert_eq!(copy, again);
    let mac: Vec<String> = copy.split(", ").map(|byte| format!("{:02x}", byte.parse::<u8>().unwrap())).collect();
    assert!(seen.contains(&format!("mac={}", mac.join(":"))), "{mac:?}: {seen}");
}
