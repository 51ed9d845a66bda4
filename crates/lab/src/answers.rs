//! Answers that wait to be taken: bytes, and pieces of files, which go from the kernel's cache to the socket without being copied here.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
};

use rustix::{fs::sendfile, io::Errno};

/// Zeros that are sent at a time.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Bytes that are copied at a time of a file that cannot be sent as it is.
const COPIED: usize = 256 << 10;

/// Bytes of a disk, by where they are.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file that has them, and where in it; they are zeros where it is `None`, or behind the file's end.
    pub file: Option<(Arc<File>, u64)>,
    /// How many they are.
    pub length: u64,
}

/// What is to be sent, in its order.
#[derive(Debug)]
enum Part {
    /// Bytes, of which so many have been sent.
    Bytes(Vec<u8>, usize),
    Piece(Piece),
}

/// Answers that are to be sent.
#[derive(Debug, Default)]
pub struct Answers {
    parts: VecDeque<Part>,
}

/// Why answers could not be sent.
#[derive(Debug)]
pub enum SendError {
    /// The host could not read what was asked for.
    File(io::Error),
    /// The socket does not work.
    Socket(io::Error),
}

impl Answers {
    /// Where the next bytes go.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if !matches!(self.parts.back(), Some(Part::Bytes(..))) {
            self.parts.push_back(Part::Bytes(Vec::new(), 0));
        }
        match self.parts.back_mut() {
            Some(Part::Bytes(bytes, _)) => bytes,
            Some(Part::Piece(_)) | None => unreachable!("it was put there"),
        }
    }

    /// Has pieces sent behind what is there.
    pub fn push(&mut self, pieces: Vec<Piece>) {
        self.parts.extend(pieces.into_iter().filter(|piece| piece.length > 0).map(Part::Piece));
    }

    /// Bytes that were not sent yet.
    pub fn unsent(&self) -> u64 {
        let of = |part: &Part| match part {
            Part::Bytes(bytes, sent) => (bytes.len() - sent) as u64,
            Part::Piece(piece) => piece.length,
        };
        self.parts.iter().map(of).sum()
    }

    /// Sends what can be sent at once.
    ///
    /// # Errors
    /// When a file cannot be read, or the socket does not work.
    pub fn send(&mut self, mut to: impl Write + AsFd) -> Result<(), SendError> {
        loop {
            let is_last = self.parts.len() == 1;
            let Some(part) = self.parts.front_mut() else { return Ok(()) };
            let sent = match part {
                Part::Bytes(bytes, sent) if *sent == bytes.len() => {
                    // One buffer stays, for the next answers.
                    if is_last {
                        bytes.clear();
                        *sent = 0;
                        return Ok(());
                    }
                    self.parts.pop_front();
                    continue;
                }
                Part::Bytes(bytes, sent) => to.write(&bytes[*sent..]).map(|count| *sent += count),
                Part::Piece(piece) if piece.length == 0 => {
                    self.parts.pop_front();
                    continue;
                }
                Part::Piece(piece) => match piece.send(&mut to)? {
                    Sent::Some => Ok(()),
                    Sent::Nothing => return Ok(()),
                    Sent::Copy(bytes) => {
                        self.parts.push_front(Part::Bytes(bytes, 0));
                        continue;
                    }
                },
            };
            match sent {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SendError::Socket(error)),
            }
        }
    }
}

/// What became of a piece.
enum Sent {
    /// A part of it was sent, if not all.
    Some,
    /// The socket takes nothing at the moment.
    Nothing,
    /// Its file cannot be sent as it is: these are its next bytes.
    Copy(Vec<u8>),
}

impl Piece {
    /// Sends some of it.
    fn send(&mut self, mut to: impl Write + AsFd) -> Result<Sent, SendError> {
        let least = |most: usize| usize::try_from(self.length).unwrap_or(usize::MAX).min(most);
        let Some((file, offset)) = &mut self.file else {
            return match to.write(&ZEROS[..least(ZEROS.len())]) {
                Ok(count) => {
                    self.length -= count as u64;
                    Ok(Sent::Some)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Sent::Some),
                Err(error) => Err(SendError::Socket(error)),
            };
        };
        // The kernel moves it on.
        match sendfile(&to, &**file, Some(offset), least(usize::MAX)) {
            Ok(0) => self.file = None,
            Ok(count) => self.length -= count as u64,
            Err(Errno::AGAIN) => return Ok(Sent::Nothing),
            Err(Errno::INTR) => {}
            Err(errno @ (Errno::PIPE | Errno::CONNRESET)) => return Err(SendError::Socket(errno.into())),
            // sendfile(2): not each file system has it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut bytes = vec![0; least(COPIED)];
                match file.read_at(&mut bytes, *offset) {
                    Ok(0) => self.file = None,
                    Ok(count) => {
                        bytes.truncate(count);
                        *offset += count as u64;
                        self.length -= count as u64;
                        return Ok(Sent::Copy(bytes));
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(SendError::File(error)),
                }
            }
            Err(errno) => return Err(SendError::File(errno.into())),
        }
        Ok(Sent::Some)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    impl Piece {
        /// What it is.
        pub(crate) fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![0; usize::try_from(self.length).unwrap()];
            if let Some((file, offset)) = &self.file {
                crate::store::read_or_zeros(file, &mut bytes, *offset).unwrap();
            }
            bytes
        }
    }

    impl Answers {
        /// All that is to be sent.
        pub(crate) fn bytes(&self) -> Vec<u8> {
            let of = |part: &Part| match part {
                Part::Bytes(bytes, sent) => bytes[*sent..].to_vec(),
                Part::Piece(piece) => piece.bytes(),
            };
            self.parts.iter().flat_map(of).collect()
        }
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(file)
    }

    #[test]
    fn what_is_sent_is_bytes_and_files_and_zeros_in_their_order() {
        let content: Vec<u8> = (0..1_000_000u32).map(|at| (at / 7) as u8).collect();
        let piece = |offset, length| Piece { file: Some((file(&content), offset)), length };
        let mut answers = Answers::default();
        answers.buffer().extend_from_slice(b"head");
        // The second goes on behind its file's end.
        answers.push(vec![piece(3, 500_001), piece(999_000, 5000), Piece { file: None, length: 200_000 }]);
        answers.push(vec![piece(0, 0)]);
        answers.buffer().extend_from_slice(b"tail");
        let mut expected = b"head".to_vec();
        expected.extend_from_slice(&content[3..500_004]);
        expected.extend_from_slice(&content[999_000..]);
        expected.resize(expected.len() + 4000 + 200_000, 0);
        expected.extend_from_slice(b"tail");
        assert_eq!((answers.unsent(), answers.bytes() == expected), (expected.len() as u64, true));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        while answers.unsent() > 0 {
            answers.send(&ours).unwrap();
            let before = got.len();
            let _ = theirs.read_to_end(&mut got);
            assert!(got.len() > before, "it goes on");
        }
        assert!(got == expected);
        answers.buffer().extend_from_slice(b"more");
        answers.send(&ours).unwrap();
        got.clear();
        let _ = theirs.read_to_end(&mut got);
        assert_eq!(got, b"more");
    }

    #[test]
    fn a_file_that_cannot_be_sent_as_it_is_is_copied() {
        // The kernel has no pages of it to give.
        let file = Arc::new(File::open("/proc/self/maps").unwrap());
        let mut answers = Answers::default();
        answers.push(vec![Piece { file: Some((file, 0)), length: 64 }]);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        answers.send(&ours).unwrap();
        let mut got = [0; 64];
        theirs.read_exact(&mut got).unwrap();
        assert!(got.contains(&b'-'), "{got:?}");
    }

    #[test]
    fn whose_fault_it_is_is_told() {
        let mut answers = Answers::default();
        let unreadable = File::options().write(true).open("/dev/null").unwrap();
        answers.push(vec![Piece { file: Some((Arc::new(unreadable), 0)), length: 9 }]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(matches!(answers.send(&ours), Err(SendError::File(_))));
        drop(theirs);
        let mut answers = Answers::default();
        answers.push(vec![Piece { file: Some((file(b"abc"), 0)), length: 3 }]);
        assert!(matches!(answers.send(&ours), Err(SendError::Socket(_))));
    }
}
