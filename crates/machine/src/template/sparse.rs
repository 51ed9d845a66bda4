//! Copies of a guest's memory: only what is not zero takes room, and a checksum of that goes with it.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, sync::mpsc};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Unit of what is left out, in bytes: a page of the guest's. Offsets in a file are multiples of it.
const PAGE: usize = 4096;
/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Pieces that may wait for their checksum.
const AHEAD: usize = 4;
/// Threads that copy at the same time, at most: memory has only so many channels.
const MOST_THREADS: usize = 4;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// What came of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// Checksum of everything that is not zero, and of where it is.
    pub(super) hash: blake3::Hash,
    /// Bytes that are not in pages of zeros.
    pub(super) used: u64,
}

/// Copies `size` bytes into an empty file, leaving out pages of zeros. The checksum is taken beside the writing, on another processor where
/// there is one.
pub(super) fn copy(from: &File, to: &File, size: u64) -> io::Result<Copied> {
    to.set_len(size)?;
    std::thread::scope(|scope| {
        let (give, take) = mpsc::sync_channel::<(u64, Vec<u8>)>(AHEAD);
        let (give_back, empty) = mpsc::channel::<Vec<u8>>();
        let summing = scope.spawn(move || {
            let mut sum = Sum::new(size);
            for (at, chunk) in take {
                runs(&chunk).for_each(|(offset, run)| sum.add(at + offset as u64, run));
                drop(give_back.send(chunk));
            }
            sum.finish()
        });
        chunks(from, 0..size, |at, chunk| {
            for (offset, run) in runs(chunk) {
                to.write_all_at(run, at + offset as u64)?;
            }
            let next = empty.try_recv().unwrap_or_default();
            // It takes all of them, unless it panicked, which is told below.
            drop(give.send((at, std::mem::replace(chunk, next))));
            Ok(())
        })?;
        drop(give);
        summing.join().map_err(|_| io::Error::other("the thread that takes the checksum broke off; please report it"))
    })
}

/// The same without a checksum, for a copy that is not kept: by several threads, each of which has a part.
pub(crate) fn copy_unchecked(from: &File, to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS)) as u64;
    let part = size.div_ceil(threads).next_multiple_of(CHUNK as u64);
    std::thread::scope(|scope| {
        let parts = (0..threads).map(|n| (part * n).min(size)..(part * (n + 1)).min(size));
        let copying: Vec<_> = parts
            .map(|part| {
                // A descriptor's place in the file is what holes are looked for with: each thread needs its own.
                let from = super::reopen(from);
                scope.spawn(move || {
                    chunks(&from?, part, |at, chunk| {
                        runs(chunk).try_for_each(|(offset, run)| to.write_all_at(run, at + offset as u64))
                    })
                })
            })
            .collect();
        copying.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| io::Error::other("a thread that copies broke off; please report it"))?
        })
    })
}

/// The checksum that [`copy`] gave, taken anew.
pub(super) fn check(file: &File, size: u64) -> io::Result<Copied> {
    let mut sum = Sum::new(size);
    chunks(file, 0..size, |at, chunk| {
        runs(chunk).for_each(|(offset, run)| sum.add(at + offset as u64, run));
        Ok(())
    })?;
    Ok(sum.finish())
}

/// A checksum under way.
struct Sum {
    hasher: blake3::Hasher,
    used: u64,
}

impl Sum {
    fn new(size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes());
        Self { hasher, used: 0 }
    }

    fn add(&mut self, offset: u64, run: &[u8]) {
        self.hasher.update(&offset.to_le_bytes());
        self.hasher.update(&(run.len() as u64).to_le_bytes());
        self.hasher.update(run);
        self.used += run.len() as u64;
    }

    fn finish(self) -> Copied {
        Copied { hash: self.hasher.finalize(), used: self.used }
    }
}

/// Reads a part of a file piece by piece, without its holes. Pieces begin at multiples of their size, whatever the holes. `take` may keep
/// the piece and leave another vector in its place.
fn chunks(file: &File, part: Range<u64>, mut take: impl FnMut(u64, &mut Vec<u8>) -> io::Result<()>) -> io::Result<()> {
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
        let again = tempfile::tempfile().unwrap();
        copy_unchecked(&from, &again, size).unwrap();
        assert_eq!(check(&again, size).unwrap(), copied);
        assert_eq!(again.metadata().unwrap().len(), size);
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
            let again = tempfile::tempfile().unwrap();
            copy_unchecked(&from, &again, size).unwrap();
            proptest::prop_assert_eq!(content(&again, size), content(&from, size));
            proptest::prop_assert_eq!(check(&to, size).unwrap(), copied);
        }
    }
}
