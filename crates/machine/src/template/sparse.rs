//! Copies of a guest's memory: only what is not zero takes room, and a checksum of that goes with it.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Unit of what is left out, in bytes: a page of the guest's. Offsets in a file are multiples of it.
const PAGE: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// What came of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// Checksum of everything that is not zero, and of where it is.
    pub(super) hash: blake3::Hash,
    /// Bytes that are not in pages of zeros.
    pub(super) used: u64,
}

/// Copies `size` bytes into an empty file, leaving out pages of zeros.
pub(super) fn copy(from: &File, to: &File, size: u64) -> io::Result<Copied> {
    to.set_len(size)?;
    walk(from, size, |offset, bytes| to.write_all_at(bytes, offset))
}

/// The checksum that [`copy`] gave, taken anew.
pub(super) fn check(file: &File, size: u64) -> io::Result<Copied> {
    walk(file, size, |_, _| Ok(()))
}

/// Takes every run of pages that are not all zeros, in order. How long a run is depends on nothing but the content.
fn walk(file: &File, size: u64, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<Copied> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    let mut used = 0;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        // Holes are not read; where the file system knows of none, everything is data.
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        // Chunks begin at multiples of their size, whatever the holes.
        let start = data.min(size) / CHUNK as u64 * CHUNK as u64;
        at = start.max(at);
        if at >= size {
            break;
        }
        let length = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut buffer[..length];
        file.read_exact_at(chunk, at)?;
        for (offset, run) in runs(chunk) {
            let offset = at + offset as u64;
            take(offset, run)?;
            hasher.update(&offset.to_le_bytes());
            hasher.update(&(run.len() as u64).to_le_bytes());
            hasher.update(run);
            used += run.len() as u64;
        }
        at += length as u64;
    }
    Ok(Copied { hash: hasher.finalize(), used })
}

/// The runs of pages with something in them.
fn runs(chunk: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let is_zero = |page: &[u8]| page == &ZEROS[..page.len()];
        while at < chunk.len() && is_zero(&chunk[at..chunk.len().min(at + PAGE)]) {
            at += PAGE;
        }
        if at >= chunk.len() {
            return None;
        }
        let begin = at;
        while at < chunk.len() && !is_zero(&chunk[at..chunk.len().min(at + PAGE)]) {
            at += PAGE;
        }
        Some((begin, &chunk[begin..chunk.len().min(at)]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file_of(size: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    fn content(file: &File, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_copy_is_the_same_and_takes_less() {
        let size = 8 << 20;
        let from = file_of(size, &[(0, &[0; 1 << 20]), (5000, b"x"), (3 << 20, &[7; 9000]), (size - 1, b"e")]);
        let to = tempfile::tempfile().unwrap();
        let copied = copy(&from, &to, size).unwrap();
        assert_eq!(content(&to, size), content(&from, size));
        assert_eq!(copied.used, 4096 + 3 * 4096 + 4096);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        assert_eq!(check(&to, size).unwrap(), copied);
        assert_eq!(check(&from, size).unwrap(), copied, "zeros that take room count like zeros that do not");
    }

    #[test]
    fn every_byte_counts_and_its_place_too() {
        let size = 4 << 20;
        let whole = check(&file_of(size, &[(4096, b"a")]), size).unwrap().hash;
        for other in [&[(4096, &b"b"[..])][..], &[(8192, b"a")], &[], &[(4096, b"a"), (size - 1, b"a")]] {
            assert_ne!(check(&file_of(size, other), size).unwrap().hash, whole);
        }
        assert!(check(&file_of(size - 1, &[(size - 2, b"a")]), size).is_err(), "a file that ends too soon");
    }

    proptest::proptest! {
        #[test]
        fn what_is_copied_checks(pieces in proptest::collection::vec((0_u64..3 << 20, 1_usize..70_000, 0_u8..3), 0..6)) {
            let size = 4 << 20;
            let from = tempfile::tempfile().unwrap();
            from.set_len(size).unwrap();
            for (offset, length, byte) in &pieces {
                from.write_all_at(&vec![*byte; *length], *offset).unwrap();
            }
            let to = tempfile::tempfile().unwrap();
            let copied = copy(&from, &to, size).unwrap();
            proptest::prop_assert_eq!(content(&to, size), content(&from, size));
            proptest::prop_assert_eq!(check(&to, size).unwrap(), copied);
        }
    }
}
