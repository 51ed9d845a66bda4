//! The names in somebody else's initramfs: archives one after the other, packed or not, as the kernel unpacks them
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read};

use crate::decompress::Packing;
use crate::modules::module_name;

/// Unpacked bytes that are looked at. A distribution's has a quarter of a gigabyte at most, with all its firmware.
const MAX_UNPACKED: u64 = 512 << 20;
/// Files that are looked at.
const MAX_FILES: usize = 200_000;
/// Archives, one after the other.
const MAX_ARCHIVES: usize = 64;
/// The longest name (`PATH_MAX`).
const MAX_NAME: u64 = 4096;
/// Bytes of a header.
const HEADER: usize = 110;
/// The name of what ends an archive.
const END: &[u8] = b"TRAILER!!!";

/// The names of the kernel modules in what a kernel is given for its initramfs, which may be several files: the limits hold for all of them together.
#[derive(Debug)]
pub struct ModuleNames {
    modules: HashSet<String>,
    files: usize,
    archives: usize,
    /// Bytes that may still be unpacked.
    left: u64,
}

impl Default for ModuleNames {
    fn default() -> Self {
        Self { modules: HashSet::new(), files: 0, archives: 0, left: MAX_UNPACKED }
    }
}

impl ModuleNames {
    /// Those that were found.
    #[must_use]
    pub fn into_modules(self) -> HashSet<String> {
        self.modules
    }

    /// Reads one more file.
    ///
    /// # Errors
    /// When it is no initramfs, is cut short or too large, or is packed in a way that is not known here.
    pub fn add(&mut self, initramfs: &[u8]) -> io::Result<()> {
        let names = self;
        let mut rest = initramfs;
        let mut any = false;
        while names.archives < MAX_ARCHIVES {
            names.archives += 1;
            // Between archives there are zeros.
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            rest = &rest[zeros..];
            if rest.is_empty() && any {
                return Ok(());
            }
            if is_archive(rest) {
                names.archive(&mut rest)?;
                any = true;
                continue;
            }
            let packing = Packing::of(rest);
            if packing == Packing::None {
                if any {
                    // A boot loader's padding or a signature: the kernel ends here, too.
                    return Ok(());
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no archive that a kernel unpacks"));
            }
            let packed = packing.reader(&mut rest)?.ok_or_else(|| {
                io::Error::new(io::ErrorKind::Unsupported, format!("it is packed with {}", packing.name()))
            })?;
            let mut unpacked = BufReader::with_capacity(64 << 10, packed);
            // What is packed together may be several archives.
            while names.skip_zeros(&mut unpacked)? {
                names.archive(&mut unpacked)?;
            }
            any = true;
        }
        Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has too many archives"))
    }

    /// Whether something comes after zeros.
    fn skip_zeros(&mut self, source: &mut impl BufRead) -> io::Result<bool> {
        loop {
            let buffer = source.fill_buf()?;
            if buffer.is_empty() {
                return Ok(false);
            }
            let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
            let all = zeros == buffer.len();
            source.consume(zeros);
            self.take(zeros as u64)?;
            if !all {
                return Ok(true);
            }
        }
    }
}

fn is_archive(bytes: &[u8]) -> bool {
    matches!(bytes, [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..])
}

impl ModuleNames {
    /// Reads one archive to its end.
    fn archive(&mut self, source: &mut impl Read) -> io::Result<()> {
        loop {
            let mut header = [0; HEADER];
            self.fill(source, &mut header)?;
            if !is_archive(&header) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a file's header in it is none"));
            }
            let (size, name_size) = (field(&header, 6)?, field(&header, 11)?);
            if name_size == 0 || name_size > MAX_NAME {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a file's name in it is too long"));
            }
            let mut name = vec![0; usize::try_from(name_size).unwrap_or_default()];
            self.fill(source, &mut name)?;
            name.pop();
            self.skip(source, padding(HEADER as u64 + name_size))?;
            if name == END {
                // What pads the archive is skipped by whoever looks for the next one.
                return Ok(());
            }
            self.files += 1;
            if self.files > MAX_FILES {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has too many files"));
            }
            self.modules.extend(module_name(&String::from_utf8_lossy(&name)));
            self.skip(source, size + padding(size))?;
        }
    }

    fn fill(&mut self, source: &mut impl Read, into: &mut [u8]) -> io::Result<()> {
        self.take(into.len() as u64)?;
        source.read_exact(into)
    }

    fn skip(&mut self, source: &mut impl Read, bytes: u64) -> io::Result<()> {
        self.take(bytes)?;
        let skipped = io::copy(&mut source.take(bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn take(&mut self, bytes: u64) -> io::Result<()> {
        let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "unpacked it is too large");
        self.left = self.left.checked_sub(bytes).ok_or_else(too_large)?;
        Ok(())
    }
}

/// A field of a header: eight hexadecimal digits.
fn field(header: &[u8; HEADER], number: usize) -> io::Result<u64> {
    let at = 6 + 8 * number;
    let digits = header.get(at..at + 8).and_then(|digits| std::str::from_utf8(digits).ok());
    let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    value.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a number in it is none"))
}

/// How many bytes there are from `at` to the next multiple of four.
fn padding(at: u64) -> u64 {
    at.next_multiple_of(4) - at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::{gzip, pack_with};
    use belljar_proto::initramfs::{Node, Writer};

    fn modules_in(initramfs: &[u8]) -> io::Result<HashSet<String>> {
        let mut names = ModuleNames::default();
        names.add(initramfs).map(|()| names.into_modules())
    }

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        for name in names {
            writer.add(name, &Node::File { mode: 0o644, content: b"content" }).unwrap();
        }
        writer.finish().unwrap();
        out
    }

    fn names(initramfs: &[u8]) -> Vec<String> {
        let mut names: Vec<_> = modules_in(initramfs).unwrap().into_iter().collect();
        names.sort();
        names
    }

    #[test]
    fn modules_are_found_in_archives_one_after_the_other() {
        let early = archive(&["kernel/x86/microcode/GenuineIntel.bin"]);
        let main =
            archive(&["init", "usr/lib/modules/6.1/kernel/drivers/ata/ahci.ko.xz", "lib/modules/6.1/virtio-blk.ko"]);
        let more = archive(&["lib/modules/6.1/nvme.ko.zst"]);
        let both = [&main[..], &[0; 1024], &more].concat();
        for packed in [
            main.clone(),
            gzip(&main),
            pack_with(&["xz", "--check=crc32"], &main),
            pack_with(&["zstd", "-q", "-c"], &main),
            pack_with(&["lz4", "-q", "-l", "-c"], &main),
        ] {
            assert_eq!(names(&packed), ["ahci", "virtio_blk"]);
            assert_eq!(names(&[&early[..], &packed].concat()), ["ahci", "virtio_blk"]);
        }
        assert_eq!(names(&gzip(&both)), ["ahci", "nvme", "virtio_blk"]);
        assert_eq!(names(&[gzip(&main), vec![0; 6], more.clone()].concat()), ["ahci", "nvme", "virtio_blk"]);
        assert_eq!(names(&[&main[..], b"#padding of somebody's"].concat()), ["ahci", "virtio_blk"]);
    }

    #[test]
    fn zeros_count_as_what_they_are() {
        let zeros = vec![0; 1 << 20];
        let bomb = pack_with(&["zstd", "-q", "-c"], &[&archive(&["a"])[..], &zeros].concat());
        let mut names = ModuleNames { left: 1 << 20, ..ModuleNames::default() };
        assert_eq!(names.add(&bomb).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // The limits are one budget for all files.
        let mut names = ModuleNames { left: 5000, ..ModuleNames::default() };
        let one = archive(&["lib/modules/6.1/ahci.ko"]);
        let added = (0..100).take_while(|_| names.add(&one).is_ok()).count();
        assert!((1..100).contains(&added), "{added}");
        assert!(names.into_modules().contains("ahci"));
        let mut names = ModuleNames::default();
        assert_eq!((0..200).take_while(|_| names.add(&one).is_ok()).count(), MAX_ARCHIVES / 2);
    }

    #[test]
    fn what_is_not_read_to_its_end_is_an_error() {
        let main = archive(&["lib/modules/6.1/ahci.ko", "b"]);
        let packed = gzip(&main);
        for bad in [&b""[..], b"#!/bin/sh", &main[..main.len() / 2], &packed[..packed.len() / 2], &[0; 64]] {
            assert!(modules_in(bad).is_err(), "{bad:?}");
        }
        let said = modules_in(b"BZh91AY").unwrap_err().to_string();
        assert_eq!(said, "it is packed with bzip2");
        // Four gigabytes in one file, which are not there.
        let mut large = main.clone();
        large[6 + 48..6 + 56].copy_from_slice(b"FFFFFFFF");
        assert_eq!(modules_in(&large).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    proptest::proptest! {
        #[test]
        fn rubbish_ends(mut bytes: Vec<u8>, at in 0usize..400, packed: bool) {
            let mut base = archive(&["lib/modules/6.1/ahci.ko", "b"]);
            let end = (at + bytes.len()).min(base.len());
            bytes.truncate(end.saturating_sub(at));
            base.splice(at..end, bytes);
            let _ = modules_in(&if packed { gzip(&base) } else { base });
        }
    }
}
