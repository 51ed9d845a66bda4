//! A guest's TPM: its emulator is there before QEMU and gone with it, or it is said why there is none.

use std::fs;

use write_program::write_program;

use crate::harness::{Lab, WELL};

/// The lab's own `swtpm`: a shell script. Gives the `PATH` in which it is found.
fn emulator(lab: &Lab, text: &str) -> String {
    let dir = lab.path("programs");
    fs::create_dir_all(&dir).expect("directory");
    write_program(dir.join("swtpm"), format!("#!/bin/sh\n{text}\n"));
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// Answers what Belljar asks, and lives as long as somebody is at the other end.
const WELL_DONE: &str = "echo \"$@\" >\"$(dirname \"$0\")/words\"; dd bs=4 count=1 <&3 2>/dev/null >/dev/null; printf '\\0\\0\\0\\0\\0\\1\\177\\377' >&3; cat <&3 >/dev/null";

#[test]
fn an_emulator_is_there_as_long_as_its_machine() {
    let lab = Lab::new();
    let path = emulator(&lab, WELL_DONE);
    let outcome = lab.run(WELL).args(["--tpm", "-v"]).env("PATH", path).sh("exit 3").go();
    outcome.code(3);
    let words = fs::read_to_string(lab.path("programs/words")).expect("words");
    assert!(words.contains("socket --tpm2 --terminate --tpmstate dir=/proc/self/fd/4"), "{words}");
    assert!(words.contains("--ctrl type=unixio,clientfd=3"), "{words}");
    assert!(lab.seen().contains("tpm-tis,tpmdev=tpm0") && lab.seen().contains("tpm_tis.force=1"), "{}", lab.seen());
    // The state was a secret of that machine's.
    assert!(lab.runs().iter().all(|run| !run.join("tpm").exists()));
}

#[test]
fn one_that_does_not_work_is_told_of_and_nothing_is_started() {
    for (text, said) in [
        ("echo 'no TPM for \u{1b}[31myou' >&2; exit 1", "it has ended: no TPM for you"),
        ("exit 0", "it has ended"),
        ("printf '\\0\\0\\0\\11\\0\\0\\0\\0' >&3; cat <&3", "it answered [00, 00, 00, 09"),
    ] {
        let lab = Lab::new();
        let path = emulator(&lab, text);
        let outcome = lab.run(WELL).args(["--tpm"]).env("PATH", path).sh("true").go();
        outcome.code(125).complains("start the guest's TPM").complains(said);
        assert!(!lab.seen().contains("-nodefaults"), "{}", lab.seen());
    }
    let lab = Lab::new();
    let outcome = lab.run(WELL).args(["--tpm"]).env("PATH", "/no/such").sh("true").go();
    outcome.code(125).complains("install the package swtpm");
}

/// What a test says that asked a TPM which was not there any more is nobody's word.
#[test]
fn one_that_ends_during_a_test_is_never_a_pass() {
    let well = "dd bs=4 count=1 <&3 2>/dev/null >/dev/null; printf '\\0\\0\\0\\0\\0\\1\\177\\377' >&3; echo $$ >\"$(dirname \"$0\")/pid\"; cat <&3 >/dev/null";
    for command in ["sleep 100", "true"] {
        let lab = Lab::new();
        let path = emulator(&lab, well);
        let kill = format!("kill -9 -$(cat {}); sleep 0.3; {command}", lab.path("programs/pid").display());
        let outcome = lab.run(WELL).args(["--tpm"]).env("PATH", path).sh(&kill).go();
        outcome.code(125).complains("the guest's TPM (swtpm) ended").complains("is not to be believed");
    }
}

#[test]
fn processors_that_the_kernel_would_not_find_are_refused() {
    let lab = Lab::new();
    let path = emulator(&lab, WELL_DONE);
    let outcome = lab.run(WELL).args(["--tpm", "--cpus", "2"]).env("PATH", path).sh("true").go();
    outcome.code(125).complains("has one processor");
}

#[test]
fn the_command_to_paste_starts_one_too() {
    let lab = Lab::new();
    let path = emulator(&lab, WELL_DONE);
    let outcome = lab.run(WELL).args(["--tpm", "--dry-run"]).env("PATH", path).sh("true").go();
    let text = outcome.code(0).text();
    assert!(text.contains("mkdir -p -- tpm"), "{text}");
    assert!(text.contains("swtpm socket --tpm2") && text.contains("--daemon"), "{text}");
    assert!(text.contains("socket,id=tpm-line,path=tpm/control"), "{text}");
}

/// Without a start: by `belljar list`, too.
#[test]
fn what_a_guest_lacks_is_foreseen() {
    let lab = Lab::new();
    let (kernel, root) = (lab.path("vmlinux"), lab.path("rootfs"));
    let guest = |name: &str, more: &str| {
        format!("[guests.{name}]\nkernel = \"{}\"\nrootfs = \"{}\"\n{more}\n", kernel.display(), root.display())
    };
    let text = [
        guest("two", "tpm = true\ncpus = 2"),
        guest("one", "tpm = true"),
        "[[suites]]\nname = \"s\"\ntests = [\"t\"]\nguests = [\"one\", \"two\"]\n".to_owned(),
    ];
    fs::write(lab.path("workspace/belljar.toml"), text.concat()).expect("suite");
    write_program(lab.path("workspace/t"), "#!/bin/sh\n");
    let list = |path: &str| {
        let outcome = lab.belljar(["list"]).script(WELL).env("PATH", path).go();
        outcome.code(0).text()
    };
    let text = list(&emulator(&lab, WELL_DONE));
    assert!(text.contains("has one processor") && text.contains("2 units (1 cannot run here)"), "{text}");
    fs::remove_file(lab.path("programs/swtpm")).expect("program");
    let text = list(&lab.path("programs").display().to_string());
    assert!(text.contains("install the package swtpm") && text.contains("2 units (2 cannot run here)"), "{text}");
}
