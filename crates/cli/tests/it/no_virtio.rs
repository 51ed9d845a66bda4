//! Images whose kernel has no virtio: their disks, their card, and how the agent and the workspace get in. They are known by what is in them.

use std::fs;

use data_encoding::BASE64;

use crate::{
    doctor_image::{disk, doctor, replace},
    harness::{Belljar, Lab, Outcome},
};

/// The disk of the reader's tests whose kernel has SATA and a card of Intel's in the place of virtio.
fn without_virtio() -> Vec<u8> {
    let mut bytes = disk("gpt");
    // Of the same lengths, in the list of what is built in.
    replace(&mut bytes, b"kernel/drivers/virtio/virtio.ko", b"kernel/drivers/net/xx/e1000e.ko");
    replace(&mut bytes, b"kernel/drivers/virtio/virtio_pci.ko", b"kernel/drivers/xxxxx/scsi/sd_mod.ko");
    replace(&mut bytes, b"kernel/drivers/block/virtio_blk.ko", b"kernel/drivers/xxxxx/xata/ahci.ko\n");
    bytes
}

/// A console that asks for a login that nobody knows, and an agent that comes by itself on the second serial port.
const LOCKED: &str = "[serial]\nsend \"\\r\\ndebian login: \"\ndrain\n[serial1]\nagent pid1=off\n";

fn run<'a>(lab: &'a Lab, script: &str, options: &[&str]) -> Belljar<'a> {
    let image = lab.path("disk.raw");
    if !image.exists() {
        fs::write(&image, without_virtio()).unwrap();
    }
    lab.run_bare(script).in_playground().args(["-v", "--image", &image.display().to_string()]).args(options)
}

fn command(outcome: &Outcome<'_>) -> String {
    String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned()
}

/// The devices of its disks.
fn disks(command: &str) -> Vec<&str> {
    command.split("-device ").filter(|device| device.contains("drive=disk")).collect()
}

#[test]
fn it_has_what_it_has_drivers_for() {
    let lab = Lab::new();
    fs::write(lab.path("workspace/file"), "before\n").unwrap();
    let text = "cat file; echo more >>file; echo left >$BELLJAR_OUT/left; exit 7";
    let outcome = run(&lab, LOCKED, &["--disk", "size=1M,serial=data"]).sh(text).go();
    outcome.code(7).says("before\n");
    outcome.complains(
        "boot bus: sata (the image's kernel has no virtio disks when it looks for its root, and a driver for sata",
    );
    outcome.complains("network card: e1000e (").complains("agent: on the disk of shares (");
    outcome.complains("session: agent on the second serial port").complains("share: disk (the agent mounted");
    assert_eq!(fs::read_to_string(lab.path("workspace/file")).unwrap(), "before\nmore\n");
    assert_eq!(fs::read_to_string(lab.runs().pop().unwrap().join("out/left")).unwrap(), "left\n");
    let command = command(&outcome);
    let disks = disks(&command);
    let [boot, data, share] = &disks[..] else { panic!("{command}") };
    assert!(boot.starts_with("ide-hd,bus=sata0.0") && boot.contains("bootindex=0"), "{boot}");
    assert!(data.starts_with("ide-hd,bus=sata0.1") && data.contains("serial=data"), "{data}");
    assert!(share.starts_with("ide-hd,bus=sata0.2") && share.contains("serial=belljar-share"), "{share}");
    assert!(!command.contains("virtio-9p") && !command.contains("belljar.program"), "{command}");
    // What the guest's systemd is given looks on the disk.
    let unit = command.split("systemd.extra-unit.belljar-agent.service=").nth(1).unwrap();
    let unit = unit.split(['\'', ' ', '\n']).next().unwrap();
    let unit = String::from_utf8(BASE64.decode(unit.as_bytes()).unwrap()).unwrap();
    assert!(unit.contains("= belljar-share-1 ]") && unit.contains("cksum"), "{unit}");
}

#[test]
fn what_is_asked_for_stays() {
    let lab = Lab::new();
    let outcome =
        run(&lab, LOCKED, &["--boot-bus", "ide", "--disk", "size=1M,bus=virtio", "--nic", "none"]).sh("exit 7").go();
    outcome.code(7);
    assert!(!outcome.stderr.contains("boot bus:") && !outcome.stderr.contains("network card:"), "{}", outcome.stderr);
    let command = command(&outcome);
    let disks = disks(&command);
    assert!(disks[0].starts_with("ide-hd,bus=ide.0") && disks[1].starts_with("virtio-blk-pci"), "{command}");
    assert!(disks[2].starts_with("ide-hd,bus=ide.0") && disks[2].contains("unit=1"), "{command}");
    // A share that it cannot have is an error, and the agent is there all the same.
    let outcome = run(&lab, &LOCKED.replace("pid1=off", "pid1=off setup=no9p"), &["--share", "9p"]).sh("true").go();
    outcome.code(125).complains("it has no 9p file system");
    outcome.complains("agent: on the disk of shares (");
}

#[test]
fn copies_have_each_their_own_disk_of_shares() {
    let lab = Lab::new();
    for (n, template) in ["made", "found", "found"].into_iter().enumerate() {
        fs::write(lab.path("workspace/file"), format!("{n}\n")).unwrap();
        let outcome = run(&lab, LOCKED, &[]).with_templates().sh("cat file; echo more >>file").go();
        outcome.code(0).says(&format!("{n}\n")).complains(&format!("template: {template}"));
        assert_eq!(fs::read_to_string(lab.path("workspace/file")).unwrap(), format!("{n}\nmore\n"));
    }
    assert_eq!(lab.starts().0, 1, "one boots");
    // Another bus makes another guest.
    run(&lab, LOCKED, &["--boot-bus", "ide"]).with_templates().sh("true").go().code(0).complains("template: made");
}

#[test]
fn a_guest_that_does_not_see_the_disk_is_told_of() {
    let lab = Lab::new();
    let lacking = LOCKED.replace("pid1=off", "pid1=off disk=lacking");
    let outcome = run(&lab, &lacking, &[]).sh("true").go();
    outcome.code(125).complains("it has no driver for the disk that its shares are on");
    for how in ["damaged", "cut"] {
        let script = LOCKED.replace("pid1=off", &format!("pid1=off disk={how}"));
        run(&lab, &script, &[]).sh("echo left >$BELLJAR_OUT/left; true").go().code(125);
    }
    // Its console's shell finds no such disk, and what is typed instead does not run: there is a session all the same, and no share.
    let shell = "[serial]\nlogin\n";
    let image = lab.path("disk.raw").display().to_string();
    let broken = ("FAKE_GUEST_AGENT", "broken");
    let alone = || lab.belljar(["run", "--accel", "tcg", "-w", "none", "-v", "--login", "root", "--image", &image]);
    let outcome = alone().script(shell).in_playground().env(broken.0, broken.1).sh("exit 7").go();
    outcome.code(7).complains("session: sh on the console (the agent does not run in this guest: exit code 126");
    // What runs is talked to as ever.
    let outcome = alone()
        .script(&format!("{shell}[serial1]\nwait agent 85000\nagent pid1=off\n"))
        .in_playground()
        .sh("exit 7")
        .go();
    outcome.code(7).complains("agent: typed over the console").complains("session: agent on the second serial port");
    let outcome = run(&lab, shell, &["--login", "root"]).env(broken.0, broken.1).sh("true").go();
    outcome.code(125).complains("the guest has no agent, which shares by disk need");
}

#[test]
fn the_doctor_tells_what_it_would_have() {
    let lab = Lab::new();
    let (code, text) = doctor(&lab, "disk.raw", &without_virtio());
    insta::assert_snapshot!(text);
    assert_eq!(code, 0);
}
