//! What is written by a large request goes from the socket to the disk's blocks while it arrives, without being copied here. It is on the disk when all of it has.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    sync::Arc,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

use crate::{
    answers::SendError,
    store::{GRANULE, Placed},
};

/// Bytes that are on their way at a time: what stays in a processor's cache.
const AT_A_TIME: usize = 256 << 10;

/// A pipe, through which the kernel moves bytes from one file to another.
#[derive(Debug)]
pub(crate) struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
}

impl Pipe {
    /// One, if the host has it.
    pub(crate) fn new() -> Option<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // It works with less, too.
        let _ = fcntl_setpipe_size(&to, AT_A_TIME);
        Some(Self { from, to })
    }
}

/// The payload of a request that arrives.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// The head of the request.
    pub(crate) head: [u8; crate::nbd::REQUEST_LENGTH],
    pub(crate) placed: Placed,
    /// Bytes of it that are there.
    done: u64,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    All,
    Some,
    /// The other end is gone.
    Never,
}

impl Arriving {
    pub(crate) fn new(head: [u8; crate::nbd::REQUEST_LENGTH], placed: Placed) -> Self {
        Self { head, placed, done: 0 }
    }

    /// Takes what has come already.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((at, room)) = self.next().filter(|_| !bytes.is_empty()) {
            let count = bytes.len().min(room);
            self.placed.file.write_all_at(&bytes[..count], at)?;
            self.done += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Where the next bytes go, and how many go there; `None` when all are there.
    fn next(&self) -> Option<(u64, usize)> {
        let mut before = 0;
        for (block, count) in &self.placed.runs {
            let length = u64::from(*count) * GRANULE;
            if self.done < before + length {
                let inside = self.done - before;
                let room = usize::try_from(length - inside).unwrap_or(usize::MAX);
                return Some((u64::from(*block) * GRANULE + inside, room));
            }
            before += length;
        }
        None
    }

    /// Takes what has come, as far as there is some.
    ///
    /// # Errors
    /// When it cannot be written, or the socket does not work.
    pub(crate) fn fill(&mut self, stream: &UnixStream, pipe: &mut Option<Pipe>) -> Result<Arrived, SendError> {
        while let Some((at, room)) = self.next() {
            let most = room.min(AT_A_TIME);
            let moved = match pipe {
                Some(by) => match splice(stream, None, &by.to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                    // Not each kernel moves what comes from there.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                        *pipe = None;
                        continue;
                    }
                    Ok(count) => drain(by, count, &self.placed.file, at).map_err(SendError::File).map(|()| count)?,
                    Err(Errno::AGAIN) => return Ok(Arrived::Some),
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(SendError::Socket(errno.into())),
                },
                None => {
                    let mut bytes = vec![0; most];
                    match (&mut &*stream).read(&mut bytes) {
                        Ok(count) => {
                            self.placed.file.write_all_at(&bytes[..count], at).map_err(SendError::File)?;
                            count
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Arrived::Some),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(SendError::Socket(error)),
                    }
                }
            };
            if moved == 0 {
                return Ok(Arrived::Never);
            }
            self.done += moved as u64;
        }
        Ok(Arrived::All)
    }
}

/// Writes what is in a pipe to where it belongs.
fn drain(pipe: &Pipe, mut count: usize, file: &Arc<File>, mut at: u64) -> io::Result<()> {
    while count > 0 {
        match splice(&pipe.from, None, &**file, Some(&mut at), count, SpliceFlags::MOVE) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            // The kernel moves `at` on.
            Ok(moved) => count -= moved,
            Err(Errno::INTR) => {}
            // splice(2): not each file system has it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut bytes = vec![0; count];
                let read = rustix::io::read(pipe.from.as_fd(), &mut bytes)?;
                file.write_all_at(&bytes[..read], at)?;
                at += read as u64;
                count -= read;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
