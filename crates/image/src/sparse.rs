//! Files with holes: what of a file is not zero, found without reading its holes, and a checksum of it.
//!
//! The checksum is of the bytes and of where they are, not of which zeros take room: that may change, and copying changes it.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Unit of what is left out, in bytes: a page of a guest's. Offsets in a file are multiples of it.
const PAGE: usize = 4096;
/// Bytes read at once, by all who read with [`chunks`].
pub const CHUNK: usize = 1 << 20;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// What was found in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Checksum of everything that is not zero, of where it is, and of the file's size.
    pub hash: blake3::Hash,
    /// Bytes that are not in pages of zeros.
    pub used: u64,
}

/// The checksum of the first `size` bytes of a file.
///
/// # Errors
/// When the file cannot be read, or ends before.
pub fn check(file: &File, size: u64) -> io::Result<Content> {
    let mut sum = Sum::new(size);
    chunks(file, 0..size, |at, chunk| {
        sum.add(at, chunk);
        Ok(())
    })?;
    Ok(sum.finish())
}

/// A checksum under way.
#[derive(Debug)]
pub struct Sum {
    hasher: blake3::Hasher,
    used: u64,
}

impl Sum {
    /// Of a file of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes());
        Self { hasher, used: 0 }
    }

    /// Adds a piece that begins at `at`, as [`chunks`] gives them, in the file's order.
    pub fn add(&mut self, at: u64, chunk: &[u8]) {
        runs(chunk).for_each(|(offset, run)| self.add_run(at + offset as u64, run));
    }

    fn add_run(&mut self, offset: u64, run: &[u8]) {
        self.hasher.update(&offset.to_le_bytes());
        self.hasher.update(&(run.len() as u64).to_le_bytes());
        self.hasher.update(run);
        self.used += run.len() as u64;
    }

    /// All of it was added.
    #[must_use]
    pub fn finish(self) -> Content {
        Content { hash: self.hasher.finalize(), used: self.used }
    }
}

/// Reads a part of a file piece by piece, without its holes. Pieces begin at multiples of their size, whatever the holes. `take` may keep
/// the piece and leave another vector in its place. Moves the descriptor's place in the file.
///
/// # Errors
/// When the file cannot be read, or ends within the part; what `take` returns.
pub fn chunks(
    file: &File,
    part: Range<u64>,
    mut take: impl FnMut(u64, &mut Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut at = part.start;
    while at < part.end {
        // Holes are not read; where the file system knows of none, everything is data.
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let start = data.min(part.end) / CHUNK as u64 * CHUNK as u64;
        at = start.max(at);
        if at >= part.end {
            break;
        }
        let length = usize::try_from(part.end - at).unwrap_or(CHUNK).min(CHUNK);
        buffer.resize(length, 0);
        file.read_exact_at(&mut buffer, at)?;
        take(at, &mut buffer)?;
        at += length as u64;
    }
    Ok(())
}

/// The runs of pages with something in them, each with its offset in the chunk.
pub fn runs(chunk: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
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

    fn file_of(size: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
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

    #[test]
    fn zeros_that_take_room_count_like_holes() {
        let size = 8 << 20;
        let written = file_of(size, &[(0, &[0; 3 << 20]), (1 << 20, b"x")]);
        let with_holes = file_of(size, &[(1 << 20, b"x")]);
        assert_eq!(check(&written, size).unwrap(), check(&with_holes, size).unwrap());
        assert_eq!(check(&written, size).unwrap().used, 4096);
    }
}
