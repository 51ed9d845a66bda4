//! Work that may take long, such as loading modules and writing back a share: done in a child process, so that
//! the agent goes on answering.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::sys;

/// Most bytes that a job may report.
const MAX_REPORT: usize = 60 * 1024;

/// What the job is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Setup,
    Sync,
    Quiesce,
    /// Loads a kernel.
    Kexec,
    /// Asks for a new beginning of all programs.
    SoftReboot,
}

/// A job under way.
pub(crate) struct Job {
    pub(crate) kind: Kind,
    pid: Pid,
    pub(crate) report: OwnedFd,
    bytes: Vec<u8>,
    pub(crate) deadline: Option<Instant>,
    /// Its report was taken.
    pub(crate) done: bool,
}

impl Job {
    /// Runs `work` in a child; what it gives comes with [`poll`](Self::poll).
    pub(crate) fn start(kind: Kind, limit: Option<Duration>, work: impl FnOnce() -> Vec<u8>) -> Result<Self, Errno> {
        let (report, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        if let Some(pid) = sys::fork()? {
            rustix::io::ioctl_fionbio(&report, true)?;
            return Ok(Self {
                kind,
                pid,
                report,
                bytes: Vec::new(),
                deadline: limit.map(|limit| Instant::now() + limit),
                done: false,
            });
        }
        let bytes = work();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&tell, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        sys::exit_now(0)
    }

    /// The report, once it is whole.
    pub(crate) fn poll(&mut self) -> Option<&[u8]> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.report, &mut buffer) {
                Ok(0) => break,
                Ok(read) if self.bytes.len() + read <= MAX_REPORT => {
                    self.bytes.extend_from_slice(&buffer[..read]);
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => break,
            }
        }
        self.done = true;
        Some(&self.bytes)
    }

    pub(crate) fn kill(&self) {
        let _ = sys::kill(self.pid.as_raw_nonzero().get(), libc::SIGKILL);
    }
}
