//! The command line itself.

use crate::harness::{Lab, SUITE, WELL};

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
        (&["--disk", "serial=x"], "size=SIZE, file=IMAGE or directory=DIRECTORY"),
        (&["--login", ":x"], "--login"),
        (&["--mount-at", "/"], "no place for the workspace"),
        (&["--mount-at", "/proc"], "such as /mnt/hostos"),
    ] {
        let outcome = lab.run(WELL).args(words).sh("true").go();
        assert!(matches!(outcome.status.code(), Some(2 | 125)), "{words:?}: {:?}", outcome.status);
        outcome.complains(said);
    }
    assert!(lab.seen().is_empty(), "QEMU was started: {}", lab.seen());
}

#[test]
fn workspaces_that_are_none() {
    let lab = Lab::new();
    let of_kernel = "is this host's kernel and its devices, and no files for a guest";
    for (dir, said) in [
        ("/proc", of_kernel),
        ("/sys/class", of_kernel),
        ("/dev", of_kernel),
        ("no/such", "--workspace no/such: there is no such directory; make it"),
    ] {
        let outcome = lab.belljar(["run", "--accel", "tcg", "--workspace", dir]).script(WELL).sh("true").go();
        assert!(matches!(outcome.status.code(), Some(2 | 125)), "{dir}: {:?}", outcome.status);
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

/// What `--dry-run` prints is started as it stands, by a shell in an empty directory; what QEMU sees is checked by the pretended one.
fn paste(lab: &Lab, printed: &str) {
    let elsewhere = tempfile::tempdir().expect("directory");
    let script = lab.path("pasted");
    std::fs::write(&script, "[start]\nmark pasted\nexit 33\n").expect("script");
    let done = std::process::Command::new("sh")
        .args(["-e", "-c", printed])
        .current_dir(elsewhere.path())
        .env("FAKE_QEMU_SCRIPT", script)
        .env("FAKE_QEMU_CHECK", "args")
        .env("FAKE_QEMU_LOG", lab.path("fake.log"))
        .env("FAKE_QEMU_SCRATCH", lab.path("scratch"))
        .stdin(std::process::Stdio::null())
        .output()
        .expect("sh");
    assert_eq!(done.status.code(), Some(33), "{printed}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(lab.seen().contains("pasted"), "{}", lab.seen());
    std::fs::remove_file(lab.path("fake.log")).expect("log");
}

#[test]
fn a_dry_run_can_be_pasted() {
    let lab = Lab::new();
    let image = lab.image("my disk.qcow2", "qcow2");
    lab.image("workspace/spare.raw", "raw");
    let out = lab.path("not there/yet");
    let named = lab.path("logs");
    std::fs::create_dir(&named).expect("directory");
    let cases: [(&str, Vec<&std::ffi::OsStr>); 5] = [
        ("root directory", vec![]),
        ("out", vec!["--out".as_ref(), out.as_os_str(), "--run-dir".as_ref(), named.as_os_str()]),
        ("disks", vec!["--disk".as_ref(), "size=1M,serial=a".as_ref(), "--disk".as_ref(), "file=spare.raw".as_ref()]),
        ("no workspace", vec!["--accel".as_ref(), "tcg".as_ref()]),
        ("image", vec!["--image".as_ref(), image.as_os_str()]),
    ];
    for (what, words) in cases {
        let call = match what {
            "image" => lab.run_bare(WELL),
            "no workspace" => lab.run_on_any(WELL),
            _ => lab.run(WELL),
        };
        let outcome = call.args(&words).args(["--dry-run"]).sh("true").go();
        outcome.code(0);
        assert!(!out.exists(), "{what}: a directory was made");
        assert!(named.read_dir().expect("still there").next().is_none(), "{what}");
        paste(&lab, &outcome.text());
        if what == "out" {
            assert!(out.is_dir(), "what is pasted makes it");
            std::fs::remove_dir_all(out.parent().expect("parent")).expect("directory");
        }
    }
    assert!(lab.runs().is_empty(), "{:?}", lab.runs());
    assert!(lab.path("tmp").read_dir().expect("directory").next().is_none(), "something is left");
}

#[test]
fn a_dry_run_can_be_pasted_where_nothing_can_be_kept() {
    let lab = Lab::new();
    // A cache that is no directory: what the machine boots is made for this command only.
    std::fs::remove_dir_all(lab.path("cache")).expect("cache");
    std::fs::write(lab.path("cache"), "").expect("file");
    // What is kept is kept outside of the laboratory, where nothing may be left.
    let outside = tempfile::tempdir().expect("directory");
    let outcome = lab.run(WELL).env("TMPDIR", outside.path()).args(["--dry-run"]).sh("true").go();
    outcome.code(0).complains("remove it when you are done");
    paste(&lab, &outcome.text());
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

#[test]
fn options_change_a_guest_of_the_file_or_are_refused() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    let file = lab.path("workspace/belljar.toml");
    let run = |words: &[&str]| {
        let given = ["run", "--accel", "tcg", "-g", "g", "-c", file.to_str().expect("UTF-8")];
        lab.belljar(given).args(words).script(WELL).command(["true"]).go()
    };
    run(&["--access", "init", "--memory", "128M", "--cpus", "2"]).code(0);
    let seen = lab.seen();
    assert!(seen.contains("\"128M\"") && seen.contains("\"-smp\",\"2\""), "{seen}");
    run(&["--access", "console"]).code(125).complains("--guest g: --access console needs --image or --initrd");
    // What it boots from is what the file says.
    for words in [["--image-format", "raw"], ["--rootfs", "/"], ["--boot-bus", "ide"], ["--image", "x"]] {
        assert_eq!(run(&words).status.code(), Some(2), "{words:?}");
    }
}
