//! The file that a file system is written to.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use rustix::fs::FallocateFlags;

use crate::{
    archive::{LayerError, broken},
    limits::{Exceeded, Limits},
    tree::Extent,
};

/// Bytes of a block. It is that of every kernel before Linux 6.4 whose pages are of this size.
pub(crate) const BLOCK: usize = 4096;
/// Bytes that are read at once.
const PIECE: usize = 64 * BLOCK;
/// How many bytes are written between two looks at the room that is left.
const LOOK: u64 = 64 << 20;

/// Takes the bytes of files, each from the beginning of a block, and leaves holes for zeros.
pub(crate) struct Sink<'a> {
    file: &'a File,
    next: u32,
    written: u64,
    /// Bytes that it may take yet, and how many it might take at first: holes of sparse files count, too.
    left: u64,
    most: u64,
    looked: u64,
    keep_free: u64,
    piece: Vec<u8>,
}

impl<'a> Sink<'a> {
    /// From the block `next` on.
    pub(crate) fn new(file: &'a File, next: u32, limits: &Limits) -> Self {
        Self {
            file,
            next,
            written: 0,
            left: limits.bytes,
            most: limits.bytes,
            looked: 0,
            keep_free: limits.keep_free,
            piece: vec![0; PIECE],
        }
    }

    /// The block after all that was taken.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Takes `size` bytes.
    pub(crate) fn take(&mut self, from: &mut impl Read, size: u64) -> Result<Extent, LayerError> {
        let extent = Extent { block: self.next, size };
        let blocks = u32::try_from(size.div_ceil(BLOCK as u64)).ok().and_then(|blocks| self.next.checked_add(blocks));
        let after = blocks.ok_or(Exceeded::Bytes(u64::from(u32::MAX) * BLOCK as u64))?;
        self.left = self.left.checked_sub(size).ok_or(Exceeded::Bytes(self.most))?;
        let mut at = u64::from(self.next) * BLOCK as u64;
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let piece = &mut self.piece[..want];
            from.read_exact(piece).map_err(broken)?;
            for block in piece.chunks(BLOCK) {
                if block.iter().any(|&byte| byte != 0) {
                    self.file.write_all_at(block, at).map_err(LayerError::Write)?;
                    self.written += block.len() as u64;
                }
                at += block.len() as u64;
            }
            left -= want as u64;
            if self.written - self.looked >= LOOK {
                self.looked = self.written;
                self.look()?;
            }
        }
        self.next = after;
        Ok(extent)
    }

    /// Sees that there is room.
    pub(crate) fn look(&self) -> Result<(), LayerError> {
        let room = rustix::fs::fstatvfs(self.file).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        match room {
            Ok(room) if room < self.keep_free => Err(Exceeded::Room(self.keep_free).into()),
            _ => Ok(()),
        }
    }

    /// Gives back the room of bytes that nobody wants any more.
    pub(crate) fn free(&self, extents: Vec<Extent>) {
        for Extent { block, size } in extents {
            let (at, size) = (u64::from(block) * BLOCK as u64, size.next_multiple_of(BLOCK as u64));
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(self.file, flags, at, size).is_err() {
                // The same bytes come of the same image, whatever the file system can do.
                drop(self.clear(at, size));
            }
        }
    }

    fn clear(&self, mut at: u64, mut size: u64) -> io::Result<()> {
        let zeros = vec![0; PIECE];
        while size > 0 {
            let piece = &zeros[..usize::try_from(size).unwrap_or(PIECE).min(PIECE)];
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
            size -= piece.len() as u64;
        }
        Ok(())
    }
}
