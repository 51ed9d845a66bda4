//! Guests that nobody can log in to: the agent comes by itself, and early.

use crate::harness::{Lab, Outcome, snapshot};

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
