//! Guests that are started by UEFI firmware, which the laboratory describes as its packages do.

use std::{fs, path::Path, process::Command};

use crate::harness::{Belljar, Lab, Outcome};

/// An image's guest that works.
const WELL: &str =
    "[serial]\nsend \"BdsDxe: loading Boot0002\\r\\n\"\nlogin user=root\n[agent]\nwait agent 80000\nagent pid1=off\n";
/// Before those of packages.
const FIRST: &str = "00-belljar-test.json";

impl Lab {
    /// What the user describes of firmware.
    fn describe_firmware(&self, name: &str, text: &str) {
        let dir = self.path("config/qemu/firmware");
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join(name), text).expect("description");
    }

    /// Firmware that fits all PCs.
    fn firmware(&self) {
        for (file, size) in [("code.fd", 1 << 20), ("vars.fd", 540_672)] {
            fs::write(self.path(file), vec![0; size]).expect("file");
        }
        let (code, vars) = (self.path("code.fd"), self.path("vars.fd"));
        let file = |path: &Path| format!(r#"{{"filename": "{}", "format": "raw"}}"#, path.display());
        let (code, vars) = (file(&code), file(&vars));
        let text = format!(
            r#"{{"description": "of a test", "interface-types": ["uefi"], "features": [], "tags": [],
            "mapping": {{"device": "flash", "executable": {code}, "nvram-template": {vars}}},
            "targets": [{{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}}]}}"#
        );
        self.describe_firmware(FIRST, &text);
    }

    fn uefi(&self) -> Belljar<'_> {
        self.described(self.run_image(WELL).args(["--login", "root", "--firmware", "uefi"]))
    }

    /// A call that finds the user's descriptions.
    fn described<'a>(&self, call: Belljar<'a>) -> Belljar<'a> {
        call.env("XDG_CONFIG_HOME", self.path("config"))
    }

    /// The words of all QEMUs' command lines that have to do with flash memory.
    fn flash(&self) -> Vec<String> {
        let mut found = Vec::new();
        for line in self.seen().lines().filter(|l| l.contains("\"kind\":\"args\"") && l.contains("-chardev")) {
            let note: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let words = note["value"].as_array().expect("words").iter().filter_map(|w| w.as_str());
            found.extend(words.filter(|w| w.contains("flash")).map(str::to_owned));
        }
        found
    }
}

#[track_caller]
fn shows(outcome: &Outcome<'_>, text: &str) {
    assert!(outcome.text().contains(text), "{text:?} is not in {}", outcome.text());
}

#[test]
fn a_guest_has_firmware_and_variables_of_its_own() {
    let lab = Lab::new();
    lab.firmware();
    let before = fs::read(lab.path("vars.fd")).expect("file");
    let outcome = lab.uefi().args(["-v"]).sh("exit 7").go();
    outcome.code(7).complains("belljar: firmware: ").complains(FIRST);
    let flash = lab.flash();
    let [machine, code, variables] = &flash[..] else { panic!("{flash:#?}") };
    assert_eq!(machine, "pc,graphics=off,pflash0=flash0,pflash1=flash1");
    let of_code = format!("file.filename={}", lab.path("code.fd").display());
    assert!(code.contains("driver=raw,node-name=flash0,read-only=on") && code.contains(&of_code), "{code}");
    let below = format!("backing.file.filename={}", lab.path("vars.fd").display());
    let own = "driver=qcow2,node-name=flash1,read-only=off";
    assert!(variables.contains(own) && variables.contains("file.filename=/dev/fdset/"), "{variables}");
    assert!(variables.contains(&below), "{variables}");
    assert_eq!(fs::read(lab.path("vars.fd")).expect("file"), before, "the package's are never written to");
    // A person can start the same.
    let outcome = lab.uefi().args(["--dry-run"]).sh("true").go();
    outcome.code(0);
    shows(&outcome, "-blockdev driver=raw,node-name=flash0");
    shows(&outcome, " belljar-variables1.qcow2\n");
}

#[test]
fn copies_have_variables_of_their_own_and_other_firmware_makes_another_guest() {
    let lab = Lab::new();
    lab.firmware();
    let call = || lab.uefi().with_templates().sh("exit 7").go();
    call().code(7).quietly(&["made"]);
    call().code(7).quietly(&["found"]);
    lab.uefi().with_templates().args(["--disk", "size=1M"]).sh("exit 7").go().code(7).quietly(&["found", "plugged"]);
    assert_eq!((lab.starts().0, lab.templates().len()), (1, 2));
    let layers: Vec<_> = lab.flash().into_iter().filter(|w| w.contains("node-name=flash1")).collect();
    let over_a_template = layers.iter().filter(|w| w.contains("backing.file.filename=/dev/fdset/")).count();
    assert_eq!((layers.len(), over_a_template), (5, 3), "{layers:#?}");
    // The same guest under BIOS is another one, and so is each under other firmware.
    lab.run_image(WELL).with_templates().args(["--login", "root"]).sh("exit 7").go().code(7).quietly(&["made"]);
    for file in ["code.fd", "vars.fd"] {
        let mut bytes = fs::read(lab.path(file)).expect("file");
        bytes[9] ^= 1;
        fs::write(lab.path(file), bytes).expect("file");
        call().code(7).quietly(&["made"]);
    }
    assert_eq!(lab.starts().0, 4);
}

#[test]
fn none_is_said_before_anything_is_started() {
    let lab = Lab::new();
    // An empty description hides that of a package.
    for dir in ["/etc/qemu/firmware", "/usr/share/qemu/firmware"] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            lab.describe_firmware(&entry.file_name().into_string().expect("name"), "");
        }
    }
    let outcome = lab.uefi().sh("true").go();
    outcome.code(125).complains("there is no UEFI firmware for this guest (machine type pc on x86_64)");
    outcome.complains("install ovmf (Debian)");
    lab.firmware();
    let outcome = lab.uefi().args(["--machine", "xenfv"]).sh("true").go();
    outcome.code(125).complains("machine type xenfv").complains(&format!("{FIRST} is for pc-i440fx-* and pc-q35-*"));
    assert_eq!(lab.starts(), (0, 0));
    // A suite says so of each test, and nothing passes.
    lab.image("workspace/disk.qcow2", "qcow2");
    lab.suite(
        "[guests.u]\nimage = \"disk.qcow2\"\nfirmware = \"uefi\"\nmachine = \"xenfv\"\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"u\"]\n",
        &[("a", "exit 0")],
    );
    lab.described(lab.test([""; 0])).go().code(125);
    shows(&lab.described(lab.belljar(["list"])).go(), "there is no UEFI firmware");
}

#[test]
fn a_guest_of_belljar_toml_says_it_and_an_option_overrules_it() {
    let lab = Lab::new();
    lab.firmware();
    lab.image("workspace/disk.qcow2", "qcow2");
    let config = "[guests.u]\nimage = \"disk.qcow2\"\nfirmware = \"uefi\"\n";
    fs::write(lab.path("workspace/belljar.toml"), config).expect("configuration");
    let dry_run = |more: &[&str]| {
        let words = ["run", "--accel", "tcg", "--guest", "u", "--dry-run"];
        lab.described(lab.belljar(words).args(more)).sh("true").go()
    };
    shows(dry_run(&[]).code(0), "-machine pc,graphics=off,pflash0=flash0,pflash1=flash1 ");
    shows(dry_run(&["--machine", "q35"]).code(0), "-machine q35,graphics=off,pflash0=flash0,pflash1=flash1 ");
    shows(dry_run(&["--firmware", "bios"]).code(0), "-machine pc,graphics=off ");
    for source in [&["--kernel", "../vmlinux", "--rootfs", "../rootfs"][..], &[], &["--kernel", "a", "--initrd", "b"]] {
        let outcome = lab.run_bare("").args(["--firmware", "uefi"]).args(source).sh("true").go();
        outcome.code(2).complains("--firmware needs --image");
    }
    assert_eq!(lab.seen().matches("-chardev").count(), 0);
}

/// A disk with a partition of EFI's kind in its first sector, and perhaps code for a BIOS before the table.
fn efi_disk(lab: &Lab, name: &str, code: &[u8]) -> String {
    let mut bytes = vec![0; 4 << 20];
    bytes[..code.len()].copy_from_slice(code);
    // Of type EF, from sector 2048 on, 4096 sectors.
    bytes[446..462].copy_from_slice(&[0, 0, 0, 0, 0xef, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(lab.path(name), bytes).expect("disk");
    lab.path(name).display().to_string()
}

#[test]
fn what_an_image_wants_is_found_out_and_remembered() {
    let lab = Lab::new();
    lab.firmware();
    let call = |image: &str| {
        let words = ["--login", "root", "--image", image, "--firmware", "auto"];
        lab.described(lab.run_bare(WELL).args(words).in_playground()).sh("exit 7").go()
    };
    let (bare, bios) = (efi_disk(&lab, "uefi.raw", &[]), efi_disk(&lab, "bios.raw", b"\xeb\x3c"));
    let qcow2 = lab.path("uefi.qcow2").display().to_string();
    let converted = Command::new("qemu-img").args(["convert", "-O", "qcow2", &bare, &qcow2]).status();
    assert!(converted.expect("qemu-img").success());
    for (image, uefi, why) in [
        (&bare, true, "no code that a BIOS would run"),
        (&qcow2, true, "no code that a BIOS would run"),
        (&bios, false, "the image has code that a BIOS runs"),
        (&lab.image("empty.qcow2", "qcow2").display().to_string(), false, "nothing that UEFI would start"),
    ] {
        for _ in 0..2 {
            let before = lab.flash().len();
            let outcome = call(image);
            outcome.code(7);
            assert_eq!(lab.flash().len() - before, if uefi { 3 } else { 0 }, "{image}");
            let choice = outcome.events().into_iter().find(|e| e["what"] == "firmware").expect("it is told");
            assert!(choice["why"].as_str().is_some_and(|said| said.contains(why)), "{choice}");
        }
    }
    // It is looked at again when it has changed.
    efi_disk(&lab, "uefi.raw", b"\xeb\x3c");
    assert_eq!(call(&bare).chosen("firmware"), ["bios"]);
}
