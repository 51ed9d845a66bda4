//! Shares on a disk: what comes and goes, and what a guest brings back that is not as it was packed.

use std::{fs, os::unix::fs::MetadataExt as _};

use crate::harness::{Belljar, Lab, SUITE, WELL, on_tmpfs};

/// A guest whose agent brings its shares back in this way.
fn agent(how: &str) -> String {
    WELL.replace("\nagent\n", &format!("\nagent disk={how}\n"))
}

fn run<'a>(lab: &'a Lab, how: &str, mode: &str) -> Belljar<'a> {
    lab.run(&agent(how)).args(["--share", "disk", "--workspace-mode", mode])
}

#[test]
fn each_mode_is_what_it_is_on_other_shares() {
    let lab = Lab::new();
    let file = lab.path("workspace/file");
    for mode in ["rw", "ro", "cow"] {
        fs::write(&file, "before\n").unwrap();
        fs::write(lab.path("workspace/gone"), "").unwrap();
        let text = "cat file; echo more >>file; rm gone; mkdir -p d; echo new >d/new; echo left >$BELLJAR_OUT/left; ln -s /etc/passwd $BELLJAR_OUT/link";
        let outcome = run(&lab, "ok", mode).args(["-v"]).sh(text).go();
        outcome.code(0).says("before\n").complains("share: disk (the agent mounted the workspace at");
        outcome.complains("is in the guest's memory");
        let out = lab.runs().pop().unwrap().join("out");
        assert_eq!(fs::read_to_string(out.join("left")).unwrap(), "left\n", "{mode}");
        assert!(fs::symlink_metadata(out.join("link")).unwrap().is_symlink());
        let there = fs::read_to_string(&file).unwrap();
        let changed =
            (there == "before\nmore\n", !lab.path("workspace/gone").exists(), lab.path("workspace/d").exists());
        assert_eq!(changed, if mode == "rw" { (true, true, true) } else { (false, false, false) }, "{mode}");
        let _ = fs::remove_dir_all(lab.path("workspace/d"));
        for run in lab.runs() {
            fs::remove_dir_all(run).unwrap();
        }
    }
    let alone = lab.belljar(["run", "--accel", "tcg", "--share", "disk", "-w", "none"]).script(&agent("ok"));
    alone.args(lab.kernel_and_root()).sh("echo left >$BELLJAR_OUT/left").go().code(0);
    assert_eq!(fs::read_to_string(lab.runs().pop().unwrap().join("out/left")).unwrap(), "left\n");
    for run in lab.runs() {
        fs::remove_dir_all(run).unwrap();
    }
    // What a failed command left is there too.
    run(&lab, "ok", "cow").sh("echo left >$BELLJAR_OUT/left; exit 7").go().code(7);
    assert_eq!(fs::read_to_string(lab.runs().pop().unwrap().join("out/left")).unwrap(), "left\n");
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_copied() {
    let lab = Lab::new();
    let big = lab.path("workspace/big");
    fs::write(&big, vec![1; 200 << 20]).unwrap();
    fs::write(lab.path("workspace/small"), "small").unwrap();
    let state = lab.path("state");
    fs::create_dir_all(&state).unwrap();
    for mode in ["rw", "ro", "cow"] {
        let outcome = run(&lab, "ok", mode).under(on_tmpfs(&state, "size=100M")).sh("true").spawn().end_dirty();
        assert_eq!(outcome.status.code(), Some(125), "{}", outcome.stderr);
        outcome.complains("a copy takes 200 MiB").complains("the largest files are big of the workspace (200 MiB)");
    }
    assert_eq!(lab.starts(), (0, 0), "nothing was started");
    // Holes take no room, and what is there twice under two names is copied once.
    fs::File::create(lab.path("workspace/holes")).unwrap().set_len(8 << 40).unwrap();
    fs::write(&big, vec![1; 1 << 20]).unwrap();
    fs::hard_link(lab.path("workspace/big"), lab.path("workspace/again")).unwrap();
    run(&lab, "ok", "cow").sh("[ $(stat -c %s again) = 1048576 ]").go().code(0);
}

#[test]
fn what_is_not_as_it_was_packed_is_never_a_pass() {
    for (how, said) in [
        ("damaged", "its checksum is another"),
        ("cut", "it ends in the middle"),
        ("much", "there is no room for that on the disk"),
        ("silent", "did not say what it packed"),
        ("forged", "leads out of its directory"),
    ] {
        let lab = Lab::new();
        let outcome = run(&lab, how, "cow").sh("echo left >$BELLJAR_OUT/left; true").go();
        outcome.code(125).complains(said);
        assert!(!lab.path("state/belljar/runs/forged").exists() && !lab.path("forged").exists());
    }
    let lab = Lab::new();
    run(&lab, "link", "cow").sh("true").go().code(0).complains("was changed or moved on the host meanwhile");
    assert!(!std::path::Path::new("/tmp/forged").exists());
    run(&lab, "noted", "cow").sh("true").go().code(0).complains("reaches the host without a socket");
    run(&lab, "set-uid", "cow").sh("true").go().code(0);
    let left = lab.runs().into_iter().map(|run| run.join("out/root")).find(|file| file.exists()).unwrap();
    assert_eq!(fs::metadata(left).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_guest_that_cannot_have_them_is_told_of() {
    let lab = Lab::new();
    run(&lab, "lacking", "cow")
        .sh("true")
        .go()
        .code(125)
        .complains("it has no driver for the disk that its shares are on");
    run(&lab, "no-room", "cow").sh("true").go().code(125).complains("has no room for it");
    for sync in ["fail", "die", "gone"] {
        let script = WELL.replace("\nagent\n", &format!("\nagent sync={sync}\n"));
        let outcome = lab.run(&script).args(["--share", "disk"]).sh("true").go();
        assert!(matches!(outcome.status.code(), Some(121 | 125)), "{sync}: {:?}", outcome.status);
    }
}

#[test]
fn a_change_on_both_sides_is_an_error_and_loses_nothing() {
    let lab = Lab::new();
    let file = lab.path("workspace/file");
    fs::write(&file, "before").unwrap();
    let text = format!("echo guest >file; echo host >{}", file.display());
    run(&lab, "ok", "rw").sh(&text).go().code(125).complains("both changed files of the workspace");
    assert_eq!(fs::read_to_string(&file).unwrap(), "host\n");
    let kept = lab.runs().pop().unwrap().join("workspace-conflicts/file");
    assert_eq!(fs::read_to_string(kept).unwrap(), "guest\n");
}

#[test]
fn more_than_may_be_left_is_not() {
    let lab = Lab::new();
    let text = "head -c 3000000 /dev/urandom >$BELLJAR_OUT/x";
    run(&lab, "ok", "cow").args(["--max-output", "1M"]).sh(text).go().code(125).complains("max-output");
}

#[test]
fn copies_of_a_guest_have_each_their_own() {
    let lab = Lab::new();
    for (n, template) in ["made", "found", "found"].into_iter().enumerate() {
        fs::write(lab.path("workspace/file"), format!("{n}\n")).unwrap();
        let outcome = run(&lab, "ok", "rw").with_templates().sh("cat file; echo more >>file").go();
        outcome.code(0).says(&format!("{n}\n")).quietly(&[template]);
        assert_eq!(fs::read_to_string(lab.path("workspace/file")).unwrap(), format!("{n}\nmore\n"));
    }
    assert_eq!(lab.starts().0, 1, "one boots");
}

#[test]
fn tests_that_share_a_guest_leave_each_its_own_files() {
    let lab = Lab::new();
    let guest = lab.guest("g", "share = \"disk\"\n");
    let suite = SUITE.replace("[[suites]]", "[[suites]]\nisolation = \"suite\"");
    let junit =
        "# belljar: format = \"junit\"\necho '<testsuite><testcase name=\"one\"/></testsuite>' >$BELLJAR_OUT/r.xml";
    let failed = "# belljar: format = \"junit\"\necho '<testsuite><testcase name=\"one\"><failure/></testcase></testsuite>' >$BELLJAR_OUT/r.xml";
    fs::write(lab.path("workspace/belljar.toml"), format!("{guest}\n{suite}")).unwrap();
    for (name, text) in
        [("a", junit), ("b", failed), ("c", "echo c >$BELLJAR_OUT/c"), ("d", "test ! -e $BELLJAR_OUT/c")]
    {
        lab.test_file(name, text);
    }
    let outcome = lab.test([""; 0]).go();
    outcome.code(100).verdicts_are(&[("a", "pass"), ("b", "fail 0"), ("c", "pass"), ("d", "pass")]);
}
