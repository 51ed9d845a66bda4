//! Guests that nobody can log in to: the agent comes by itself, and early.

use std::fs;

use crate::{
    doctor_image::disk,
    harness::{Belljar, Lab, Outcome, snapshot},
};

/// A console that asks for a login that nobody knows, and an agent that comes by itself.
fn locked(agent: &str) -> String {
    format!("[serial]\nsend \"\\r\\ndebian login: \"\ndrain\n[agent]\nagent pid1=off {agent}\n")
}

fn run<'a>(lab: &'a Lab, script: &str, options: &[&str]) -> Outcome<'a> {
    lab.run_image(script).args(["-v"]).args(options).sh("echo in; exit 7").go()
}

#[test]
fn the_agent_comes_by_itself_and_the_end_of_the_boot_is_awaited() {
    let lab = Lab::new();
    for options in [&[][..], &["--access", "credentials"]] {
        let outcome = run(&lab, &locked(""), options);
        outcome.code(7).says("in\n").complains("access: credentials").complains("agetty waits for somebody to log in");
        let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
        assert!(command.contains("io.systemd.credential.binary:tmpfiles.extra="), "{command}");
        assert!(command.contains("name=belljar.program"), "{command}");
    }
    let outcome = run(&lab, &locked("boot=rest"), &[]);
    outcome.code(7).complains("no program waits for a login, but none was started for 30 s either");
}

#[test]
fn a_boot_that_comes_to_no_good_end_is_no_guest() {
    let lab = Lab::new();
    let outcome = run(&lab, &locked("boot=emergency"), &[]);
    outcome.code(121).complains("the guest's init gave up, and started sulogin");
    assert!(!outcome.stderr.contains('\u{1b}'), "the guest's words are no control sequences: {}", outcome.stderr);
    run(&lab, &locked("boot=panic"), &[]).code(121).complains("panic");
    let outcome = run(&lab, &locked("boot=never"), &["--boot-timeout", "4s"]);
    outcome.code(124).complains("boot did not come to its end");
    run(&lab, &locked("boot=limit"), &[]).code(124).complains("boot did not come to its end");
}

#[test]
fn a_way_in_that_is_asked_for_is_the_only_one() {
    let lab = Lab::new();
    let shell = "[serial]\nsend \"\\r\\n# \"\nshell\n";
    let outcome = run(&lab, shell, &["--access", "credentials", "--boot-timeout", "4s"]);
    outcome.code(124).complains("systemd 252 and later take it), did not announce itself");
    let outcome = run(&lab, &locked(""), &["--access", "console", "--boot-timeout", "20s"]);
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(!command.contains("io.systemd.credential"), "{command}");
}

#[test]
fn what_is_pasted_has_nothing_of_the_runs() {
    let lab = Lab::new();
    let outcome = lab.run_image("").args(["--dry-run"]).sh("true").go();
    outcome.code(0);
    assert!(
        !outcome.text().contains("belljar.program") && !outcome.text().contains("io.systemd"),
        "{}",
        outcome.text()
    );
}

#[test]
fn the_words_for_ways_in() {
    let lab = Lab::new();
    let outcome = lab.run_image("").args(["--access", "credential"]).sh("true").go();
    snapshot!(outcome);
    let outcome = lab.belljar(["run", "--access", "credentials", "--", "true"]).go();
    outcome.code(2).complains("--access credentials needs --image");
}

#[test]
fn cloud_init_is_told_by_the_last_disk() {
    let lab = Lab::new();
    let disks = ["--disk", "size=1MiB", "--disk", "size=1MiB,bus=scsi"];
    let outcome = run(&lab, &locked(""), &[&["--access", "cloud-init"][..], &disks].concat());
    outcome.code(7).says("in\n").complains("access: cloud-init").complains("agetty waits for somebody to log in");
    outcome.complains("the disk for the guest's cloud-init is to come after it");
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(!command.contains("io.systemd") && command.contains("name=belljar.program"), "{command}");
    let disks: Vec<_> = command.split("-device ").filter(|device| device.contains("drive=disk")).collect();
    let [boot, virtio, scsi, seed] = &disks[..] else { panic!("{command}") };
    assert!(boot.contains("bootindex=0") && !virtio.contains("serial=") && scsi.starts_with("scsi-hd"), "{command}");
    assert!(seed.contains("serial=belljar-cidata") && seed.contains("addr=0x11"), "{command}");
    // Where nobody asks for it, and nothing is known of the image, there is no such disk.
    let outcome = run(&lab, &locked(""), &[]);
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(!command.contains("belljar-cidata"), "{command}");
    let outcome = lab.run_image("").args(["--dry-run", "--access", "cloud-init"]).sh("true").go();
    outcome.code(0);
    assert!(!outcome.text().contains("belljar-cidata"), "{}", outcome.text());
}

#[test]
fn a_cloud_init_that_does_nothing_is_told() {
    let lab = Lab::new();
    let shell = "[serial]\nsend \"\\r\\n# \"\nshell\n";
    let outcome = run(&lab, shell, &["--access", "cloud-init", "--boot-timeout", "4s"]);
    outcome
        .code(124)
        .complains("was to be started by the guest's cloud-init, which is told to by a disk labelled cidata");
}

#[test]
fn ignition_finds_its_configuration_in_the_machine() {
    let lab = Lab::new();
    let outcome = run(&lab, &locked(""), &["--access", "ignition"]);
    outcome.code(7).says("in\n").complains("access: ignition").complains("agetty waits for somebody to log in");
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(command.contains("name=opt/com.coreos/config,string={") && !command.contains("io.systemd"), "{command}");
    assert!(command.contains(r#""version":"3.0.0""#) && command.contains("WantedBy=sysinit.target"), "{command}");
    let outcome = run(&lab, "[serial]\ndrain\n", &["--access", "ignition", "--boot-timeout", "4s"]);
    outcome.code(124).complains("by a unit that the guest's Ignition makes at its first boot, did not announce itself");
    let outcome = lab.run_image("").args(["--dry-run", "--access", "ignition"]).sh("true").go();
    outcome.code(0);
    assert!(!outcome.text().contains("coreos"), "{}", outcome.text());
}

/// Who asks for a password that nobody knows.
const CLOSED: &str = "login user=nobody password=known\n";
/// An agent that comes when the kernel is started directly.
const HELD: &str = "send \"booting\\r\\n\"\ndrain\n[direct-agent]\nagent pid1=off\n";

fn script_of(own: &str, direct: &str) -> String {
    format!("[serial]\n{own}[direct-serial]\n{direct}")
}

/// A guest of a disk with a system, whose console does `own` by its own boot and `direct` where its kernel is started directly.
fn two_ways<'a>(lab: &'a Lab, own: &str, direct: &str) -> Belljar<'a> {
    let image = lab.path("disk.raw");
    if !image.exists() {
        fs::write(&image, disk("gpt")).unwrap();
    }
    lab.run_bare(&script_of(own, direct)).in_playground().args(["-v", "--image", &image.display().to_string()])
}

#[test]
fn where_its_own_boot_lets_nobody_in_its_kernel_is_started_directly() {
    let lab = Lab::new();
    let closed = || two_ways(&lab, CLOSED, HELD).args(["--boot-timeout", "12s"]);
    let outcome = closed().sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("access: initrd");
    outcome.complains("nobody got in by the image's own boot, so that its kernel is started once more, directly");
    outcome.complains("start: directly, without the image's boot loader (nobody got in by the image's own boot");
    let console = outcome.kept("console.log");
    let console = String::from_utf8_lossy(&console);
    assert!(console.contains("login: ") && console.contains("booting"), "both boots are in the log: {console}");

    // That is known the next time.
    let outcome = closed().sh("exit 7").go();
    outcome.code(7).complains("start: directly");
    assert!(!outcome.stderr.contains("once more"), "{}", outcome.stderr);
    // It is the image's, as it is.
    let mut bytes = disk("gpt");
    bytes.extend([0; 512]);
    fs::write(lab.path("disk.raw"), bytes).unwrap();
    closed().sh("exit 7").go().code(7).complains("once more, directly");
}

#[test]
fn where_that_leads_nowhere_either_both_ways_are_told() {
    let lab = Lab::new();
    // What may have had too little time is tried at once the next time, and what came to nothing then is not remembered.
    for directly in [false, true, false] {
        let outcome = two_ways(&lab, CLOSED, CLOSED).args(["--boot-timeout", "8s"]).sh("true").go();
        outcome.code(125).complains("ways in that were tried: initrd, login, shell");
        if directly {
            assert!(!outcome.stderr.contains("once more"), "{}", outcome.stderr);
        } else {
            outcome.complains("once more, directly").complains("before that, by the image's own boot: ");
        }
    }
}

#[test]
fn who_says_how_or_how_long_gets_no_other_way() {
    let lab = Lab::new();
    let outcome = two_ways(&lab, "drain\n", HELD).args(["--boot-timeout", "4s"]).sh("true").go();
    outcome.code(124);
    assert!(!outcome.stderr.contains("once more"), "{}", outcome.stderr);
    for way in [["--access", "console"], ["--login", "root:wrong"], ["--access", "credentials"]] {
        let outcome = two_ways(&lab, CLOSED, HELD).args(way).args(["--boot-timeout", "9s"]).sh("true").go();
        assert!(!outcome.stderr.contains("once more"), "{way:?}: {}", outcome.stderr);
        assert!(matches!(outcome.status.code(), Some(124 | 125)), "{way:?}: {}", outcome.stderr);
    }
}

#[test]
fn all_tests_of_a_guest_go_the_way_that_one_has_found() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    fs::write(&image, disk("gpt")).unwrap();
    let guest = format!("[guests.h]\nimage = \"{}\"\nboot-timeout = \"20s\"\n", image.display());
    let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"h\"]\n";
    lab.suite(&format!("{guest}{suite}"), &[("a", "exit 0"), ("b", "exit 3"), ("c", "exit 0")]);
    let outcome = lab.test(["-j2"]).script(&script_of(CLOSED, HELD)).with_templates().go();
    outcome.code(100);
    assert_eq!(outcome.verdicts().into_values().collect::<Vec<_>>(), ["pass", "fail 3", "pass"]);
    outcome.warns_once("once more, directly");
}
