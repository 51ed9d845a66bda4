//! What programs in the guest ask of the host, a line each, by a named pipe: any user and any language can write to one, wherever it is
//! mounted, and nothing has to be executed.
//!
//! A line is a word and what goes with it: `mark TEXT`, `disk NAME ORDER`, `reboot MARK`. Lines of up to `PIPE_BUF` bytes (pipe(7)) of several writers do
//! not mix. Who wants to know what came of it writes `>NAME ` before it, and finds the answer in a file of that name ([`answers`]); the
//! program `belljar-ctl` does both ([`ctl`]).

pub(crate) mod answers;
pub(crate) mod ctl;

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use belljar_proto::message::{MAX_QUESTION, Outcome, Question, ToHost};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::disk_names::DiskNames;
use crate::link::Link;
use crate::spawn::DEFAULT_PATH;
use crate::text;
use answers::Answers;

/// Where the pipe is in a guest.
pub(crate) const PATH: &str = "/run/belljar/control";
/// The variable that tells commands where it is.
const VARIABLE: &str = "BELLJAR_CTL";
/// Bytes that are taken at a time.
const FULL: usize = 64 << 10;
/// Questions that the host has not answered, above which no more of the pipe is read: whoever writes to it waits then. What is read at a time may be
/// some more.
const MAX_UNANSWERED: usize = 256;

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
    /// How many of them the host has not answered.
    unanswered: usize,
    /// Bytes that were taken out of the pipe.
    taken: u64,
    /// The host takes no more marks in this session.
    full: bool,
    /// Who waits for an answer, and where.
    waiting: Answers,
    /// `belljar-ctl` is there.
    has_program: bool,
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
        if self.pipe.is_some() && path.as_os_str() == PATH {
            self.has_program = ctl::install();
        }
    }

    /// Puts the names there by which tests of other harnesses ask for a reboot.
    pub(crate) fn offer_reboots(&self) {
        if self.has_program {
            ctl::install_names();
        }
    }

    /// The pipe, to be waited for as long as more questions may be asked.
    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref().filter(|_| self.has_room())
    }

    fn has_room(&self) -> bool {
        self.unanswered < MAX_UNANSWERED
    }

    /// Up to where the pipe was written to until now, to be told by [`is_told`](Self::is_told).
    pub(crate) fn written(&self) -> u64 {
        let waiting = self.pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
        self.taken + waiting.unwrap_or(0)
    }

    /// Whether all that was written up to there is on its way to the host.
    pub(crate) fn is_told(&self, written: u64) -> bool {
        self.taken >= written || self.pipe.is_none()
    }

    /// The environment of commands, made of the agent's own.
    pub(crate) fn environment(&self, own: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut env = own.to_vec();
        let Some(path) = self.path.as_ref().filter(|_| self.pipe.is_some()) else { return env };
        env.push([VARIABLE.as_bytes(), b"=", path.as_os_str().as_encoded_bytes()].concat());
        if self.has_program {
            let at = env.iter().position(|entry| entry.starts_with(b"PATH=")).unwrap_or_else(|| {
                env.push([b"PATH=", DEFAULT_PATH].concat());
                env.len() - 1
            });
            env[at].extend_from_slice(b":");
            env[at].extend_from_slice(ctl::DIRECTORY.as_bytes());
        }
        env
    }

    /// Passes on what was written up to now. What only the guest knows, by `names`, is answered at once.
    pub(crate) fn pass_on(&mut self, link: &mut Link, names: &DiskNames) {
        let mut taken = 0;
        let mut buffer = [0; 4096];
        while taken < FULL && self.has_room() {
            let Some(pipe) = &self.pipe else { return };
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return,
                Ok(read) => {
                    taken += read;
                    self.taken += read as u64;
                    self.take(&buffer[..read], link, names);
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.pipe = None;
                    return;
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8], link: &mut Link, names: &DiskNames) {
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
                    self.ask(&line, link, names);
                }
            }
        }
    }

    fn ask(&mut self, line: &[u8], link: &mut Link, names: &DiskNames) {
        // The end of somebody's line that was not ended, perhaps.
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let (name, line) = answers::name_and_line(line);
        let question = question(line);
        // Of a name that is none nobody can be told.
        let (name, question) = match (name, question) {
            (Ok(name), Ok(question)) => (name, question),
            (Ok(Some(name)), Err(why)) => {
                self.waiting.put(self.path.as_deref(), &name, &Outcome::Refused(why));
                return;
            }
            (Ok(None), Err(why)) | (Err(_), Err(why)) | (Err(why), Ok(_)) => {
                link.queue(&ToHost::Log(format!("{:?} was written to ${VARIABLE}: {why}", text::lossy(line))));
                return;
            }
        };
        if self.full && matches!(question, Question::Mark(_)) {
            if let Some(name) = name {
                self.waiting.put(self.path.as_deref(), &name, &Outcome::Full);
            }
            return;
        }
        if let Question::Disk(text) = &question
            && let Some(answer) = devices(text, names)
        {
            name.iter().for_each(|name| self.waiting.put(self.path.as_deref(), name, &answer));
            return;
        }
        self.next += 1;
        self.unanswered += 1;
        if let Some(name) = name {
            if matches!(question, Question::Machine(_)) {
                answers::take(self.path.as_deref(), &name);
            }
            self.waiting.expect(self.next, name);
        }
        link.queue(&ToHost::Ask { number: self.next, question });
    }

    /// The host has answered.
    pub(crate) fn answered(&mut self, number: u32, answer: Outcome) {
        // What somebody outside has asked for.
        if number == 0 {
            return;
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        self.full |= answer == Outcome::Full && number <= self.next;
        let name = self.waiting.take(number);
        // Who has the machine go down does not live to hear of it.
        if let Some(name) = name.filter(|_| answer != Outcome::GoesDown) {
            self.waiting.put(self.path.as_deref(), &name, &answer);
        }
    }

    /// A session begins: what was under way in the one before is nobody's.
    pub(crate) fn begin(&mut self) {
        answers::clear(self.path.as_deref());
        *self =
            Self { path: self.path.take(), pipe: self.pipe.take(), has_program: self.has_program, ..Self::default() };
    }
}

/// By which device files the guest has a disk, if that is asked.
fn devices(text: &str, names: &DiskNames) -> Option<Outcome> {
    let (serial, word) = text.split_once(char::is_whitespace)?;
    if word.trim() != "device" {
        return None;
    }
    let found = names.devices(serial);
    Some(if found.is_empty() {
        let why = format!(
            "the guest has no disk {serial:?}: it is not plugged in, or its driver is not loaded (virtio_blk, nvme, sd_mod, ahci, usb_storage)"
        );
        Outcome::Refused(why)
    } else {
        Outcome::Done(found.into_iter().map(|device| device + "\n").collect())
    })
}

/// What a line asks for; or why it asks for nothing.
fn question(line: &[u8]) -> Result<Question, String> {
    Question::parse(&text::lossy(line))
}

/// Makes a directory of root's, which all may look into whatever the file mode creation mask is; one that is there already has to be root's, and nobody
/// else's to write to.
fn make_directory(directory: &Path) -> std::io::Result<()> {
    let made = std::fs::create_dir(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)));
    let found = std::fs::symlink_metadata(directory)?;
    let ours = rustix::process::geteuid().as_raw();
    if found.is_dir() && found.uid() == ours && found.mode() & 0o022 == 0 {
        Ok(())
    } else {
        made.and(Err(std::io::ErrorKind::PermissionDenied.into()))
    }
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
        let _ = make_directory(parent);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_disk_is_only_the_guest_knows() {
        let answer = |text| devices(text, &DiskNames::default());
        assert!(matches!(answer("data0  device "), Some(Outcome::Refused(why)) if why.contains("no disk \"data0\"")));
        for others in ["data0", "data0 error", "data0 device x", "device"] {
            assert_eq!(answer(others), None);
        }
    }
}
