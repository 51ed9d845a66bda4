//! The parts of a vmdk (VMware's "Virtual Disk Format" 1.1): a text file may list the files that hold its data.
//!
//! `qemu-img` opens those files when it merely looks at the image, so the names are checked first.

use std::path::{Path, PathBuf};

use super::DiskError;
use crate::bounded::le;

/// As much of a vmdk as is looked at.
pub(super) const HEAD: u64 = 128 << 10;

const TEXT: &[u8] = b"# Disk DescriptorFile";

/// Refuses parts outside the image's directory and parts that are not there.
pub(super) fn check_extents(path: &Path, head: &[u8]) -> Result<(), DiskError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    for extent in extents(head) {
        if extent.contains(['/', ':', '\\']) || extent == ".." {
            return Err(DiskError::ExtentElsewhere { path: path.to_owned(), extent });
        }
        let file = dir.join(&extent);
        if !file.is_file() {
            return Err(DiskError::ExtentMissing { path: path.to_owned(), extent: file });
        }
    }
    Ok(())
}

/// The files that hold the data of a vmdk which says so.
pub(super) fn files(path: &Path, head: &[u8]) -> Vec<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    extents(head).iter().map(|extent| dir.join(extent)).collect()
}

/// The names of the files in the descriptor, as far as QEMU will open them: all if the file is a descriptor, those of
/// the embedded one if the image is sparse and has no size of its own.
fn extents(head: &[u8]) -> Vec<String> {
    let starts_as_text = head.trim_ascii_start().starts_with(b"#");
    let sparse_without_size = head.starts_with(b"KDMV") && le::u64(head, 12) == Some(0);
    if !starts_as_text && !sparse_without_size {
        return Vec::new();
    }
    let Some(start) = memchr::memmem::find(head, TEXT) else { return Vec::new() };
    let text = &head[start..];
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).lines().filter_map(extent).collect()
}

/// The name in `RW 65536 SPARSE "disk-s001.vmdk"`.
fn extent(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let access = words.next()?;
    words.next()?.parse::<u64>().ok()?;
    matches!(access, "RW" | "RDONLY" | "NOACCESS").then_some(())?;
    let mut quotes = line.split('"');
    quotes.next()?;
    Some(quotes.next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nRW 65536 SPARSE \"d-s001.vmdk\"\nRDONLY 5 FLAT \"/etc/shadow\" 0\nRW 7 ZERO\nddb.x = \"y\"\n";

    #[test]
    fn the_parts_of_a_text_and_of_an_embedded_descriptor() {
        assert_eq!(extents(DESCRIPTOR.as_bytes()), ["d-s001.vmdk", "/etc/shadow"]);
        let mut sparse = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
        sparse.extend_from_slice(&[0; 8]);
        sparse.extend_from_slice(DESCRIPTOR.as_bytes());
        assert_eq!(extents(&sparse).len(), 2);
        sparse[12] = 1;
        assert_eq!(extents(&sparse), [""; 0]);
    }

    #[test]
    fn parts_elsewhere_or_gone_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.vmdk");
        let check = || check_extents(&path, DESCRIPTOR.as_bytes()).unwrap_err();
        assert!(matches!(check(), DiskError::ExtentMissing { .. }));
        std::fs::write(dir.path().join("d-s001.vmdk"), "").unwrap();
        assert!(matches!(check(), DiskError::ExtentElsewhere { extent, .. } if extent == "/etc/shadow"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(tail: Vec<u8>, lines in "(RW |RDONLY |[0-9 ]|\"|\n|[a-z]){0,40}") {
            extents(&[TEXT, &tail].concat());
            extents(&[TEXT, b"\n", lines.as_bytes()].concat());
        }
    }
}
