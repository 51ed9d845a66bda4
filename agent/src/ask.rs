//! What programs in the guest ask of the host, a line each, by a named pipe: any user and any language can write to one, wherever it is
//! mounted, and nothing has to be executed.
//!
//! A line is a word and what goes with it: `mark TEXT`. Lines of up to `PIPE_BUF` bytes (pipe(7)) of several writers do not mix.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use belljar_proto::message::{MAX_QUESTION, Question, ToHost};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::link::Link;
use crate::text;

/// Where the pipe is in a guest.
pub(crate) const PATH: &str = "/run/belljar/control";
/// The variable that tells commands where it is.
const VARIABLE: &str = "BELLJAR_CTL";
/// Bytes that a pipe holds, all of which are taken before a command's end is told.
const FULL: usize = 64 << 10;

/// Questions on their way to the host.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// Where the pipe is to be; nowhere, and nothing is asked.
    path: Option<PathBuf>,
    pipe: Option<OwnedFd>,
    /// The beginning of a line.
    begun: Vec<u8>,
    /// The rest of the line is too long.
    skips: bool,
    next: u32,
    /// The host takes no more in this session.
    refused: bool,
}

impl Asks {
    /// Questions by a pipe at this path, once it is [opened](Self::open).
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path: Some(path), ..Self::default() }
    }

    /// Opens the pipe, and makes it where it is missing; a guest in which that cannot be done has none.
    pub(crate) fn open(&mut self) {
        let Some(path) = &self.path else { return };
        if !self.pipe.as_ref().is_some_and(|pipe| is_at(pipe, path)) {
            self.pipe = make(path).ok();
        }
    }

    /// The pipe, to be waited for.
    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    /// For the environment of commands.
    pub(crate) fn variable(&self) -> Option<Vec<u8>> {
        let path = self.path.as_ref().filter(|_| self.pipe.is_some())?;
        Some([VARIABLE.as_bytes(), b"=", path.as_os_str().as_encoded_bytes()].concat())
    }

    /// Passes on what was written up to now.
    pub(crate) fn pass_on(&mut self, link: &mut Link) {
        let mut taken = 0;
        let mut buffer = [0; 4096];
        while taken < FULL {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(read) => {
                    taken += read;
                    self.take(&buffer[..read], link);
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.pipe = None;
                    return;
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8], link: &mut Link) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) = match piece.split_last() {
                Some((b'\n', piece)) => (piece, true),
                _ => (piece, false),
            };
            if self.begun.len() + piece.len() > MAX_QUESTION {
                self.skips = true;
            } else {
                self.begun.extend_from_slice(piece);
            }
            if ends {
                let line = std::mem::take(&mut self.begun);
                if std::mem::take(&mut self.skips) {
                    link.queue(&ToHost::Log(format!(
                        "a line to ${VARIABLE} of more than {MAX_QUESTION} bytes was left out"
                    )));
                } else {
                    self.ask(&line, link);
                }
            }
        }
    }

    fn ask(&mut self, line: &[u8], link: &mut Link) {
        let Some(question) = question(line) else {
            link.queue(&ToHost::Log(format!(
                "{:?} was written to ${VARIABLE}, which takes lines such as \"mark TEXT\"",
                text::lossy(line)
            )));
            return;
        };
        if !self.refused {
            self.next += 1;
            link.queue(&ToHost::Ask { number: self.next, question });
        }
    }

    /// The host has answered.
    pub(crate) fn answered(&mut self, number: u32, done: bool) {
        self.refused |= !done && number <= self.next;
    }

    /// A session begins: what was under way in the one before is nobody's.
    pub(crate) fn begin(&mut self) {
        *self = Self { path: self.path.take(), pipe: self.pipe.take(), ..Self::default() };
    }
}

fn question(line: &[u8]) -> Option<Question> {
    let line = text::lossy(line);
    let (word, rest) = line.trim().split_once(char::is_whitespace)?;
    (word == "mark").then(|| Question::Mark(rest.trim_start().to_owned()))
}

fn make(path: &Path) -> Result<OwnedFd, Errno> {
    let open = || {
        // For writing too: it never comes to an end while nobody else has it open.
        let pipe = rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let is_pipe = FileType::from_raw_mode(rustix::fs::fstat(&pipe)?.st_mode) == FileType::Fifo;
        if is_pipe { Ok(pipe) } else { Err(Errno::INVAL) }
    };
    if let Ok(pipe) = open() {
        return Ok(pipe);
    }
    if let Some(parent) = path.parent() {
        let _ = rustix::fs::mkdir(parent, Mode::from_raw_mode(0o755));
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o622), 0)?;
    // Whatever the file mode creation mask is.
    rustix::fs::chmod(path, Mode::from_raw_mode(0o622))?;
    open()
}

fn is_at(pipe: &OwnedFd, path: &Path) -> bool {
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    rustix::fs::fstat(pipe).is_ok_and(|own| rustix::fs::lstat(path).is_ok_and(|there| id(there) == id(own)))
}
