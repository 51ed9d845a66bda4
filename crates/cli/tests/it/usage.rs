//! The command line itself.

use crate::harness::{Lab, WELL};

#[test]
fn wrong_command_lines() {
    let lab = Lab::new();
    for words in [
        &["run", "--frobnicate", "--", "true"][..],
        &["run"],
        &["run", "--"],
        &["frobnicate"],
        &["run", "--cpus", "0", "--", "true"],
        &["run", "--timeout", "soon", "--", "true"],
        &["run", "--nic", "wifi", "--", "true"],
        &["run", "--image", "a", "--kernel", "b", "--", "true"],
        &["run", "--initrd", "a", "--", "true"],
        &["run", "-q", "-v", "--", "true"],
        &[],
    ] {
        let outcome = lab.belljar(words).go();
        assert_eq!(outcome.status.code(), Some(2), "{words:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{words:?}");
    }
}

#[test]
fn values_that_are_wrong_in_themselves() {
    let lab = Lab::new();
    for (words, said) in [
        (&["--memory", "1M"][..], "too little"),
        (&["--memory", "lots"], "is not a size"),
        (&["--disk", "colour=red"], "colour"),
        (&["--disk", "serial=x"], "size=SIZE or file=IMAGE"),
        (&["--login", ":x"], "--login"),
    ] {
        let outcome = lab.run(WELL).args(words).sh("true").go();
        assert!(matches!(outcome.status.code(), Some(2 | 125)), "{words:?}: {:?}", outcome.status);
        outcome.complains(said);
    }
    assert!(lab.seen().is_empty(), "QEMU was started: {}", lab.seen());
}

#[test]
fn help_version_completions_and_manual() {
    let lab = Lab::new();
    for words in
        [&["--help"][..], &["run", "--help"], &["shell", "-h"], &["--version"], &["man"], &["completions", "bash"]]
    {
        let outcome = lab.belljar(words).go();
        outcome.code(0);
        assert!(!outcome.stdout.is_empty() && outcome.stderr.is_empty(), "{words:?}: {}", outcome.stderr);
    }
    let man = lab.path("scratch/man");
    lab.belljar(["man".as_ref(), "--out".as_ref(), man.as_os_str()]).go().code(0);
    assert!(man.join("belljar-run.1").exists());
}

#[test]
fn a_dry_run_shows_and_does_nothing() {
    let lab = Lab::new();
    let image = lab.image("my disk.qcow2", "qcow2");
    let outcome =
        lab.run_bare(WELL).args(["--image".as_ref(), image.as_os_str(), "--dry-run".as_ref()]).sh("true").go();
    outcome.code(0);
    let text = outcome.text();
    assert!(text.contains("-nodefaults") && text.contains("my disk.qcow2"), "{text}");
    assert!(lab.runs().is_empty(), "{:?}", lab.runs());
    assert!(!lab.seen().contains("-blockdev"), "QEMU was started: {}", lab.seen());
    // A shell takes it apart as it was meant: the words are those that QEMU would get.
    let words = std::process::Command::new("sh")
        .args(["-c", &format!("for w in {}; do printf '%s\\n' \"$w\"; done", text.lines().last().unwrap_or_default())])
        .output()
        .expect("sh");
    assert!(words.status.success(), "{}", String::from_utf8_lossy(&words.stderr));
}

#[test]
fn the_doctor_looks_at_everything() {
    let lab = Lab::new();
    let outcome = lab.belljar(["doctor"]).script(&format!("[probe]\nexit 1\n{WELL}")).go();
    let text = outcome.text() + &outcome.stderr;
    for word in ["QEMU", "KVM", "9p"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert!(!text.contains('\x1b'), "{text:?}");
}
