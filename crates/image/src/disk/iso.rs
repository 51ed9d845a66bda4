//! What is on a CD's image (ISO 9660, ECMA-119), as far as it tells a live system's from an installer's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::bounded::le;

/// Bytes of a logical sector, which volume descriptors count in.
const SECTOR: u64 = 2048;
/// Where the primary volume descriptor is.
const DESCRIPTOR: usize = 16 * 2048;
/// Bytes of the topmost directory that are looked at.
const MAX_DIRECTORY: u32 = 64 << 10;

/// Directories and files in which live systems have their root: Debian's live-boot, Ubuntu's casper, dracut's live module, Arch Linux, NixOS.
const LIVE: &[&str] = &["live", "casper", "liveos", "arch", "nix-store.squashfs"];

/// Bytes that the CD has, as its own descriptor says.
pub(super) fn size(head: &[u8]) -> Option<u64> {
    // 8.4.8 and 8.4.12: the number of logical blocks, and their size; both are there in either order of bytes.
    let (blocks, block) = (le::u32(head, DESCRIPTOR + 80)?, le::u16(head, DESCRIPTOR + 128)?);
    Some(u64::from(blocks) * u64::from(block))
}

/// Whether the topmost directory has what live systems start from.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn is_live(file: &File, head: &[u8]) -> io::Result<bool> {
    // 8.4.18: the record of the topmost directory; 9.1.3 and 9.1.4: where it is, and its length.
    let record = DESCRIPTOR + 156;
    let (Some(extent), Some(length)) = (le::u32(head, record + 2), le::u32(head, record + 10)) else {
        return Ok(false);
    };
    let mut directory = vec![0; length.min(MAX_DIRECTORY) as usize];
    let mut filled = 0;
    while filled < directory.len() {
        let at = u64::from(extent) * SECTOR + filled as u64;
        match file.read_at(&mut directory[filled..], at)? {
            0 => break,
            read => filled += read,
        }
    }
    // No record goes beyond its sector, whose rest is zeros (6.8.1.1).
    let mut names = directory[..filled].chunks(SECTOR as usize).flat_map(|sector| {
        let mut rest = sector;
        std::iter::from_fn(move || {
            let length = usize::from(*rest.first()?);
            let record = rest.get(..length).filter(|record| record.len() > 33)?;
            rest = &rest[length..];
            // 9.1.11: its name, with a version behind a semicolon.
            let name = record.get(33..33 + usize::from(record[32])).unwrap_or_default();
            Some(name.split(|&byte| byte == b';').next().unwrap_or_default().to_ascii_lowercase())
        })
    });
    Ok(names.any(|name| LIVE.iter().any(|live| live.as_bytes() == name)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// The image of a CD with this in its topmost directory, which also boots as a disk.
    pub(in super::super) fn iso(names: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 20 * 2048];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[DESCRIPTOR..DESCRIPTOR + 6].copy_from_slice(b"\x01CD001");
        bytes[DESCRIPTOR + 80..DESCRIPTOR + 84].copy_from_slice(&20_u32.to_le_bytes());
        bytes[DESCRIPTOR + 128..DESCRIPTOR + 130].copy_from_slice(&2048_u16.to_le_bytes());
        bytes[DESCRIPTOR + 158..DESCRIPTOR + 162].copy_from_slice(&18_u32.to_le_bytes());
        bytes[DESCRIPTOR + 166..DESCRIPTOR + 170].copy_from_slice(&4096_u32.to_le_bytes());
        // Half of them in its second sector.
        for (sector, names) in [(18, &names[..names.len() / 2]), (19, &names[names.len() / 2..])] {
            let mut at = sector * 2048;
            for name in names {
                let length = 33 + name.len();
                bytes[at] = u8::try_from(length).unwrap();
                bytes[at + 32] = u8::try_from(name.len()).unwrap();
                bytes[at + 33..at + length].copy_from_slice(name.as_bytes());
                at += length;
            }
        }
        bytes
    }

    fn live(bytes: &[u8]) -> bool {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        is_live(&file, bytes).unwrap()
    }

    #[test]
    fn a_live_system_is_told_from_an_installer() {
        assert!(live(&iso(&["\0", "\u{1}", "BOOT", "EFI", "LIVE"])));
        assert!(live(&iso(&["\0", "CASPER", "EFI"])));
        assert!(live(&iso(&["nix-store.squashfs;1"])));
        assert!(!live(&iso(&["\0", "\u{1}", "INSTALL.AMD", "DISTS", "POOL", "LIVELY"])));
        assert!(!live(&iso(&[])));
        assert_eq!(size(&iso(&[])), Some(20 * 2048));
        assert_eq!(size(b""), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(descriptor in proptest::collection::vec(proptest::num::u8::ANY, 0..300), directory: Vec<u8>) {
            let mut bytes = iso(&["LIVE"]);
            bytes[DESCRIPTOR..DESCRIPTOR + descriptor.len()].copy_from_slice(&descriptor);
            live(&bytes);
            let mut bytes = iso(&[]);
            let end = (18 * 2048 + directory.len()).min(bytes.len());
            bytes[18 * 2048..end].copy_from_slice(&directory[..end - 18 * 2048]);
            live(&bytes);
        }
    }
}
