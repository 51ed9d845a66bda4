//! Guests that differ by disks, cards, shares and environment: one boots, and the others are made of its template.
//!
//! The pretended QEMU goes on with a frozen machine only if it has the same devices under the same names and in the same slots.

use std::{collections::BTreeSet, fs, path::Path};

use rustix::process::Signal;

use crate::harness::{Belljar, Lab, WELL, on_tmpfs, read_only};

fn run<'a>(lab: &'a Lab, script: &str) -> Belljar<'a> {
    lab.run(script).with_templates()
}

/// A guest that works, on a QEMU with these options.
fn well(options: &str) -> String {
    format!("[options]\n{options}\n{WELL}")
}

/// What all the pretended QEMUs' command lines say of a device, without repetitions.
fn devices(lab: &Lab, driver: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in lab.seen().lines().filter(|l| l.contains("\"kind\":\"args\"") && l.contains("-chardev")) {
        let note: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let words = note["value"].as_array().expect("words").iter().filter_map(|w| w.as_str());
        found.extend(words.filter(|w| w.split(',').next() == Some(driver)).map(str::to_owned));
    }
    found
}

#[test]
fn what_the_session_can_be_told_later_makes_no_other_guest() {
    let lab = Lab::new();
    fs::create_dir(lab.path("other")).expect("directory");
    let other = lab.path("other").display().to_string();
    let out = lab.path("out").display().to_string();
    let path = format!("{}:/opt/venv/bin", std::env::var("PATH").expect("PATH"));
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let (vmlinux, rootfs) = (lab.path("vmlinux").display().to_string(), lab.path("rootfs").display().to_string());
    let with = |words: &[&str]| {
        let guest = ["run", "--accel", "tcg", "--kernel", &vmlinux, "--rootfs", &rootfs];
        lab.belljar([&guest[..], words].concat()).with_templates().script(WELL)
    };
    let ways: [&[&str]; 6] = [
        &["-w", "none"],
        &["-w", &other, "--workspace-mode", "rw"],
        &["-w", &other, "--workspace-mode", "ro"],
        &["-w", &other, "--workspace-mode", "cow", "--mount-at", "/mnt/elsewhere"],
        &["--out", &out],
        &["--oops", "note"],
    ];
    for way in ways {
        with(way).sh("exit 7").go().code(7).quietly(&["found"]);
    }
    let variables = [("PATH", path.as_str()), ("LANG", "xx_YY.UTF-8"), ("TZ", "Nowhere/At_All"), ("LC_ALL", "zz_ZZ")];
    for (name, value) in variables {
        run(&lab, WELL).env(name, value).sh("exit 7").go().code(7).quietly(&["found"]);
        assert!(lab.seen().contains(&format!("{name}={value}")), "the guest is told all the same");
    }
    // Nor does a network that nobody in the guest has looked at yet.
    run(&lab, WELL).args(["--nic", "user"]).sh("exit 7").go().code(7).quietly(&["found"]);
    assert_eq!(lab.starts(), (1, 12));
    lab.template();
}

#[test]
fn disks_are_plugged_into_a_copy_of_the_guest() {
    let lab = Lab::new();
    let data = lab.image("data", "raw");
    let file = format!("file={}", data.display());
    let before = fs::read(&data).expect("image");
    let ways: [&[&str]; 4] = [
        &["size=1M,serial=one", "size=2M"],
        &["size=1M,bus=scsi", "size=2M,bus=scsi,serial=two"],
        &[&file],
        &["size=1M", "size=1M,bus=scsi", "size=3M,bus=nvme"],
    ];
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    for (at, disks) in ways.iter().enumerate() {
        let call = || {
            let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
            run(&lab, WELL).args(disks).sh("exit 7").go()
        };
        call().code(7).quietly(&["found", "plugged"]);
        call().code(7).quietly(&["found"]);
        assert_eq!((lab.starts().0, lab.templates().len()), (1, at + 2), "{disks:?}");
    }
    assert_eq!(fs::read(&data).expect("image"), before, "the image is never written to");
    // A booted guest has them in the same places.
    let booted = devices(&lab, "virtio-blk-pci");
    run(&lab, WELL).args(["--no-template", "--disk", ways[0][0], "--disk", ways[0][1]]).sh("exit 7").go().code(7);
    assert_eq!(devices(&lab, "virtio-blk-pci"), booted);
    assert_eq!(lab.starts().0, 2);
}

#[test]
fn an_nvme_disk_goes_into_each_copy() {
    let lab = Lab::new();
    let call = || run(&lab, WELL).args(["--disk", "size=1M,bus=nvme,serial=x"]).sh("exit 7").go();
    call().code(7).quietly(&["made"]);
    call().code(7).quietly(&["found"]);
    run(&lab, WELL).sh("exit 8").go().code(8).quietly(&["found"]);
    assert_eq!((lab.starts(), lab.asked("device_add")), ((1, 3), 2));
    lab.template();
    // A guest that never takes note of it boots, and that is not tried again at once.
    let call = |script: &str| {
        let disk = ["--boot-timeout", "4s", "--disk", "size=1M,bus=nvme"];
        run(&lab, script).args(disk).sh("exit 9").go()
    };
    call(&well("device-add fail")).code(9).warns_once("a device cannot be plugged into this guest");
    let again = call(WELL);
    again.code(9);
    assert_eq!((again.chosen("template"), again.warnings().len()), (vec!["found".to_owned(), "none".to_owned()], 0));
    assert_eq!(lab.starts(), (3, 4));
}

#[test]
fn the_card_is_taken_out_or_replaced() {
    let lab = Lab::new();
    let script = "[serial]\nlogin user=root\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let call =
        |nic: &str| lab.run_image(script).with_templates().args(["--login", "root", "--nic", nic]).sh("exit 7").go();
    for nic in ["none", "user"] {
        let first: &[&str] = if nic == "none" { &["made", "plugged"] } else { &["found", "plugged"] };
        call(nic).code(7).quietly(first);
        call(nic).code(7).quietly(&["found"]);
    }
    call("isolated").code(7).quietly(&["found"]);
    assert_eq!((lab.starts().0, lab.templates().len()), (1, 3));
    assert_eq!((lab.asked("device_del"), lab.asked("netdev_del"), lab.asked("netdev_add")), (2, 2, 1));
    assert_eq!(devices(&lab, "virtio-net-pci").len(), 1, "it has its place whatever else there is");
}

#[test]
fn what_cannot_be_plugged_in_boots_with_the_device() {
    let cases = [
        (well("device-add refuse"), "said by the script"),
        (well("device-add fail"), "did not take note of the virtio disk d0 within"),
        (well("device-add die"), "the guest was lost to it"),
    ];
    for (script, why) in cases {
        let lab = Lab::new();
        let disk = ["--boot-timeout", "4s", "--disk", "size=1M,serial=d0"];
        let call = |script: &str| run(&lab, script).args(disk).sh("exit 7").go();
        let outcome = call(&script);
        outcome.code(7).warns_once("devices cannot be plugged into this guest").warns_once(why);
        assert_eq!(outcome.chosen("template"), ["made", "plugged", "made"], "{why}");
        assert_eq!((lab.starts().0, lab.templates().len()), (2, 2), "{why}");
        call(&script).code(7).quietly(&["found"]);
        // It is not tried again with another one, until the template is made anew.
        let other = run(&lab, &script).args(["--boot-timeout", "4s", "--disk", "size=2M"]).sh("exit 7").go();
        other.code(7).quietly(&["found", "booted", "made"]);
        assert_eq!((lab.starts().0, lab.asked("device_add")), (3, 1), "{why}");
    }
}

#[test]
fn a_card_that_the_guest_keeps() {
    let lab = Lab::new();
    let script = "[options]\ndevice-del fail\n[serial]\nlogin user=root\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let call = || {
        let words = ["--login", "root", "--boot-timeout", "8s", "--nic", "none"];
        lab.run_image(script).with_templates().args(words).sh("exit 7").go()
    };
    call().code(7).warns_once("did not let go of the network card within");
    call().code(7).quietly(&["found"]);
    assert_eq!(lab.starts(), (2, 3));
    assert_eq!(lab.templates().len(), 2);
}

#[test]
fn a_guest_without_an_agent_boots_with_its_disks() {
    let lab = Lab::new();
    let script =
        "[serial]\nshell program=\"/bin/sh\" prompt=\"# \"\n[clone-serial]\nshell program=\"/bin/sh\" prompt=\"# \"\n";
    let call = |words: &[&str]| {
        let call = lab.run_image(script).with_templates().env("FAKE_GUEST_AGENT", "broken");
        call.args(words).sh("exit 7").go()
    };
    let outcome = call(&["--disk", "size=1M"]);
    outcome.code(7);
    assert!(outcome.warnings().iter().any(|w| w.contains("has no agent")), "{:#?}", outcome.warnings());
    assert_eq!(lab.starts().0, 2);
    let outcome = call(&["--disk", "size=1M"]);
    outcome.code(7);
    assert_eq!((outcome.chosen("template"), lab.starts().0), (vec!["found".to_owned()], 2));
}

#[test]
fn a_bus_that_knows_no_plugging_is_said_and_booted() {
    let lab = Lab::new();
    for bus in ["ide", "sata"] {
        let disk = format!("size=1M,bus={bus}");
        let call = || run(&lab, WELL).args(["-v", "--disk", &disk]).sh("exit 7").go();
        call().code(7).quietly(&["made"]).complains(&format!("a disk on {bus} cannot be plugged"));
        call().code(7).quietly(&["found"]);
        // What can be is plugged into that one.
        let both = run(&lab, WELL).args(["--disk", "size=1M", "--disk", &disk]).sh("exit 7").go();
        both.code(7).quietly(&["found", "plugged"]);
    }
    assert_eq!((lab.starts().0, lab.asked("device_add")), (2, 2));
}

#[test]
fn killed_while_devices_are_plugged_in() {
    for signal in [Signal::KILL, Signal::TERM] {
        let lab = Lab::new();
        run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
        let call = |script: &str| run(&lab, script).args(["--disk", "size=1M"]).sh("exit 7");
        let mut maker = call(&well("device-add fail")).spawn();
        maker.await_mark("device-added");
        maker.signal(signal);
        assert_ne!(maker.end().status.code(), Some(0));
        call(WELL).go().code(7).quietly(&["found", "plugged"]);
        assert_eq!((lab.starts().0, lab.templates().len()), (1, 2), "{:?}", lab.templates());
    }
}

#[test]
fn of_two_at_the_same_time_one_plugs() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0);
    let call = |code: i32| run(&lab, WELL).args(["--disk", "size=1M"]).sh(&format!("exit {code}")).spawn();
    for (code, run) in [11, 12, 13].map(|code| (code, call(code))) {
        let outcome = run.end_dirty();
        outcome.code(code);
        assert_eq!(outcome.warnings(), [""; 0]);
    }
    assert_eq!((lab.starts().0, lab.asked("device_add"), lab.templates().len()), (1, 1, 2));
}

#[test]
fn a_cache_that_cannot_take_another_one() {
    let lab = Lab::new();
    run(&lab, WELL).sh("true").go().code(0).quietly(&["made"]);
    let call = |words: &[&str]| run(&lab, WELL).under(read_only(lab.path("cache"))).args(words).sh("exit 7").go();
    call(&["--disk", "size=1M"]).code(7).warns_once("templates cannot be kept in");
    // No template has to be made for these.
    call(&["--nic", "user"]).code(7).quietly(&["found"]);
    call(&["--disk", "size=1M,bus=nvme"]).code(7).quietly(&["found"]);
    lab.template();
    let outcome =
        run(&lab, WELL).under(on_tmpfs(lab.path("cache"), "size=64M")).args(["--disk", "size=1M"]).sh("exit 7").go();
    outcome.code(7).warns_once("not enough room");
}

#[test]
fn a_guest_that_cannot_be_frozen_has_its_disks_all_the_same() {
    for bus in ["virtio", "nvme"] {
        let lab = Lab::new();
        let disk = format!("size=1M,serial=here,bus={bus}");
        let outcome = run(&lab, &well("migrate refuse")).args(["--disk", &disk]).sh("exit 7").go();
        outcome.code(7).warns_once("cannot be kept as a template");
        let last = lab.seen().lines().rfind(|l| l.contains("\"kind\":\"args\"")).map(str::to_owned);
        assert!(last.is_some_and(|l| l.contains("serial=here")), "{bus}");
    }
}

/// The root of a guest with somebody else's initramfs may be one of the disks.
#[test]
fn somebody_elses_initramfs_boots_with_its_disks() {
    let lab = Lab::new();
    // A cpio archive of nothing.
    let mut cpio = b"070701".to_vec();
    cpio.extend(["00000000"; 4].concat().bytes());
    cpio.extend(b"00000001");
    cpio.extend(["00000000"; 6].concat().bytes());
    cpio.extend(b"0000000b00000000TRAILER!!!\0");
    cpio.resize(512, 0);
    fs::write(lab.path("initrd"), cpio).expect("initrd");
    let (kernel, initrd) = (lab.path("vmlinux").display().to_string(), lab.path("initrd").display().to_string());
    let guest = ["--kernel", &kernel, "--initrd", &initrd, "--access", "init", "--disk", "size=1M,serial=root"];
    let call = || lab.run_bare(WELL).with_templates().args(guest).sh("exit 7").go();
    call().code(7).quietly(&["made"]);
    assert_eq!((lab.starts(), lab.asked("device_add")), ((1, 1), 0));
    assert!(devices(&lab, "virtio-blk-pci").iter().all(|disk| disk.contains("serial=root")));
    assert!(lab.seen().lines().filter(|l| l.contains("-chardev")).all(|l| l.contains("serial=root")));
    call().code(7).quietly(&["found"]);
}

/// Its boot may wait for a disk that is to be plugged in.
#[test]
fn a_guest_that_does_not_come_up_without_its_disk_boots_with_it() {
    let lab = Lab::new();
    let script = WELL.replace("mark banner\n", "wait qmp\nwants-disk here\nmark banner\n");
    let call = || run(&lab, &script).args(["--disk", "size=1M,serial=here"]).sh("exit 7").go();
    let outcome = call();
    outcome.code(7).warns_once("does not come up without its devices");
    assert_eq!(lab.starts(), (2, 1));
    call().code(7).quietly(&["found"]);
}

#[test]
fn listed_with_what_it_was_made_of() {
    let lab = Lab::new();
    let template = |words: &[&str]| lab.belljar(["template"]).args(words).with_templates().script(WELL);
    let (vmlinux, rootfs) = (lab.path("vmlinux").display().to_string(), lab.path("rootfs").display().to_string());
    let guest = ["make", "-v", "--accel", "tcg", "--kernel", &vmlinux, "--rootfs", &rootfs];
    template(&guest).go().code(0).complains("template: made");
    let base = lab.template();
    let base = &base.file_name().and_then(|n| n.to_str()).unwrap_or_default()[..10];
    template(&[&guest[..], &["--disk", "size=1M"]].concat()).go().code(0).complains("template: plugged");
    let says = format!("with 1 disk more (made of {base})");
    let listed = template(&["list"]).go();
    assert!(listed.code(0).text().contains(&says), "{}", listed.text());
    run(&lab, WELL).args(["--disk", "size=1M"]).sh("exit 7").go().code(7).quietly(&["found"]);
    // What was made of it does not need it.
    let is_base = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(base));
    fs::remove_dir_all(lab.templates().into_iter().find(|t| is_base(t)).expect("base")).expect("removed");
    run(&lab, WELL).args(["--disk", "size=1M"]).sh("exit 7").go().code(7).quietly(&["found"]);
    let pruned = template(&["prune", "--all"]).go();
    assert!(pruned.text().starts_with("1 removed") && pruned.text().contains(&says), "{}", pruned.text());
}

#[test]
fn a_machine_that_may_name_a_file_has_no_template() {
    let lab = Lab::new();
    let firmware = lab.path("firmware");
    fs::write(&firmware, "bytes").expect("file");
    let machine = format!("pc,firmware={}", firmware.display());
    for _ in 0..2 {
        let outcome = run(&lab, WELL).args(["--machine", &machine]).sh("exit 7").go();
        outcome.code(7).quietly(&["none"]);
    }
    assert_eq!((lab.starts(), lab.templates().len()), ((2, 0), 0));
    run(&lab, WELL).args(["--machine", "pc,usb=on"]).sh("exit 7").go().code(7).quietly(&["made"]);
}
