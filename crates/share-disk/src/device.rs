//! Reading and writing a range of a disk, or of the file behind one, a piece at a time: a large archive takes no more memory than a small one.
//!
//! Buffers, offsets and lengths are multiples of [`BLOCK`], as `O_DIRECT` wants them: the guest must not go by pages that it read of the disk
//! before, for another content may be behind it since.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::layout::BLOCK;

/// Bytes that are read or written at once.
const PIECE: usize = 1 << 20;

/// A buffer that begins at a multiple of [`BLOCK`] in memory.
#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; PIECE + BLOCK];
        // An offset that cannot be told would be larger.
        let begin = bytes.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { bytes, begin }
    }

    fn all(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + PIECE]
    }
}

/// Reads the first `length` bytes from `at`.
#[derive(Debug)]
pub struct RangeReader<'a> {
    fd: BorrowedFd<'a>,
    buffer: Buffer,
    at: u64,
    left: u64,
    /// What of the buffer has not been given.
    given: usize,
    filled: usize,
    crc: crc32fast::Hasher,
}

impl<'a> RangeReader<'a> {
    /// Reads `length` bytes that begin at `at`, a multiple of [`BLOCK`].
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, at: u64, length: u64) -> Self {
        Self { fd, buffer: Buffer::new(), at, left: length, given: 0, filled: 0, crc: crc32fast::Hasher::new() }
    }

    /// Reads what is left, and gives the CRC-32 of all of it.
    ///
    /// # Errors
    /// When it cannot be read, or the file ends.
    pub fn finish(mut self) -> io::Result<u32> {
        while self.fill()? {
            self.given = self.filled;
        }
        Ok(self.crc.finalize())
    }

    /// Reads the next piece if none is left; `false` at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.given < self.filled {
            return Ok(true);
        }
        if self.left == 0 {
            return Ok(false);
        }
        let wanted = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let piece = &mut self.buffer.all()[..wanted.next_multiple_of(BLOCK)];
        let mut read = 0;
        while read < wanted {
            match rustix::io::pread(self.fd, &mut piece[read..], self.at + read as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => read += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.crc.update(&piece[..wanted]);
        (self.given, self.filled) = (0, wanted);
        self.at += wanted as u64;
        self.left -= wanted as u64;
        Ok(true)
    }
}

impl Read for RangeReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let count = into.len().min(self.filled - self.given);
        into[..count].copy_from_slice(&self.buffer.all()[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

/// Writes at most `most` bytes from an offset on.
#[derive(Debug)]
pub struct RangeWriter<'a> {
    fd: BorrowedFd<'a>,
    buffer: Buffer,
    at: u64,
    filled: usize,
    written: u64,
    most: u64,
    crc: crc32fast::Hasher,
}

impl<'a> RangeWriter<'a> {
    /// Writes from `at` on, a multiple of [`BLOCK`].
    #[must_use]
    pub fn new(fd: BorrowedFd<'a>, at: u64, most: u64) -> Self {
        Self { fd, buffer: Buffer::new(), at, filled: 0, written: 0, most, crc: crc32fast::Hasher::new() }
    }

    /// Writes what is left, up to a multiple of [`BLOCK`] with zeros; gives the number of bytes without these, and their CRC-32.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<(u64, u32)> {
        let filled = self.filled;
        self.buffer.all()[filled..filled.next_multiple_of(BLOCK)].fill(0);
        self.put(filled.next_multiple_of(BLOCK))?;
        Ok((self.written, self.crc.finalize()))
    }

    fn put(&mut self, count: usize) -> io::Result<()> {
        let mut done = 0;
        while done < count {
            let at = self.at + done as u64;
            match rustix::io::pwrite(self.fd, &self.buffer.all()[done..count], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => done += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.at += count as u64;
        self.filled = 0;
        Ok(())
    }
}

impl Write for RangeWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(PIECE - self.filled);
        let bytes = &bytes[..count];
        if self.written + count as u64 > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let filled = self.filled;
        self.buffer.all()[filled..filled + count].copy_from_slice(bytes);
        self.crc.update(bytes);
        self.filled += count;
        self.written += count as u64;
        if self.filled == PIECE {
            self.put(PIECE)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
