//! Guests that do not get as far as a session, or only just.

use std::fs;

use crate::{
    doctor_image::disk,
    harness::{Lab, snapshot},
};

#[test]
fn a_silent_guest_is_given_up() {
    let lab = Lab::new();
    let outcome = lab.run("[serial]\ndrain\n").args(["--boot-timeout", "1s"]).sh("true").go();
    outcome.code(124);
    assert_eq!(outcome.verdict(), "timeout/boot");
    snapshot!(outcome);
}

#[test]
fn no_banner_on_a_disk() {
    let lab = Lab::new();
    let outcome = lab.run_image("[serial]\ndrain\n").args(["--boot-timeout", "1s"]).sh("true").go();
    outcome.code(124);
    assert!(outcome.verdict().starts_with("timeout/"), "{}", outcome.verdict());
    snapshot!(outcome);
}

#[test]
fn a_banner_that_is_cut_off() {
    let lab = Lab::new();
    let script = "[serial]\nsend \"SeaBIOS (version 1.16)\\r\\n\\r\\nDebian GNU/Linux 12 stocktest tt\"\ndrain\n";
    let outcome = lab.run_image(script).args(["--boot-timeout", "1500ms"]).sh("true").go();
    outcome.code(124).complains("Debian GNU/Linux 12 stocktest tt");
}

#[test]
fn nothing_to_boot_is_told_at_once() {
    let lab = Lab::new();
    let script = "[serial]\nsend \"SeaBIOS\\r\\nBooting from Hard Disk...\\r\\nBoot failed: not a bootable disk\\r\\n\\r\\nNo bootable device.\\r\\n\"\ndrain\n";
    let outcome = lab.run_image(script).args(["--boot-timeout", "60s"]).sh("true").go();
    outcome.code(121).complains("No bootable device");
    assert_eq!(outcome.verdict(), "crash/boot-failed");
}

#[test]
fn a_panic_in_the_boot_is_told_at_once() {
    let lab = Lab::new();
    let panic = "VFS: Unable to mount root fs on unknown-block(0,0)\\r\\n[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\\r\\n";
    let outcome =
        lab.run(&format!("[serial]\nwait qmp\nsleep 300\nsend \"[    1.123456] {panic}\"\nreset\n")).sh("true").go();
    outcome.code(121).complains("Unable to mount root fs");
    assert_eq!(outcome.verdict(), "crash/panic");
}

#[test]
fn an_emergency_shell_is_no_session() {
    let lab = Lab::new();
    let script = "[serial]\nsend \"You are in emergency mode. After logging in, type \\\"journalctl -xb\\\" to view system logs.\\r\\nGive root password for maintenance\\r\\n(or press Control-D to continue): \"\ndrain\n";
    let outcome = lab.run_image(script).args(["--boot-timeout", "60s"]).sh("true").go();
    outcome.code(121).complains("emergency mode");
}

#[test]
fn a_shell_of_the_initramfs_is_not_the_system_on_the_disk() {
    let script = |initramfs: &str| {
        format!("[serial]\nshell prompt=\"~ # \"\n[agent]\nwait agent 85000\nagent pid1=off initramfs={initramfs}\n")
    };
    // A disk with a system on it, and one of which nothing is known: that may live in its initramfs.
    for (has_system, code) in [(true, 121), (false, 7)] {
        let lab = Lab::new();
        let image = lab.image("disk.raw", "raw");
        if has_system {
            fs::write(&image, disk("gpt")).expect("disk");
        }
        let image = image.display().to_string();
        let run = |initramfs| {
            let words = ["--image", &image, "--login", "root"];
            lab.run_bare(&script(initramfs)).args(words).in_playground().sh("exit 7").go()
        };
        run("off").code(7);
        let outcome = run("on");
        outcome.code(code);
        if code == 121 {
            outcome.complains("a shell answered, but it is one of its initramfs").complains("--boot-bus");
        }
    }
}

#[test]
fn a_reboot_before_the_login_is_no_crash_loop() {
    let lab = Lab::new();
    let outcome =
        lab.run("[serial]\nwait qmp\nsleep 300\nsend \"reboot: Restarting system\\r\\n\"\nreset\n").sh("true").go();
    outcome.code(121);
    assert_eq!(outcome.verdict(), "crash/reboot");
}

#[test]
fn an_old_agent_is_refused() {
    let lab = Lab::new();
    let outcome = lab.run("[serial]\ndrain\n[agent]\nagent version=0\n").args(["--boot-timeout", "5s"]).sh("true").go();
    outcome.code(125).complains("version");
}

#[test]
fn a_kernel_without_9p() {
    let lab = Lab::new();
    let script = "[serial]\ndrain\n[agent]\nagent setup=no9p\n";
    let outcome = lab.run(script).sh("true").go();
    outcome.code(125).complains("9p").complains("--workspace none");
    // Without a workspace such a guest is welcome.
    let outcome = lab.run_on_any(script).args(["--accel", "tcg"]).sh("echo ran").go();
    outcome.code(0).says("ran\n").complains("$BELLJAR_OUT stays in the guest");
    // Files that somebody asked for would be lost: it does not even begin.
    let results = lab.path("results");
    let outcome = lab.run_on_any(script).args(["--accel", "tcg", "-o"]).args([&results]).sh("echo ran").go();
    outcome.code(125).says("").complains("the output directory").complains("no --out");
}

#[test]
fn a_kernel_without_overlayfs() {
    let lab = Lab::new();
    let script = "[serial]\ndrain\n[agent]\nagent setup=no-overlay\n";
    let outcome = lab.run(script).args(["--workspace-mode", "cow"]).sh("true").go();
    outcome.code(125).complains("overlay").complains("--workspace-mode");
}

#[test]
fn a_stock_image_with_a_root_shell_on_the_line() {
    let lab = Lab::new();
    let script = "[serial]\nsend \"GRUB loading...\\r\\n\"\nshell\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let outcome = lab.run_image(script).args(["-v"]).sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("agent on the virtio port");
}

#[test]
fn the_image_is_not_written_to() {
    let lab = Lab::new();
    for format in ["qcow2", "raw", "vmdk", "vdi", "vhdx"] {
        let image = lab.image(&format!("disk.{format}"), format);
        let before = fs::read(&image).expect("image");
        let script = "[serial]\nshell\n[agent]\nwait agent 80000\nagent pid1=off\n";
        let outcome =
            lab.run_bare(script).args(["--image".as_ref(), image.as_os_str()]).in_playground().sh("true").go();
        outcome.code(0);
        assert!(fs::read(&image).expect("image") == before, "{format}");
    }
}

#[test]
fn the_agent_may_come_over_the_second_serial_port() {
    let lab = Lab::new();
    let script = "[serial]\nshell\n[serial1]\nwait agent 80000\nagent pid1=off\n";
    let outcome = lab.run_image(script).args(["-v"]).sh("exit 7").go();
    outcome.code(7).complains("agent on the second serial port");
}
