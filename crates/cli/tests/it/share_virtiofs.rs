//! Shares over virtiofs: a server is there before QEMU and gone with it, or it is said why there is none.

use std::fs;

use write_program::write_program;

use crate::harness::{Lab, WELL, fake_qemu};

/// What the two programs of that name say of their options, as far as it is looked at.
const C: &str = "-o modcaps=CAPLIST -o sandbox=namespace|chroot -o source=PATH --fd=FDNUM";
const RUST: &str = "--shared-dir <X> --fd <FD> --sandbox <S> --modcaps <M> --inode-file-handles=<I> --log-level <L>";

/// The lab's own `virtiofsd`, which behaves like this. Gives the `PATH` in which it is found.
fn server(lab: &Lab, help: &str, how: &str) -> String {
    let dir = lab.path("programs");
    fs::create_dir_all(&dir).expect("directory");
    // Its words say whose it is: one of a share that is read can write to no file.
    let (fake, lab) = (fake_qemu().display(), dir.display());
    let text = format!(
        "#!/bin/sh\n[ \"$1\" != --help ] || {{ echo '{help}'; exit; }}\nexec {fake} virtiofsd {how} {lab} \"$@\"\n"
    );
    write_program(dir.join("virtiofsd"), text);
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// A command of the guest's, which has the host's processes: a line for each server of the lab, with its number and its words.
fn servers(lab: &Lab) -> String {
    let words = format!("{} virtiofsd well {}", fake_qemu().display(), lab.path("programs").display());
    format!(
        "for p in /proc/[0-9]*; do w=$(tr '\\0' ' ' <$p/cmdline 2>/dev/null) && case $w in '{words}'*) echo \"${{p#/proc/}} $w\";; esac; done"
    )
}

#[test]
fn each_make_serves_each_mode_and_nothing_of_it_stays() {
    for (help, sandbox, caches) in
        [(C, "sandbox=", ["cache=auto", "cache=always"]), (RUST, "--sandbox ", ["--cache auto", "--cache always"])]
    {
        for (mode, cache) in [("rw", caches[0]), ("ro", caches[1]), ("cow", caches[1])] {
            let lab = Lab::new();
            let path = server(&lab, help, "well");
            let run = lab.run(WELL).args(["-v", "--share", "virtiofs", "--workspace-mode", mode]).env("PATH", path);
            let outcome = run.sh(&format!("{}; exit 3", servers(&lab))).go();
            outcome.code(3).complains("share: virtiofs");
            let text = outcome.text();
            let servers: Vec<&str> = text.lines().filter(|line| line.contains("--fd=3")).collect();
            assert!(servers.len() == 2 && servers.iter().all(|words| words.contains(sandbox)), "{text}");
            // The output directory is always written to.
            assert!(servers[0].contains(caches[0]), "{text}");
            assert!(servers[1].contains(cache), "{text}");
            let seen = lab.seen();
            assert!(seen.contains("memory-backend-memfd") && seen.contains("vhost-user-fs-pci"), "{seen}");
            assert!(lab.runs().iter().all(|run| !run.join("virtiofsd.sock").exists()));
        }
    }
}

#[test]
fn without_a_workspace_there_is_one_server() {
    let lab = Lab::new();
    let path = server(&lab, RUST, "well");
    let run = lab.belljar(["run", "--accel", "tcg"]).script(WELL).args(lab.kernel_and_root());
    let outcome = run.args(["--share", "virtiofs", "-w", "none"]).env("PATH", path).sh(&servers(&lab)).go();
    assert_eq!(outcome.code(0).text().matches("--fd=3").count(), 1, "{}", outcome.text());
}

#[test]
fn one_that_does_not_work_is_told_of_and_nothing_is_started() {
    for (how, said) in [("refuses", "it has ended: no share for you"), ("strange", "it answered [07, 07")] {
        let lab = Lab::new();
        let path = server(&lab, C, how);
        let outcome = lab.run(WELL).args(["--share", "virtiofs"]).env("PATH", path).sh("true").go();
        outcome.code(125).complains("start the server of").complains(said);
        assert!(!lab.seen().contains("-nodefaults"), "{}", lab.seen());
    }
    for (help, said) in
        [("something else", "has no option --shared-dir"), ("-o source=PATH --fd=FDNUM", "has no option modcaps=")]
    {
        let lab = Lab::new();
        let path = server(&lab, help, "well");
        let outcome = lab.run(WELL).args(["--share", "virtiofs"]).env("PATH", path).sh("true").go();
        outcome.code(125).complains(said);
    }
}

/// What a test saw of a share that nobody served any more is nobody's word.
#[test]
fn one_that_ends_during_a_test_is_never_a_pass() {
    for command in ["sleep 100", "true"] {
        let lab = Lab::new();
        let path = server(&lab, RUST, "well");
        let kill = format!("kill -9 $({{ {}\n}} | head -n 1 | cut -d' ' -f1); sleep 0.3; {command}", servers(&lab));
        let outcome = lab.run(WELL).args(["--share", "virtiofs"]).env("PATH", path).sh(&kill).go();
        outcome.code(125).complains("(virtiofsd) ended").complains("is not to be believed");
    }
}

#[test]
fn a_guest_without_it_says_what_lacks() {
    let lab = Lab::new();
    let path = server(&lab, RUST, "well");
    let script = WELL.replace("\nagent\n", "\nagent setup=no9p\n");
    let outcome = lab.run(&script).args(["--share", "virtiofs"]).env("PATH", path).sh("true").go();
    outcome.code(125).complains("it has no virtiofs file system").complains("leave --share at auto");
}

#[test]
fn such_a_guest_is_no_template_and_says_so() {
    let lab = Lab::new();
    let path = server(&lab, RUST, "well");
    let outcome = lab
        .run(WELL)
        .args(["-v", "--share", "virtiofs"])
        .env("BELLJAR_TEMPLATES", "on")
        .env("PATH", path)
        .sh("true")
        .go();
    outcome.code(0).complains("template: none (the guest's memory is shared with virtiofsd");
}

#[test]
fn the_command_to_paste_starts_one_too() {
    let lab = Lab::new();
    let path = server(&lab, C, "well");
    let outcome = lab.run(WELL).args(["--share", "virtiofs", "--dry-run"]).env("PATH", path).sh("true").go();
    let text = outcome.code(0).text();
    assert!(text.contains("setsid -f") && text.contains("--socket-path=hostos.sock"), "{text}");
    assert!(text.contains("path=hostos.sock") && text.contains("memory-backend-memfd"), "{text}");
}

#[test]
fn kill_leaves_no_server() {
    let lab = Lab::new();
    let path = server(&lab, RUST, "well");
    let mut run = lab.run(WELL).args(["--share", "virtiofs"]).env("PATH", path).sh("mark up; exec sleep 60").spawn();
    run.await_mark("up");
    // Which also sees to it that nothing is left.
    run.kill();
}
