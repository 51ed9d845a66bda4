//! Guests with another processor than this host's: which machine they get, and what is said where something for them is missing.

use std::fs;

use crate::harness::{Lab, Outcome};

/// The first bytes of a kernel for each processor, by its name; what QEMU's machine is then like; and the console.
fn kernels() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let at = |size: usize, places: &[(usize, &[u8])]| {
        let mut bytes = vec![0; size];
        for (from, text) in places {
            bytes[*from..][..text.len()].copy_from_slice(text);
        }
        bytes
    };
    let elf = |machine: u8| {
        at(
            4096,
            &[(0, b"\x7fELF\x02\x01\x01"), (16, &[2, 0, machine, 0, 1]), (52, &[64]), (512, b"Linux version 6.1.0 (x")],
        )
    };
    vec![
        ("aarch64", at(64, &[(56, b"ARM\x64")]), "-machine virt,gic-version=3 ", "console=ttyAMA0"),
        ("riscv64", at(64, &[(56, b"RSC\x05")]), "-machine virt ", "console=ttyS0"),
        ("s390x", at(0x1_1000, &[(0x1_0008, b"S390EP")]), "-machine s390-ccw-virtio ", "console=ttysclp0"),
        ("ppc64le", elf(21), "-machine pseries,", "console=hvc0"),
        ("arm", at(64, &[(0x24, &[0x18, 0x28, 0x6f, 0x01])]), "-machine virt,highmem=off ", "console=ttyAMA0"),
        ("x86_64", elf(62), "-machine pc ", "console=ttyS0"),
    ]
}

/// A guest of a kernel for this processor and an initramfs of nothing.
fn guest(lab: &Lab, processor: &str) -> [String; 4] {
    let (_, kernel, ..) = kernels().into_iter().find(|(name, ..)| *name == processor).expect("a kernel");
    fs::write(lab.path("kernel"), kernel).expect("kernel");
    let mut cpio = b"07070100000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000b00000000TRAILER!!!\0".to_vec();
    cpio.resize(512, 0);
    fs::write(lab.path("initrd"), cpio).expect("initrd");
    let path = |name: &str| lab.path(name).display().to_string();
    ["--kernel".into(), path("kernel"), "--initrd".into(), path("initrd")]
}

/// Fails unless standard output has all of these texts in it.
#[track_caller]
fn tells(outcome: &Outcome<'_>, texts: &[&str]) {
    for text in texts {
        assert!(outcome.text().contains(text), "{text:?} is not in: {}{}", outcome.text(), outcome.stderr);
    }
}

#[test]
fn the_kernel_decides_the_machine() {
    let lab = Lab::new();
    for (processor, _, machine, console) in kernels() {
        let words = guest(&lab, processor);
        let outcome = lab.run_bare("").args(words).args(["--dry-run"]).sh("true").go();
        let transport = if processor == "s390x" { "virtio-rng-ccw" } else { "virtio-rng-pci" };
        outcome.code(0);
        tells(&outcome, &[machine, console, transport]);
    }
}

#[test]
fn a_guest_without_an_agent_is_driven_by_its_shell() {
    let lab = Lab::new();
    // Never built here for this one.
    let words = guest(&lab, "arm");
    let script = "[serial]\nsend \"Linux version 6.1.0 (x) #1 SMP\\r\\n\"\nshell\n";
    let outcome = lab
        .belljar(["run", "-w", "none"])
        .script(script)
        .args(words)
        .sh("echo out; echo err >&2; exit 7")
        .in_playground()
        .go();
    outcome.code(7).says("out\n").complains("err");
    assert_eq!(outcome.chosen("session"), ["sh on the console"]);
    assert_eq!(outcome.chosen("processor"), ["arm"]);
    assert_eq!(outcome.chosen("accelerator"), ["tcg"]);
    assert!(outcome.warnings().is_empty(), "nothing is amiss on this host: {:?}", outcome.warnings());
}

#[test]
fn no_qemu_for_it() {
    let lab = Lab::new();
    for (processor, package) in [
        ("aarch64", "qemu-system-arm (Debian)"),
        ("riscv64", "qemu-system-riscv"),
        ("s390x", "qemu-system-s390x"),
        ("ppc64le", "qemu-system-ppc"),
    ] {
        let words = guest(&lab, processor);
        let call = lab
            .run_bare("")
            .args(words)
            .under(["/usr/bin/env", "-u", "BELLJAR_QEMU"])
            .env("PATH", "/no/such")
            .sh("true");
        call.go()
            .code(125)
            .complains(&format!("there is no QEMU for {}", if processor == "ppc64le" { "ppc64" } else { processor }))
            .complains(package);
    }
}

#[test]
fn a_kernel_for_another_processor_than_the_root() {
    let lab = Lab::new();
    let words = guest(&lab, "aarch64");
    let mut program = vec![0; 64];
    program[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    fs::write(lab.path("rootfs/bin/sh"), &program).expect("program");
    let root = ["--rootfs".to_owned(), lab.path("rootfs").display().to_string()];
    let outcome = lab.run_bare("").args(&words[..2]).args(&root).sh("true").go();
    outcome.code(125).complains("is for aarch64, and the root that it is to start").complains("linux-image-amd64");
    // The other way round: it runs on what its programs are for, and there is no agent for this one, ever.
    program[18] = 40;
    fs::write(lab.path("rootfs/bin/sh"), &program).expect("program");
    let outcome = lab.run_bare("").args(&root).sh("true").go();
    outcome.code(125).complains("no agent for 32-bit Arm");
}

#[test]
fn a_root_that_has_a_kernel_for_no_agent_is_told_how_to_have_one() {
    let lab = Lab::new();
    let mut program = vec![0; 64];
    program[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0");
    fs::write(lab.path("rootfs/bin/sh"), &program).expect("program");
    let root = ["--rootfs".to_owned(), lab.path("rootfs").display().to_string()];
    let outcome = lab.run_bare("").args(&root).sh("true").go();
    // Where this belljar has one for it, a kernel is what is missing.
    outcome.code(125);
    assert!(
        outcome.stderr.contains("rustup target add riscv64gc-unknown-linux-musl")
            || outcome.stderr.contains("linux-image-riscv64"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_doctor_says_which_there_are() {
    let lab = Lab::new();
    let outcome = lab.belljar(["doctor"]).env("PATH", "/no/such").go();
    tells(&outcome, &["no QEMU for aarch64 (qemu-system-arm (Debian)"]);
    let dir = lab.path("bin");
    fs::create_dir(&dir).expect("directory");
    std::os::unix::fs::symlink("/bin/true", dir.join("qemu-system-s390x")).expect("link");
    let outcome = lab.belljar(["doctor"]).env("PATH", &dir).go();
    tells(&outcome, &["s390x: ", "by a shell on the console"]);
}
