//! Container images as the roots of machines.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use crate::harness::{Belljar, Lab};

/// The archive of a root in which these programs are.
fn archive(lab: &Lab, programs: &[&str]) -> PathBuf {
    let (dir, tar) = (lab.path("image"), lab.path("image.tar"));
    for program in programs {
        let path = dir.join(program);
        fs::create_dir_all(path.parent().expect("directory")).expect("directory");
        fs::write(&path, "").expect("program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    }
    let made = Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&tar).arg(".").status();
    assert!(made.expect("tar is installed").success());
    tar
}

/// `belljar run` on the script's machine with an image of this archive, or of whatever this path is.
fn run<'a>(lab: &'a Lab, script: &str, image: &std::path::Path) -> Belljar<'a> {
    let kernel = lab.path("vmlinux");
    let root = format!("container:{}", image.display());
    lab.run_bare(script).args(["-v", "--kernel"]).args([kernel]).args(["--rootfs", &root])
}

#[test]
fn the_agent_is_the_first_process_where_nothing_else_is_said() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    for options in [&[][..], &["--access", "init"]] {
        let outcome = run(&lab, "[agent]\nagent\n", &image).args(options).sh("echo in; exit 7").go();
        outcome.code(7).says("in\n").complains("access: Belljar's init");
        assert!(!outcome.stderr.contains("belljar: init:"), "{}", outcome.stderr);
    }
}

#[test]
fn an_init_of_the_images_own_runs_where_that_is_asked_for() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh", "sbin/init"]);
    let script = |boot: &str| format!("[agent]\nagent pid1=off {boot}\n");
    let own = |boot: &str| run(&lab, &script(boot), &image).args(["--access", "initrd"]);
    let outcome = own("").sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("init: /sbin/init (the image has it)");
    outcome.complains("access: beside the image's init").complains("agetty waits for somebody to log in");
    let command = String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned();
    assert!(command.contains("serial=belljar-root") && command.contains("systemd.firstboot=no"), "{command}");
    own("").args(["--append", "init=/bin/sh"]).sh("true").go().code(0).complains("init: /bin/sh (init= says so)");
    own("").args(["--append", "init=sh"]).sh("true").go().code(125).complains("init=sh is no path");
    own("boot=emergency").sh("true").go().code(121).complains("the guest's init gave up, and started sulogin");
    own("boot=never")
        .args(["--boot-timeout", "4s"])
        .sh("true")
        .go()
        .code(124)
        .complains("boot did not come to its end");
    let silent =
        run(&lab, "[serial]\ndrain\n", &image).args(["--access", "initrd", "--boot-timeout", "4s"]).sh("true").go();
    silent.code(124).complains("was to start the image's own init, and to go on beside it, did not announce itself");
}

#[test]
fn an_init_that_is_not_there_is_told() {
    let lab = Lab::new();
    let image = archive(&lab, &["bin/sh"]);
    let outcome = run(&lab, "", &image).args(["--access", "initrd"]).sh("true").go();
    outcome.code(125).complains("has no init of its own that could run (looked for /sbin/init").complains("init=PATH");
    run(&lab, "", &image).args(["--access", "ssh"]).sh("true").go().code(2).complains("--access ssh needs --image");
    let of_dir = lab.run("").args(["--access", "initrd"]).sh("true").go();
    of_dir.code(2).complains("--access initrd needs --image or --rootfs container:…");
}
