//! Whether those who have an ended command's output open are at work.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::getpid;

use crate::leftovers::processes;

/// How often is looked while such a process says nothing.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Whether a process that has one of `pipes` open runs, or waits for a processor or for a disk.
///
/// Silence is no sign of an end while that is so: a guest whose host has little time for it may take seconds to start a program. `false`
/// also where `/proc` does not tell.
pub(crate) fn is_at_work<'a>(pipes: impl Iterator<Item = BorrowedFd<'a>>) -> bool {
    let names: Vec<PathBuf> = pipes
        .filter_map(|pipe| rustix::fs::fstat(pipe).ok())
        .map(|stat| PathBuf::from(format!("pipe:[{}]", stat.st_ino)))
        .collect();
    let ours = getpid().as_raw_nonzero().get();
    processes().iter().filter(|process| process.busy && process.pid != ours).any(|process| {
        let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| names.contains(&target))
    })
}
