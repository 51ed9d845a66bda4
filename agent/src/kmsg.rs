//! The kernel's own record, `/dev/kmsg`: every message, whatever the console is set to show, and who wrote it.
//!
//! Readers have places of their own in it, so that `dmesg -C` takes nothing from this one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use belljar_proto::kernel::{may_matter, record};
use belljar_proto::message::{KernelLine, KernelNews, ToHost};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::disk_names::DiskNames;
use crate::link::Link;
use crate::text;

const RECORD: &str = "/dev/kmsg";
const TAINTED: &str = "/proc/sys/kernel/tainted";
/// Longest record that the kernel gives out, with room to spare (`CONSOLE_EXT_LOG_MAX`).
const MAX_RECORD: usize = 16 * 1024;
/// Longest text that is passed on, in bytes.
const MAX_TEXT: usize = 512;
/// Most lines that are passed on: a flood of them says no more than its beginning.
const MAX_LINES: u32 = 2000;
/// Most records read before something else has its turn.
const AT_ONCE: usize = 512;

/// A place in the kernel's record.
pub(crate) struct KernelRecord {
    fd: Result<OwnedFd, Errno>,
    /// Number of the next record; none before the first.
    next: Option<u64>,
    passed_on: u32,
    /// Lines that may matter and were not passed on.
    cut: u32,
    /// The kernel's flags when the agent began.
    tainted: u64,
}

impl KernelRecord {
    /// From here on.
    pub(crate) fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(RECORD, flags, Mode::empty())
            .and_then(|fd| rustix::fs::seek(&fd, SeekFrom::End(0)).map(|_| fd));
        Self { fd, next: None, passed_on: 0, cut: 0, tainted: tainted().unwrap_or(0) }
    }

    /// No place at all.
    pub(crate) fn none() -> Self {
        Self::inherited(None, 0)
    }

    /// Goes on where another process of the agent was.
    pub(crate) fn inherited(fd: Option<OwnedFd>, tainted: u64) -> Self {
        Self { fd: fd.ok_or(Errno::BADF), next: None, passed_on: 0, cut: 0, tainted }
    }

    /// What [`inherited`](Self::inherited) needs.
    pub(crate) fn parts(&self) -> (Option<BorrowedFd<'_>>, u64) {
        (self.fd.as_ref().ok().map(AsFd::as_fd), self.tainted)
    }

    /// What is to be waited for.
    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref().ok()
    }

    /// As many lines are passed on from here on as ever.
    pub(crate) fn begin(&mut self) {
        (self.passed_on, self.cut) = (0, 0);
    }

    /// How many lines that may matter were not passed on since.
    pub(crate) fn cut(&self) -> u32 {
        self.cut
    }

    /// What the host is told at the beginning of a session.
    pub(crate) fn introduce(&mut self, link: &mut Link) {
        self.begin();
        let news = match &self.fd {
            Ok(_) => KernelNews::Watched,
            Err(errno) => KernelNews::Unreadable(format!("open {RECORD}: {}", text::errno(*errno))),
        };
        link.queue(&ToHost::Kernel(news));
    }

    /// Passes on what is there; `names` says which disks a line is of. `true`: there is more.
    pub(crate) fn pass_on(&mut self, link: &mut Link, names: &mut DiskNames) -> bool {
        let Ok(fd) = &self.fd else { return false };
        let mut buffer = [0; MAX_RECORD];
        let mut lost = 0;
        let mut unknown = false;
        let mut more = true;
        for _ in 0..AT_ONCE {
            let read = match rustix::io::read(fd, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => {
                    more = false;
                    break;
                }
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                // Records were overwritten; the next read gives the oldest that is left.
                Err(Errno::PIPE) => {
                    unknown = true;
                    continue;
                }
                // One that is longer than any kernel writes is passed over.
                Err(Errno::INVAL) => continue,
                Err(errno) => {
                    let why = format!("read {RECORD}: {}", text::errno(errno));
                    self.fd = Err(errno);
                    link.queue(&ToHost::Kernel(KernelNews::Unreadable(why)));
                    return false;
                }
            };
            let Some(record) = record(&buffer[..read]) else { continue };
            if let Some(next) = self.next {
                lost += record.sequence.saturating_sub(next);
            }
            self.next = Some(record.sequence + 1);
            names.read_at(record.time);
            let line = text::lossy(&record.text[..record.text.len().min(MAX_TEXT)]);
            if !record.by_kernel || !may_matter(&line) {
                continue;
            }
            if self.passed_on < MAX_LINES {
                self.passed_on += 1;
                let devices = names.of_line(&line, record.time);
                link.queue(&ToHost::Kernel(KernelNews::Line(KernelLine { text: line, devices })));
            } else {
                self.cut = self.cut.saturating_add(1);
            }
        }
        if lost > 0 || unknown {
            let tainted = tainted().unwrap_or(0) & !self.tainted;
            link.queue(&ToHost::Kernel(KernelNews::Lost { records: lost.max(1), tainted }));
        }
        more
    }
}

/// The kernel's flags (its `Documentation/admin-guide/tainted-kernels.rst`). Their file is held open, so that nobody can have it gone, or another in
/// its place.
///
/// # Errors
/// Why they cannot be read.
pub(crate) fn tainted() -> Result<u64, String> {
    static FLAGS: OnceLock<OwnedFd> = OnceLock::new();
    let failed = |errno: Errno| format!("read {TAINTED}: {}", text::errno(errno));
    let fd = match FLAGS.get() {
        Some(fd) => fd,
        None => {
            let opened = rustix::fs::open(TAINTED, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
            FLAGS.get_or_init(|| opened)
        }
    };
    let mut buffer = [0; 32];
    let read = rustix::io::pread(fd, &mut buffer, 0).map_err(failed)?;
    let flags = std::str::from_utf8(&buffer[..read]).ok().and_then(|text| text.trim().parse().ok());
    flags.ok_or_else(|| format!("read {TAINTED}: it has no number"))
}
