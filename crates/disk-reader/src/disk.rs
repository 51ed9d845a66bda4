//! The bytes of a disk, whatever format its image has: read-only, and metered.
//!
//! Whoever reads a file system goes through [`Disk::read_at`], the crates for file systems of others too. So a limit on bytes and a deadline
//! hold for all of them: a structure that leads round in a circle ends at the limit, and what is said then is that it was the limit.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use belljar_image::disk::{DiskImage, Format};

use crate::nbd::Client;

/// How much one operation ([`crate::inspect`], the copy of a file) may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the operation's begin to its last read.
    pub time: Duration,
    /// Bytes of the disk that are read, those read twice counted twice.
    pub bytes: u64,
}

impl Default for Limits {
    /// A look at a disk takes a few megabytes, the copy of an initramfs a hundred.
    fn default() -> Self {
        Self { time: Duration::from_secs(20), bytes: 2 << 30 }
    }
}

/// Why bytes of a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk ends before them: the image is cut short, or what refers to them is broken.
    #[error("the disk ends at {size}, before {length} bytes at {offset}")]
    PastEnd {
        /// Where they would be.
        offset: u64,
        /// How many.
        length: u64,
        /// Where the disk, or the part of it, ends.
        size: u64,
    },
    /// The deadline of [`Limits`] has passed.
    #[error("reading it took longer than {} s", .0.as_secs_f32())]
    Deadline(Duration),
    /// The bytes of [`Limits`] are used up.
    #[error("more than {0} bytes of the disk were read for it")]
    TooMuch(u64),
    /// Another failure of reading.
    #[error("cannot read the disk: {0}")]
    Io(#[from] io::Error),
    /// The program that understands the image's format failed.
    #[error("{program} cannot give the bytes of the image: {said}")]
    Server {
        /// QEMU's program.
        program: String,
        /// What it said.
        said: String,
    },
    /// The program that understands the image's format is not there.
    #[error(
        "{program} is not there, which is needed to read an image that is not raw; mend: install it (Debian and Ubuntu: apt-get install \
         qemu-utils; Fedora, RHEL, Alpine, Arch: the package qemu-img), or qemu-img convert the image to raw"
    )]
    NoServer {
        /// QEMU's program.
        program: String,
    },
}

impl ReadError {
    /// Whether it says nothing of the disk, only of what was allowed.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::Deadline(_) | Self::TooMuch(_))
    }
}

/// A disk that can be read. Clones read the same one.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

/// Without its bytes.
impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("size", &self.shared.size).finish_non_exhaustive()
    }
}

struct Shared {
    size: u64,
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    bytes: Bytes,
    began: Instant,
    left: u64,
    /// The limit that was met since the operation began.
    met: Option<Limit>,
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    Time,
    Bytes,
}

enum Bytes {
    File(File),
    Server(Box<Cached>),
    /// And what is otherwise than in it, byte by byte.
    Memory(Arc<[u8]>, Vec<(u64, u8)>),
}

impl Disk {
    /// Opens a disk that was looked at. A raw image is read as it is; for others `qemu-nbd` is started, which stands beside `qemu_img`, and which ends with the
    /// last clone of this, or with this process.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn open(image: &DiskImage, qemu_img: &Path, limits: Limits) -> Result<Self, ReadError> {
        match image.layers() {
            [only] if only.format == Format::Raw => {
                let file = belljar_image::open_without_waiting(&only.path)?;
                Ok(Self::new(Bytes::File(file), image.virtual_size, limits))
            }
            _ => {
                let client = Client::start(&qemu_img.with_file_name("qemu-nbd"), image, limits.time)?;
                let size = client.size();
                Ok(Self::new(Bytes::Server(Box::new(Cached::new(client, size))), size, limits))
            }
        }
    }

    /// A disk in memory, for tests: each of `changes` is an offset and what is there instead.
    #[must_use]
    pub fn of_bytes(bytes: Arc<[u8]>, changes: Vec<(u64, u8)>, limits: Limits) -> Self {
        let size = bytes.len() as u64;
        Self::new(Bytes::Memory(bytes, changes), size, limits)
    }

    fn new(bytes: Bytes, size: u64, limits: Limits) -> Self {
        let state = State { bytes, began: Instant::now(), left: limits.bytes, met: None };
        Self { shared: Arc::new(Shared { size, limits, state: Mutex::new(state) }) }
    }

    /// Bytes that the guest sees.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// The limits hold from here on anew.
    pub(crate) fn begin(&self) {
        let mut state = self.state();
        state.began = Instant::now();
        state.left = self.shared.limits.bytes;
        state.met = None;
    }

    /// The limit that was met since the operation began, which explains whatever else went wrong.
    pub(crate) fn limit_met(&self) -> Option<ReadError> {
        self.state().met.map(|limit| self.error(limit))
    }

    fn error(&self, limit: Limit) -> ReadError {
        match limit {
            Limit::Time => ReadError::Deadline(self.shared.limits.time),
            Limit::Bytes => ReadError::TooMuch(self.shared.limits.bytes),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A reader that panicked has left nothing half done here.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let length = buffer.len() as u64;
        let size = self.shared.size;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ReadError::PastEnd { offset, length, size });
        }
        let mut state = self.state();
        let elapsed = state.began.elapsed();
        let met = match state.left.checked_sub(length) {
            None => Some(Limit::Bytes),
            Some(_) if elapsed > self.shared.limits.time => Some(Limit::Time),
            Some(left) => {
                state.left = left;
                None
            }
        };
        if let Some(limit) = met {
            state.met = Some(limit);
            return Err(self.error(limit));
        }
        match &mut state.bytes {
            Bytes::File(file) => file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
                // A raw image whose last sector is not whole.
                io::ErrorKind::UnexpectedEof => ReadError::PastEnd { offset, length, size },
                _ => ReadError::Io(error),
            }),
            Bytes::Server(cached) => cached.read_at(offset, buffer, self.shared.limits.time.saturating_sub(elapsed)),
            Bytes::Memory(bytes, changes) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let found = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
                buffer.copy_from_slice(found.ok_or(ReadError::PastEnd { offset, length, size })?);
                for &(at, byte) in changes.iter() {
                    let place = at.checked_sub(offset).and_then(|at| buffer.get_mut(usize::try_from(at).ok()?));
                    place.into_iter().for_each(|place| *place = byte);
                }
                Ok(())
            }
        }
    }
}

/// What a server has sent lately, in blocks: file systems come back to the same few.
struct Cached {
    client: Client,
    size: u64,
    blocks: HashMap<u64, (u64, Vec<u8>)>,
    tick: u64,
}

impl Cached {
    const BLOCK: u64 = 64 << 10;
    /// Blocks kept: 16 MiB.
    const KEPT: usize = 256;

    fn new(client: Client, size: u64) -> Self {
        Self { client, size, blocks: HashMap::new(), tick: 0 }
    }

    fn read_at(&mut self, mut offset: u64, mut buffer: &mut [u8], time: Duration) -> Result<(), ReadError> {
        while !buffer.is_empty() {
            let number = offset / Self::BLOCK;
            let within = usize::try_from(offset % Self::BLOCK).map_err(io::Error::other)?;
            let block = self.block(number, time)?;
            let found = block
                .get(within..)
                .filter(|b| !b.is_empty())
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            let n = found.len().min(buffer.len());
            let (now, rest) = std::mem::take(&mut buffer).split_at_mut(n);
            now.copy_from_slice(&found[..n]);
            buffer = rest;
            offset += n as u64;
        }
        Ok(())
    }

    fn block(&mut self, number: u64, time: Duration) -> Result<&[u8], ReadError> {
        self.tick += 1;
        if !self.blocks.contains_key(&number) {
            if self.blocks.len() >= Self::KEPT
                && let Some(oldest) = self.blocks.iter().min_by_key(|(_, (tick, _))| *tick).map(|(&n, _)| n)
            {
                self.blocks.remove(&oldest);
            }
            let start = number * Self::BLOCK;
            let length = usize::try_from(Self::BLOCK.min(self.size - start)).map_err(io::Error::other)?;
            let mut block = vec![0; length];
            self.client.read_at(start, &mut block, time)?;
            self.blocks.insert(number, (0, block));
        }
        let (tick, block) =
            self.blocks.get_mut(&number).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        *tick = self.tick;
        Ok(block)
    }
}

/// A part of a disk that looks like one of its own: a partition, or a logical volume that may be in several pieces.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    disk: Disk,
    /// One behind the other.
    pieces: Vec<Piece>,
}

/// Where bytes of a [`Part`] are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl Part {
    pub(crate) fn new(disk: &Disk, start: u64, length: u64) -> Self {
        Self::of_pieces(disk, vec![Piece { start, length }])
    }

    pub(crate) fn of_pieces(disk: &Disk, pieces: Vec<Piece>) -> Self {
        Self { disk: disk.clone(), pieces }
    }

    pub(crate) fn size(&self) -> u64 {
        self.pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.length))
    }

    /// Where a piece of it is on the disk; none if it is not in one piece there.
    pub(crate) fn piece(&self, offset: u64, length: u64) -> Option<Piece> {
        let [whole] = self.pieces.as_slice() else { return None };
        let end = offset.checked_add(length)?;
        (end <= whole.length).then_some(Piece { start: whole.start.checked_add(offset)?, length })
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let length = buffer.len() as u64;
        let past_end = || ReadError::PastEnd { offset, length, size: self.size() };
        let mut skip = offset;
        let mut rest = buffer;
        for piece in &self.pieces {
            if rest.is_empty() {
                break;
            }
            if skip >= piece.length {
                skip -= piece.length;
                continue;
            }
            let n = usize::try_from((piece.length - skip).min(rest.len() as u64)).map_err(io::Error::other)?;
            let (now, later) = rest.split_at_mut(n);
            self.disk.read_at(piece.start.checked_add(skip).ok_or_else(past_end)?, now)?;
            rest = later;
            skip = 0;
        }
        if rest.is_empty() { Ok(()) } else { Err(past_end()) }
    }

    /// `length` bytes at `offset`.
    pub(crate) fn bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size()) {
            return Err(ReadError::PastEnd { offset, length: length as u64, size: self.size() });
        }
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_apart_from_what_it_looks_like() {
        let disk = Disk::of_bytes(vec![7; 100].into(), Vec::new(), Limits { bytes: 64, ..Limits::default() });
        let mut buffer = [0; 40];
        disk.read_at(10, &mut buffer).unwrap();
        assert!(disk.limit_met().is_none());
        assert!(disk.read_at(10, &mut buffer).unwrap_err().is_limit());
        assert!(matches!(disk.limit_met(), Some(ReadError::TooMuch(64))));
        disk.begin();
        disk.read_at(60, &mut buffer).unwrap();
        assert!(matches!(disk.read_at(61, &mut buffer), Err(ReadError::PastEnd { size: 100, .. })));
        assert!(matches!(disk.read_at(u64::MAX, &mut buffer), Err(ReadError::PastEnd { .. })));
        let none =
            Disk::of_bytes(vec![7; 100].into(), Vec::new(), Limits { time: Duration::ZERO, ..Limits::default() });
        std::thread::sleep(Duration::from_millis(1));
        assert!(matches!(none.read_at(0, &mut buffer), Err(ReadError::Deadline(_))));
    }

    #[test]
    fn pieces_are_one_behind_the_other() {
        let disk = Disk::of_bytes((0..100).collect(), Vec::new(), Limits::default());
        let part = Part::of_pieces(&disk, vec![Piece { start: 50, length: 10 }, Piece { start: 0, length: 5 }]);
        assert_eq!(part.size(), 15);
        assert_eq!(part.bytes(8, 4).unwrap(), [58, 59, 0, 1]);
        assert_eq!(part.bytes(10, 5).unwrap(), [0, 1, 2, 3, 4]);
        assert!(part.bytes(11, 5).is_err());
        let endless = Part::of_pieces(
            &disk,
            vec![Piece { start: u64::MAX, length: u64::MAX }, Piece { start: 0, length: u64::MAX }],
        );
        assert!(endless.bytes(1, 1).is_err());
    }
}
