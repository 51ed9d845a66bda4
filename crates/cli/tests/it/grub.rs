//! Guests that a GRUB of Belljar's own starts. This GRUB is pretended, too: a script that puts nothing together, and modules without code.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
};

use write_program::write_program;

use crate::harness::{Belljar, Lab, Outcome};

/// What the disk must have of GRUB.
const MODULES: &[&str] = &[
    "part_msdos",
    "fat",
    "normal",
    "serial",
    "terminal",
    "echo",
    "test",
    "regexp",
    "true",
    "sleep",
    "configfile",
    "loadenv",
    "linux",
    "boot",
];
/// A GRUB that says what it boots, and an agent that comes.
const BOOTS: &str = "send \"belljar: GRUB reads (hd1,msdos1)/boot/grub/grub.cfg\\r\\nbelljar: GRUB boots: Debian \\e[1mGNU/Linux\\r\\n\"\nsend \"booting\\r\\n\"\ndrain\n";
const AGENT: &str = "sleep 300\nagent pid1=off\n";
/// A GRUB that finds nothing.
const GIVES_UP: &str = "send \"belljar: GRUB gives up: no grub.cfg and no boot loader entries on (hd0)\\r\\n(hd0,msdos1) (hd1)\\r\\n\"\ndrain\n";
/// Who asks for a password that nobody knows.
const CLOSED: &str = "login user=nobody password=known\n";

/// Long enough for a second boot, and not for a login that nobody knows.
const LIMIT: [&str; 2] = ["--boot-timeout", "12s"];

/// A GRUB for a BIOS, and a path on which it comes first.
fn grub(lab: &Lab) -> OsString {
    let (program, modules) = (lab.path("grub/bin/grub-mkimage"), lab.path("grub/lib/grub/i386-pc"));
    if !program.exists() {
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::create_dir_all(&modules).unwrap();
        write_program(&program, "#!/bin/sh\necho \"core $*\"\n");
        for module in MODULES {
            fs::write(
                modules.join(format!("{module}.mod")),
                "linux\0initrd\0save_env\0terminal_input\0terminal_output\0prefix\0superusers\0timeout\0pager\0",
            )
            .unwrap();
        }
        let mut boot = vec![0x90; 512];
        boot[0x5c..0x64].copy_from_slice(&1_u64.to_le_bytes());
        for (name, bytes) in [
            ("boot.img", boot),
            ("diskboot.img", vec![1]),
            ("kernel.img", b"prefix\0".to_vec()),
            ("lzma_decompress.img", vec![3]),
            ("biosdisk.mod", vec![4]),
        ] {
            fs::write(modules.join(name), bytes).unwrap();
        }
        fs::write(modules.join("moddep.lst"), "").unwrap();
        fs::write(modules.join("fs.lst"), "fat\n").unwrap();
    }
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    path
}

/// A path with all programs but GRUB's.
fn no_grub(lab: &Lab) -> OsString {
    let dir = lab.path("bin");
    if !dir.exists() {
        fs::create_dir(&dir).unwrap();
        for from in std::env::split_paths(&std::env::var_os("PATH").unwrap()) {
            for entry in fs::read_dir(from).into_iter().flatten().flatten() {
                if !entry.file_name().as_bytes().starts_with(b"grub") {
                    drop(symlink(entry.path(), dir.join(entry.file_name())));
                }
            }
        }
    }
    dir.into_os_string()
}

/// A guest of a disk of which nothing can be read, and that has room for a system.
fn unread<'a>(lab: &'a Lab, script: &str, path: OsString) -> Belljar<'a> {
    let image = lab.path("unread.raw");
    if !image.exists() {
        lab.image("unread.raw", "raw");
        fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    }
    let words = ["-v", "--image", &image.display().to_string()].map(str::to_owned);
    lab.run_bare(script).in_playground().args(words).env("PATH", path)
}

fn command_of(outcome: &Outcome<'_>) -> String {
    String::from_utf8_lossy(&outcome.kept("qemu.cmd")).into_owned()
}

/// What the machine does by itself, and what it does where it is started from the disk with GRUB.
fn script_of(own: &str, by_grub: &str, agent: &str) -> String {
    format!("[serial]\n{own}[grub-serial]\n{by_grub}[grub-agent]\n{agent}")
}

#[test]
fn grub_is_on_the_last_disk_and_started_first() {
    let lab = Lab::new();
    let script = script_of(CLOSED, BOOTS, AGENT);
    let asked =
        || lab.run_image(&script).args(["-v", "--access", "grub", "--disk", "size=1MiB"]).env("PATH", grub(&lab));
    let outcome = asked().sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("access: grub").complains("agetty waits for somebody to log in");
    outcome.complains("made now with").complains("the disk with Belljar's GRUB is to come after it");
    outcome.complains(
        "entry: Debian GNU/Linux (Belljar's GRUB said on the console that it boots this one, of (hd1,msdos1)/boot/grub/grub.cfg)",
    );
    let command = command_of(&outcome);
    let disks: Vec<_> = command.split("-device ").filter(|device| device.contains("drive=disk")).collect();
    let [boot, further, medium] = &disks[..] else { panic!("{command}") };
    assert!(boot.contains("bootindex=1") && !further.contains("bootindex"), "{command}");
    assert!(medium.contains("serial=belljar-grub") && medium.contains("bootindex=0"), "{command}");
    assert!(medium.contains("addr=0x11") && further.contains("addr=0x10"), "{command}");
    assert!(!command.contains("io.systemd") && !command.contains("-kernel"), "{command}");

    // It is made once, of what GRUB's files are.
    asked().sh("exit 7").go().code(7).complains("made by an earlier run");
    fs::write(lab.path("grub/lib/grub/i386-pc/fat.mod"), "another").unwrap();
    asked().sh("exit 7").go().code(7).complains("made now with");

    let outcome = lab.run_image("").args(["--dry-run", "--access", "grub"]).env("PATH", grub(&lab)).sh("true").go();
    outcome.code(0);
    assert!(outcome.text().contains("serial=belljar-grub"), "{}", outcome.text());
}

#[test]
fn what_is_missing_of_grub_is_named() {
    let lab = Lab::new();
    let asked = |path: OsString, more: &[&str]| {
        let way = ["--access", "grub"];
        let outcome = lab.run_image("").args(way).args(more).env("PATH", path).sh("true").go();
        outcome.code(125);
        outcome.stderr.clone()
    };
    let none = asked(no_grub(&lab), &[]);
    assert!(none.contains("grub-mkimage, which is not in PATH; install grub-pc-bin and grub-common"), "{none}");
    let path = grub(&lab);
    fs::rename(lab.path("grub/lib/grub/i386-pc"), lab.path("grub/lib/grub/other")).unwrap();
    let none = asked(path.clone(), &[]);
    assert!(none.contains("no GRUB for a guest that a BIOS starts") && none.contains("install grub-pc-bin"), "{none}");
    fs::rename(lab.path("grub/lib/grub/other"), lab.path("grub/lib/grub/i386-pc")).unwrap();
    fs::write(lab.path("grub/lib/grub/i386-pc/linux.mod"), "another command").unwrap();
    let other = asked(path.clone(), &[]);
    assert!(other.contains("linux.mod is not as GRUB's are known"), "{other}");
    fs::write(lab.path("grub/lib/grub/i386-pc/linux.mod"), "linux\0").unwrap();
    fs::write(lab.path("grub/bin/grub-mkimage"), "#!/bin/sh\necho 'no room' >&2\nexit 1\n").unwrap();
    let failed = asked(path, &[]);
    assert!(failed.contains("could not put GRUB together: no room"), "{failed}");
}

#[test]
fn a_grub_that_finds_nothing_ends_the_boot_at_once() {
    let lab = Lab::new();
    let script = script_of(CLOSED, GIVES_UP, "drain\n");
    let outcome = lab.run_image(&script).args(["-v", "--access", "grub"]).env("PATH", grub(&lab)).sh("true").go();
    outcome.code(121).complains("Belljar's GRUB did not start the image (belljar: GRUB gives up: no grub.cfg");
    outcome.complains("Other ways in: --access");
}

#[test]
fn what_belljar_cannot_read_grub_starts_where_nobody_gets_in() {
    let lab = Lab::new();
    let closed = |by_grub: &str| unread(&lab, &script_of(CLOSED, by_grub, AGENT), grub(&lab)).args(LIMIT);
    let outcome = closed(BOOTS).sh("echo in; exit 7").go();
    outcome.code(7).says("in\n").complains("access: grub");
    outcome
        .complains("nobody got in by the image's own boot, so that it is booted once more, by a GRUB of Belljar's own");
    outcome.complains("GRUB may be able to read the whole disk (unknown)");
    assert!(command_of(&outcome).contains("belljar-grub"));
    let path = lab.path("unread.raw").display().to_string();
    let doctor = lab.belljar(["doctor", &path]).script("").go();
    let said = "a GRUB of Belljar's would start it in a second boot, with the agent behind its initramfs: GRUB may be able to read the whole disk (unknown)";
    assert!(doctor.text().contains(said), "{}", doctor.text());
    // That is known the next time.
    let outcome = closed(BOOTS).sh("exit 7").go();
    outcome.code(7).complains("start: by a GRUB of Belljar's own");
    assert!(!outcome.stderr.contains("once more"), "{}", outcome.stderr);
}

#[test]
fn where_grub_finds_nothing_either_both_are_told() {
    let lab = Lab::new();
    let script = script_of(CLOSED, GIVES_UP, "drain\n");
    for _ in 0..2 {
        let outcome = unread(&lab, &script, grub(&lab)).args(LIMIT).sh("true").go();
        outcome.code(121).complains("once more, by a GRUB").complains("Belljar's GRUB did not start the image");
        outcome.complains("before that, by the image's own boot: ");
    }
}

#[test]
fn where_grub_is_not_there_it_is_said_what_to_install() {
    let lab = Lab::new();
    let outcome = unread(&lab, &format!("[serial]\n{CLOSED}"), no_grub(&lab)).args(LIMIT).sh("true").go();
    outcome.code(125).complains("ways in that were tried: credentials, login, shell");
    outcome.complains("could be started by a GRUB of Belljar's own").complains("install grub-pc-bin");
    // Nothing is to be read on a disk that is too small for a system.
    let small = lab.run_image(&format!("[serial]\n{CLOSED}")).env("PATH", no_grub(&lab));
    let outcome = small.args(LIMIT).sh("true").go();
    outcome.code(125);
    assert!(!outcome.stderr.contains("GRUB"), "{}", outcome.stderr);
}
