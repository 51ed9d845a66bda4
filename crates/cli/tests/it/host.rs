//! What goes wrong on this side: QEMU that does not start, files that are missing, disks that are full.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
};

use crate::harness::{Lab, WELL, mounted, on_tmpfs, snapshot, until};

#[test]
fn qemu_says_why_it_does_not_start() {
    let lab = Lab::new();
    let script = "[start]\nstderr \"qemu-system-x86_64: -blockdev disk0: Failed to get \\\"write\\\" lock\"\nstderr \"Is another process using the image [disk.qcow2]?\"\nexit 1\n";
    let outcome = lab.run_image(script).sh("true").go();
    assert!(matches!(outcome.status.code(), Some(121 | 125)), "{:?}: {}", outcome.status, outcome.stderr);
    outcome.complains("Failed to get \"write\" lock");
    snapshot!(outcome);
}

#[test]
fn a_wrong_argument_for_qemu() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--qemu-arg", "-frobnicate"]).sh("true").go();
    outcome.complains("-frobnicate: invalid option");
    assert!(matches!(outcome.status.code(), Some(121 | 125)), "{:?}", outcome.status);
}

#[test]
fn a_qemu_that_is_none() {
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--qemu", "/bin/true"]).sh("true").go();
    outcome.code(125).complains("/bin/true");
    let outcome = lab.run(WELL).args(["--qemu", "/no/such/qemu"]).sh("true").go();
    outcome.code(125).complains("/no/such/qemu");
    let outcome = lab.run("[options]\nversion 6.2.0\n").sh("true").go();
    outcome.code(125).complains("6.2");
}

#[test]
fn images_that_cannot_be_used() {
    let lab = Lab::new();
    let outcome = lab.run_bare(WELL).args(["--image", "no-such.qcow2"]).sh("true").go();
    outcome.code(125).complains("no-such.qcow2");
    snapshot!(outcome);
    let outcome = lab.run_bare(WELL).args(["--image".as_ref(), lab.path("rootfs").as_os_str()]).sh("true").go();
    outcome.code(125);
    let outcome = lab.run_image(WELL).args(["--image-format", "floppy"]).sh("true").go();
    outcome.code(125).complains("floppy");
    fs::write(lab.path("workspace/vmlinux"), "no kernel").expect("file");
    let outcome = lab.run_bare(WELL).args(["--kernel", "vmlinux"]).sh("true").go();
    outcome.code(125).complains("vmlinux");
    let outcome = lab
        .run_bare(WELL)
        .args(["--kernel".as_ref(), lab.path("vmlinux").as_os_str(), "--rootfs".as_ref(), "/no/such".as_ref()])
        .sh("true")
        .go();
    outcome.code(125).complains("/no/such");
}

#[test]
fn directories_that_cannot_be_used() {
    let lab = Lab::new();
    let outcome = lab.belljar(["run", "--accel", "tcg", "--workspace", "/no/such/workspace"]).sh("true").go();
    outcome.code(125).complains("/no/such/workspace");
    fs::write(lab.path("scratch/full"), "").expect("file");
    let outcome = lab.run(WELL).args(["--run-dir".as_ref(), lab.path("scratch").as_os_str()]).sh("true").go();
    outcome.code(125).complains("not empty");
    let outcome = lab.run(WELL).env("BELLJAR_STATE_DIR", "/proc/no").sh("true").go();
    outcome.code(125).complains("BELLJAR_STATE_DIR");
    // Without a cache it takes longer, but goes.
    lab.run(WELL).env("BELLJAR_CACHE_DIR", "/proc/no").sh("true").go().code(0);
    // Whoever a guest's command runs as can leave files, but nobody else of this host.
    let mode = |path: std::path::PathBuf| fs::metadata(path).expect("directory").permissions().mode() & 0o777;
    let run = lab.runs().pop().expect("a run");
    assert_eq!((mode(run.join("out")), mode(run)), (0o777, 0o700));
    // What no cache could take goes with the guest.
    let left = fs::read_dir(lab.runs().pop().expect("a run")).expect("its directory").flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|n| n.to_string_lossy().contains("belljar")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_qemu_img() {
    let lab = Lab::new();
    let image = lab.image("disk.raw", "raw");
    let outcome =
        lab.run_bare(WELL).args(["--image".as_ref(), image.as_os_str()]).env("PATH", "/no/such").sh("true").go();
    outcome.code(125).complains("qemu-img");
}

#[test]
fn no_space_for_the_logs() {
    let lab = Lab::new();
    let state = lab.path("state");
    // The console says more than fits; the command would pass.
    let script = "[serial]\ndrain\nwait up 80000\nflood 4MiB\nmark flooded\n[agent]\nagent\n";
    let outcome = lab
        .run(script)
        .under(on_tmpfs(&state, "size=256k"))
        .sh(&format!("mark up; {}", until("flooded")))
        .spawn()
        .end_dirty();
    assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
    outcome.complains("No space left on device");
}

/// A user's limit to the size of files is no death.
#[test]
fn a_file_that_may_not_grow() {
    let lab = Lab::new();
    let limited = |blocks: &str| {
        let text = format!("ulimit -f {blocks}; exec \"$@\"");
        ["sh", "-c", &text, "sh"].iter().map(Into::into).collect::<Vec<std::ffi::OsString>>()
    };
    let script = "[serial]\ndrain\nwait up 80000\nflood 4MiB\nmark flooded\n[agent]\nagent\n";
    let text = format!("mark up; {}", until("flooded"));
    let outcome = lab.run(script).args(["--no-template"]).under(limited("600")).sh(&text).spawn().end_dirty();
    assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
    outcome.complains("File too large");
    let outcome = lab.run(WELL).args(["--no-template"]).under(limited("0")).sh("true").spawn().end_dirty();
    assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
    outcome.complains("File too large");
}

/// The host keeps some files, as it keeps some room.
#[test]
fn no_file_is_left_for_the_host() {
    let lab = Lab::new();
    let out = lab.path("out");
    fs::create_dir_all(&out).expect("directory");
    let words = on_tmpfs(&out, "size=128M,nr_inodes=1000");
    let fill = "i=0; while [ $i -lt 990 ]; do : >$BELLJAR_OUT/$i; i=$((i + 1)); done; sleep 100";
    let run = lab.run(WELL).args(["--out".as_ref(), out.as_os_str()]).under(words);
    let outcome = run.sh(fill).spawn().end_dirty();
    assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
    outcome.complains("files more, of which 50 are kept for the host");
}

#[test]
fn no_space_for_anything() {
    let lab = Lab::new();
    let state = lab.path("state");
    let outcome = lab.run(WELL).under(on_tmpfs(&state, "size=4k")).sh("true").spawn().end_dirty();
    assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
    outcome.complains("No space left on device");
    // A cache that cannot be filled is done without.
    let cache = lab.path("cache");
    let outcome = lab.run(WELL).under(on_tmpfs(&cache, "size=8k")).sh("true").spawn().end_dirty();
    assert!(matches!(outcome.status.code(), Some(0 | 125)), "{}", outcome.stderr);
}

/// The file system of the run's directory is full when the run ends: a pass is one only with its end in the log.
#[test]
fn a_pass_that_its_log_cannot_record() {
    let lab = Lab::new();
    let run = |text: &str, pad: usize| {
        let state = lab.path("state");
        fs::create_dir_all(&state).expect("directory");
        // What is on the small disk is gone with its namespace: the log is brought out of it.
        let keep = format!(
            "mount -t tmpfs -o size=256k tmpfs \"$0\" && \"$@\"; code=$?; cp \"$0\"/belljar/runs/*/events.jsonl '{}'; exit $code",
            lab.path("events").display()
        );
        let words = mounted(state, &keep);
        let command = format!("{text}; : {}", "x".repeat(pad));
        let outcome = lab.run(WELL).args(["--max-output", "1GiB"]).under(words).sh(&command).spawn().end_dirty();
        (outcome.status.code(), outcome.stderr, fs::read_to_string(lab.path("events")).expect("log"))
    };
    let fill = "dd if=/dev/zero of=$BELLJAR_OUT/z bs=4k 2>/dev/null";
    let (code, said, log) = run("true", fill.len() - "true".len());
    assert_eq!(code, Some(0), "{said}");
    let from = log.find("run-ended").expect("an end");
    // The log's first page ends in the middle of the line that is to be the last, or before it, or after it.
    let mut codes = Vec::new();
    for middle in [from - 100, from + 20, log.len() + 100] {
        let (code, said, log) = run(fill, 4096 - middle);
        let whole = log.ends_with('\n') && log.contains("run-ended");
        assert_eq!(code, Some(if whole { 0 } else { 125 }), "{said}\n{log}");
        assert_eq!(said.contains("the event log could not be written"), !whole, "{said}");
        codes.push(code);
    }
    assert_eq!(codes, [Some(125), Some(125), Some(0)], "the file system was not filled where it should have been");
}

#[test]
fn standard_output_that_cannot_be_written() {
    let lab = Lab::new();
    let full = File::options().write(true).open("/dev/full").expect("full");
    let outcome = lab.run(WELL).stdout(full).sh("echo lost").go();
    assert!(!matches!(outcome.status.code(), Some(0)), "what was lost is no pass: {}", outcome.stderr);
    outcome.complains("No space left on device");
}

#[test]
fn a_reader_that_goes_away() {
    let lab = Lab::new();
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let outcome = lab.run(WELL).stdout(writer).sh("while :; do echo more; done").go();
    outcome.code(141);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    // Help into a closed pipe is no error.
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    let outcome = lab.belljar(["--help"]).stdout(writer).go();
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
}

#[test]
fn qemu_gets_nothing_that_it_should_not_have() {
    let lab = Lab::new();
    // The pretended QEMU checks descriptors, process group, seccomp and capabilities itself, and would have complained.
    lab.run_image("[serial]\nshell\n[agent]\nwait agent 80000\nagent pid1=off\n")
        .args(["--disk", "size=8M,serial=data0", "--disk", "size=8M,bus=scsi", "--nic", "user", "--cpus", "2"])
        .sh("true")
        .go()
        .code(0);
    assert!(!lab.seen().contains("caller-wrong"), "{}", lab.seen());
}

#[test]
fn kvm_is_probed_and_not_guessed() {
    let lab = Lab::new();
    let run = |probe: &str| lab.run_on_any(&format!("[probe]\n{probe}\n{WELL}")).args(["-v"]).sh("true").go();
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        // Without the node nothing is asked, and that is said.
        run("hang").code(0).complains("/dev/kvm");
        return;
    }
    // It hangs: found out, and remembered.
    run("hang").code(0).complains("accelerator: tcg");
    assert_eq!(lab.seen().matches("isa-debug-exit").count(), 1, "{}", lab.seen());
    run("hang").code(0).complains("accelerator: tcg");
    assert_eq!(lab.seen().matches("isa-debug-exit").count(), 1, "asked again: {}", lab.seen());
    // It works.
    fs::remove_dir_all(lab.path("cache")).expect("cache");
    run("exit 85").code(0).complains("accelerator: kvm");
    fs::remove_dir_all(lab.path("cache")).expect("cache");
    let busy = "stderr \"ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\"\nexit 1";
    run(busy).code(0).complains("Device or resource busy");
}

#[test]
fn kvm_that_was_asked_for_and_cannot_be_had() {
    let lab = Lab::new();
    let outcome = lab.run_on_any(&format!("[probe]\nexit 1\n{WELL}")).args(["--accel", "kvm"]).sh("true").go();
    outcome.code(125).complains("--accel kvm");
}

#[test]
fn a_cache_that_was_tampered_with_is_made_anew() {
    let lab = Lab::new();
    lab.run(WELL).sh("true").go().code(0);
    let mut pending = vec![lab.path("cache")];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).expect("cache").flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "json") {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600)).expect("mode");
                fs::write(entry.path(), "{ rubbish").expect("rubbish");
            }
        }
    }
    lab.run(WELL).sh("exit 7").go().code(7);
}
