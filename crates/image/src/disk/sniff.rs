//! What a file is that somebody takes for a disk image. `qemu-img` takes everything that it does not know for a raw
//! disk, which then fails to boot in silence.

use std::path::Path;

use super::error::{DiskError, quoted};
use crate::decompress::Packing;

/// As much of a file as [`refuse`] needs; the volume descriptor of a CD is at 32 KiB.
pub(super) const HEAD: u64 = 36 << 10;

/// Finds what surely is no disk image by its first bytes ([`HEAD`] or more). Not asked when the user says that the file is raw.
pub(super) fn refuse(path: &Path, head: &[u8]) -> Result<(), DiskError> {
    let something = |what| Err(DiskError::SomethingElse { path: path.to_owned(), what });
    let boot_sector = head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]);
    if head.get(0x202..0x206) == Some(b"HdrS") && boot_sector {
        return something("a Linux kernel (bzImage); give it with --kernel");
    }
    if head.get(0x8001..0x8006) == Some(b"CD001") {
        return Err(DiskError::Iso { path: path.to_owned(), hybrid: boot_sector });
    }
    refuse_packed(path, packing(head).or_else(|| archive(head)))?;
    match head {
        [0x7f, b'E', b'L', b'F', ..] => something("an ELF program; a kernel is given with --kernel"),
        [b'0', b'7', b'0', b'7', b'0', ..] => something("a cpio archive; an initramfs is given with --initrd"),
        [b'#', b'!', b'/' | b' ', ..] => something("a script"),
        _ if is_text(head) => {
            something("a text file; if it holds the plain contents of a disk, say so with --image-format raw")
        }
        _ if is_web_page(head) => something("a web page: a download that failed leaves such a file"),
        _ => Ok(()),
    }
}

/// Finds what is compressed, and no guest could read as a disk.
pub(super) fn refuse_compressed(path: &Path, head: &[u8]) -> Result<(), DiskError> {
    refuse_packed(path, packing(head))
}

fn refuse_packed(path: &Path, packed: Option<Packed>) -> Result<(), DiskError> {
    if let Some((packing, suffix, unpack)) = packed {
        let has_suffix = path.extension().is_some_and(|e| e.eq_ignore_ascii_case(suffix));
        let quoted = quoted(path);
        let command = if has_suffix || unpack.contains("zip") && !unpack.contains("gzip") || unpack.contains("tar") {
            format!("{unpack} {quoted}")
        } else {
            // The tools insist on their suffix unless they read standard input.
            format!("{} < {quoted} > disk.img", unpack.replace("-dk", "-dc"))
        };
        return Err(DiskError::Packed { path: path.to_owned(), packing, command });
    }
    Ok(())
}

/// Name, usual suffix, and the command that unpacks beside the original.
type Packed = (&'static str, &'static str, &'static str);

fn archive(head: &[u8]) -> Option<Packed> {
    (head.get(257..262) == Some(b"ustar")).then_some(("tar", "tar", "tar -xf"))
}

fn packing(head: &[u8]) -> Option<Packed> {
    match Packing::of(head) {
        Packing::Gzip => return Some(("gzip", "gz", "gzip -dk")),
        Packing::Xz => return Some(("xz", "xz", "xz -dk")),
        Packing::Zstd => return Some(("zstd", "zst", "zstd -dk")),
        Packing::Bzip2 => return Some(("bzip2", "bz2", "bzip2 -dk")),
        Packing::Lz4Legacy => return Some(("lz4", "lz4", "lz4 -dk")),
        // Three bytes of which two are zero are too little to be sure of .lzma.
        Packing::Lzma | Packing::Lzop | Packing::None => {}
    }
    match head {
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(("lz4", "lz4", "lz4 -dk")),
        [b'P', b'K', 3, 4, ..] => Some(("zip", "zip", "unzip")),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Some(("7-Zip", "7z", "7z x")),
        _ => None,
    }
}

/// A page of readable text, from its first byte on. What is shorter may be anybody's marks on a disk.
fn is_text(head: &[u8]) -> bool {
    const SHORTEST: usize = 64;
    let readable = |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x80..);
    head.len() >= SHORTEST
        && !is_web_page(head)
        && head.iter().all(readable)
        && str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true)
}

fn is_web_page(head: &[u8]) -> bool {
    let start = head.trim_ascii_start();
    [&b"<!doctype html"[..], b"<html", b"<?xml"]
        .iter()
        .any(|tag| start.get(..tag.len()).is_some_and(|s| s.eq_ignore_ascii_case(tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(name: &str, head: &[u8]) -> String {
        refuse(Path::new(name), head).map_or_else(|e| e.to_string(), |()| "fine".into())
    }

    #[test]
    fn an_iso_is_named_and_a_hybrid_one_has_a_way_out() {
        let mut iso = vec![0; 36 << 10];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        let text = say("/x/debian.iso", &iso);
        assert!(text.contains("ISO 9660") && text.contains("--kernel") && !text.contains("--image-format"), "{text}");
        iso[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        assert!(say("/x/debian.iso", &iso).contains("--image-format raw"));
    }

    #[test]
    fn a_disk_of_data_may_hold_what_no_guest_boots_from() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let text = b"root:x:0:0:root:/root:/bin/bash\n".repeat(40);
        for head in [&tar[..], &text, b"#!/bin/sh\n", b"070701", b"\x7fELF"] {
            assert!(refuse(Path::new("x"), head).is_err() && refuse_compressed(Path::new("x"), head).is_ok());
        }
        assert!(refuse_compressed(Path::new("disk.qcow2.xz"), b"\xfd7zXZ\0").is_err());
    }

    #[test]
    fn what_is_packed_comes_with_the_command_that_unpacks_it() {
        assert!(say("/x/a b.qcow2.xz", b"\xfd7zXZ\0").ends_with("xz -dk '/x/a b.qcow2.xz'"));
        assert!(say("/x/disk", b"\x1f\x8b\x08").ends_with("gzip -dc < /x/disk > disk.img"));
        assert!(say("/x/disk.zip", b"PK\x03\x04").ends_with("unzip /x/disk.zip"));
        let mut ova = vec![0; 512];
        ova[257..262].copy_from_slice(b"ustar");
        assert!(say("/x/appliance.ova", &ova).ends_with("tar -xf /x/appliance.ova"));
    }

    #[test]
    fn kernels_programs_and_web_pages_are_named() {
        assert!(say("k", &crate::kernel::fake_bzimage("6.1", b"x")).contains("--kernel"));
        assert!(say("k", b"\x7fELF\x02").contains("--kernel"));
        assert!(say("i", b"070701").contains("--initrd"));
        assert!(say("p", b"\n<!DOCTYPE HTML>").contains("web page"));
    }

    #[test]
    fn text_is_no_disk() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n".repeat(40);
        assert!(say("/etc/passwd", passwd.as_bytes()).contains("is not a disk image but a text file"));
        // Cut in the middle of a character.
        assert!(say("t", &"ä".repeat(60).as_bytes()[..101]).contains("a text file"));
        assert_eq!(say("d", &[0x80; 512]), "fine");
    }

    #[test]
    fn disks_are_let_through() {
        assert_eq!(say("d", b"QFI\xfb\0\0\0\x03"), "fine");
        assert_eq!(say("d", &[0; 512]), "fine");
        assert_eq!(say("d", b"hello"), "fine");
        assert_eq!(say("d", b""), "fine");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(head: Vec<u8>) {
            let _ = refuse(Path::new("x"), &head);
        }
    }
}
