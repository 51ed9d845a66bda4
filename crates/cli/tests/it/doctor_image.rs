//! `belljar doctor IMAGE`: what a person is told of a disk that is only read. The disks are those of `crates/disk-reader/tests/data`.

use std::{fs, io::Read, path::Path};

use crate::harness::{Lab, SUITE, WELL};

/// A disk of the reader's tests.
pub(crate) fn disk(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../disk-reader/tests/data/{name}.img.xz"));
    let packed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    lzma_rust2::XzReader::new(&packed[..], false).read_to_end(&mut bytes).expect("xz");
    bytes
}

/// Puts other bytes of the same length wherever some are.
pub(crate) fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{} is not there", String::from_utf8_lossy(old));
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
}

/// What is said of an image, from the line with its name on, and the exit code.
pub(crate) fn doctor(lab: &Lab, name: &str, bytes: &[u8]) -> (i32, String) {
    let path = lab.path(name);
    fs::write(&path, bytes).expect("file");
    let path = path.display().to_string();
    let outcome = lab.belljar(["doctor", &path]).script(WELL).go();
    let text = outcome.text().replace(&path, "DISK");
    let begin = text.find("DISK").and_then(|at| text[..at].rfind('\n')).map_or(0, |at| at + 1);
    (outcome.status.code().expect("it ended"), text[begin..].to_owned())
}

#[test]
fn a_system_is_described() {
    let lab = Lab::new();
    let (code, text) = doctor(&lab, "disk.raw", &disk("gpt"));
    insta::assert_snapshot!(text);
    assert_eq!(code, 0);
}

#[test]
fn a_disk_that_only_a_kernel_of_its_own_starts_is_described() {
    let lab = Lab::new();
    let (code, text) = doctor(&lab, "disk.raw", &disk("btrfs"));
    insta::assert_snapshot!(text);
    assert_eq!(code, 0);
}

#[test]
fn a_disk_for_uefi_wants_its_firmware() {
    let lab = Lab::new();
    let (_, text) = doctor(&lab, "disk.raw", &disk("outside"));
    let without: String =
        text.lines().filter(|line| !line.contains(" firmware ")).map(|line| format!("{line}\n")).collect();
    let end = without.find("\nbelljar run -- CMD").expect("an end");
    insta::assert_snapshot!(&without[..end]);
    // Whether this host has one is its own affair, but what is said has to follow.
    let missing = text.contains("there is no UEFI firmware for this guest");
    let found = text.lines().any(|line| line.starts_with("ok    firmware  /"));
    assert!(missing != found, "{text}");
    assert_eq!(text.contains("not with this image until what is marked bad is mended"), missing, "{text}");
}

#[test]
fn a_disk_for_uefi_wants_its_firmware_whatever_is_on_it() {
    let lab = Lab::new();
    let mut bytes = disk("outside");
    // The magic numbers of ext4's superblocks: no system is found on what is none.
    let found: Vec<usize> =
        (0..bytes.len() - 1024).step_by(512).filter(|at| bytes[at + 0x38..][..2] == [0x53, 0xef]).collect();
    assert!(!found.is_empty());
    for at in found {
        bytes[at + 0x38] = 0;
    }
    let (_, text) = doctor(&lab, "disk.raw", &bytes);
    assert!(text.contains("system    none was found"), "{text}");
    assert!(text.contains("firmware  "), "{text}");
}

#[test]
fn what_an_image_says_is_shown_and_not_obeyed() {
    let lab = Lab::new();
    let mut bytes = disk("mbr");
    replace(&mut bytes, b"menuentry 'Second'", b"menuentry '\x1b[2J\x07\xc2'");
    replace(&mut bytes, b"Fake Linux 9 (nine)", "Fake \u{202e}\r\x1b]0;x\x07 (9)".as_bytes());
    let (_, text) = doctor(&lab, "disk.raw", &bytes);
    assert!(text.contains(" (9), on partition 5"), "{text}");
    assert!(!text.contains(['\x1b', '\x07', '\r', '\u{202e}']), "{text:?}");
}

/// Fails unless the doctor and `run` refuse it for this reason, and none of them starts anything.
fn refused(lab: &Lab, name: &str, bytes: &[u8], why: &str) {
    let (code, text) = doctor(lab, name, bytes);
    assert!(code == 125 && text.contains(why), "{text}");
    let image = lab.path(name).display().to_string();
    for _ in 0..2 {
        let outcome = lab.run_bare(WELL).args(["--image", &image]).command(["true"]).go();
        outcome.code(125).complains("no guest boots from ").complains("If one does, say how to get into it: --access");
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
    }
    let outcome = lab.run_bare(WELL).args(["--image", &image, "--login", "root:x"]).command(["true"]).go();
    outcome.code(125).complains("no guest boots from ");
    assert_eq!(lab.starts(), (0, 0), "nothing was started");
}

#[test]
fn what_no_guest_boots_from_is_told_without_a_boot() {
    let lab = Lab::new();
    let mut other = disk("gpt");
    replace(
        &mut other,
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x08\0",
    );
    refused(
        &lab,
        "other.raw",
        &other,
        "its system is for ELF machine 8, and Belljar makes machines for x86-64, aarch64",
    );
    let whole = disk("gpt");
    refused(&lab, "cut.raw", &whole[..12_000_256], "it is cut short: partition 15 has 8388608 bytes");
    // One partition, encrypted.
    let mut locked = disk("mbr")[..4 << 20].to_vec();
    locked[446 + 16..510].fill(0);
    locked[1 << 20..][..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    refused(&lab, "locked.raw", &locked, "partition 1 is encrypted (LUKS), and no system is beside it");
    refused(&lab, "blank.raw", &[0; 1 << 20], "there is nothing on it");
    // A partition with something in it, and nothing that a machine would start.
    let mut data = locked;
    data[..446].fill(0);
    data[1 << 20..][..1024].fill(b'x');
    refused(&lab, "data.raw", &data, "there is nothing to boot on it");
}

#[test]
fn who_says_how_to_get_in_is_believed() {
    let lab = Lab::new();
    fs::write(lab.path("blank.raw"), [0; 1 << 20]).expect("file");
    let image = lab.path("blank.raw").display().to_string();
    let words = ["--image", &image, "--access", "console", "-v"];
    let outcome = lab
        .run_bare("[serial]\nshell\n[agent]\nwait agent 85000\nagent pid1=off\n")
        .args(words)
        .in_playground()
        .sh("exit 7")
        .go();
    outcome.code(7).complains("image: started all the same, for a way in was named (there is nothing on it");
}

#[test]
fn a_suite_is_told_before_anything_is_started() {
    let lab = Lab::new();
    let image = lab.path("blank.raw").display().to_string();
    fs::write(&image, [0; 1 << 20]).expect("file");
    let config = format!("[guests.h]\nimage = \"{image}\"\n{}", SUITE.replace("\"g\"", "\"h\""));
    lab.suite(&config, &[("t/a", "true")]);
    let outcome = lab.test([""; 0]).go();
    assert!(outcome.code(125).text().contains("no guest boots from "), "{}", outcome.text());
    assert_eq!(lab.starts(), (0, 0), "nothing was started");
}
