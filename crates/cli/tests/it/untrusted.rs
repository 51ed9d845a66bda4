//! Guests that try to get at more of the host than they were given.

use std::{fs, os::unix::fs::PermissionsExt};

use write_program::write_program;

use crate::harness::{Lab, SUITE, fake_qemu};

/// A machine whose agent works.
const WORKS: &str = "[agent]\nagent\n";

#[test]
fn qemu_gets_no_password() {
    let lab = Lab::new();
    let (wrapper, seen) = (lab.path("qemu-system-x86_64"), lab.path("seen"));
    let text = format!("#!/bin/sh\nenv >>{}\nexec {} \"$@\"\n", seen.display(), fake_qemu().display());
    write_program(&wrapper, text);
    let outcome = lab
        .run(WORKS)
        .args(["--qemu".as_ref(), wrapper.as_os_str()])
        .env("BELLJAR_LOGIN", "root:hunter2")
        .env("CI_JOB_TOKEN", "hunter3")
        .command(["true"])
        .go();
    outcome.code(0);
    let machines = fs::read_to_string(seen).unwrap();
    // Of the machine, not of `--version` and its like, which are over before there is a guest.
    let machine = machines.split("PWD=").last().unwrap_or_default();
    assert!(machines.contains("PATH=") && !machine.contains("hunter"), "{machine}");
}

#[test]
fn the_record_of_a_run_is_out_of_reach_in_a_writable_workspace() {
    let lab = Lab::new();
    let asked = lab.path("workspace/reports/run");
    let run = |command: &str| {
        let args = ["--workspace-mode".as_ref(), "rw".as_ref(), "--run-dir".as_ref(), asked.as_os_str()];
        lab.run(WORKS).args(args).sh(command).go()
    };
    run("test -z \"$(ls -A reports/run)\" && echo kept >$BELLJAR_OUT/x").code(0);
    assert_eq!(fs::read_to_string(asked.join("out/x")).unwrap(), "kept\n");
    assert!(asked.join("events.jsonl").is_file());
    assert_eq!(fs::metadata(&asked).unwrap().permissions().mode() & 0o777, 0o700);

    fs::remove_dir_all(lab.path("workspace/reports")).unwrap();
    let elsewhere = lab.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let outcome = run(&format!("mv reports x; ln -s {} reports", elsewhere.display()));
    outcome.code(125);
    let said = &outcome.stderr;
    assert!(said.contains("symbolic link") && said.contains("state/belljar/runs"), "{said}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_workspace_that_holds_belljars_own_files_is_not_writable() {
    let lab = Lab::new();
    let top = lab.path("");
    let run = |mode: &str| {
        let words = ["run", "--accel", "tcg", "--workspace-mode", mode, "--workspace"];
        let (kernel, root) = (lab.path("vmlinux"), lab.path("rootfs"));
        let paths = [top.as_os_str(), "--kernel".as_ref(), kernel.as_os_str(), "--rootfs".as_ref(), root.as_os_str()];
        lab.belljar(words).script(WORKS).args(paths)
    };
    let outcome = run("rw").command(["true"]).go();
    outcome.code(125);
    let said = &outcome.stderr;
    assert!(said.contains("which the guest may write to") && said.contains("--workspace-mode"), "{said}");
    run("cow").command(["true"]).go().code(0);
}

#[test]
fn a_report_is_not_written_through_a_link_of_a_test() {
    let lab = Lab::new();
    let elsewhere = lab.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("r.xml"), "old").unwrap();
    let test = format!("# belljar: workspace-mode = \"rw\"\nrm -rf reports; ln -s {} reports", elsewhere.display());
    lab.suite(SUITE, &[("a", &test)]);
    let outcome = lab.test(["--junit", "reports/r.xml"]).go();
    outcome.code(125).verdicts_are(&[("a", "pass")]);
    assert!(outcome.stderr.contains("symbolic link"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(elsewhere.join("r.xml")).unwrap(), "old");
}

#[test]
fn too_much_output_is_no_pass() {
    let lab = Lab::new();
    let much = "dd if=/dev/zero of=$BELLJAR_OUT/z bs=1M count=3 2>/dev/null";
    let run = |limit: &str| lab.run(WORKS).args(["--max-output", limit]).sh(much).go();
    run("4M").code(0);
    let outcome = run("2M");
    outcome.code(125);
    assert!(outcome.stderr.contains("max-output"), "{}", outcome.stderr);
    lab.suite(&format!("{SUITE}max-output = \"2MiB\"\n"), &[("much", much), ("little", "exit 0")]);
    lab.test(["-j1"]).go().code(125).verdicts_are(&[("much", "error host"), ("little", "pass")]);
    // QEMU's end may be seen first by whoever waits for the guest's last words.
    let lab = Lab::new();
    for isolation in ["test", "suite"] {
        let config = format!("{SUITE}max-output = \"2MiB\"\nisolation = \"{isolation}\"\n");
        lab.suite(&config, &[("1-much", much), ("2-next", "exit 0")]);
        let outcome = lab.test(["-j1"]).script("[agent]\nagent sync=die\n").go();
        outcome.verdicts_are(&[("1-much", "error host"), ("2-next", "crash qemu")]);
        assert!(outcome.text().contains("max-output"), "{}", outcome.text());
    }
}
