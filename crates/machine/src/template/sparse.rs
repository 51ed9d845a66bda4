//! Copies of a guest's memory: only what is not zero takes room, and a checksum of that goes with it.

use std::{fs::File, io, os::unix::fs::FileExt, sync::mpsc};

use belljar_image::sparse::{CHUNK, Content, Sum, chunks, runs};

/// Pieces that may wait for their checksum.
const AHEAD: usize = 4;
/// Threads that copy at the same time, at most: memory has only so many channels.
const MOST_THREADS: usize = 4;

/// Copies `size` bytes into an empty file, leaving out pages of zeros. The checksum is taken beside the writing, on another processor where
/// there is one.
pub(super) fn copy(from: &File, to: &File, size: u64) -> io::Result<Content> {
    to.set_len(size)?;
    std::thread::scope(|scope| {
        let (give, take) = mpsc::sync_channel::<(u64, Vec<u8>)>(AHEAD);
        let (give_back, empty) = mpsc::channel::<Vec<u8>>();
        let summing = scope.spawn(move || {
            let mut sum = Sum::new(size);
            for (at, chunk) in take {
                sum.add(at, &chunk);
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

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_image::sparse::check;
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
