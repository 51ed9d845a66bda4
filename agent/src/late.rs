//! Whether those who have an ended command's output open are at work.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::getpid;

use crate::leftovers::{Process, processes};

/// How often is looked while such a process says nothing.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// How much longer than a look there is none.
pub(crate) const SHARE: u32 = 10;
/// Who ran for longer between two looks was at work, in the kernel's ticks of a hundredth of a second (`USER_HZ`).
const MOST: u64 = 3;

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// For how long they had run, all together, in ticks.
    ran: Option<u64>,
}

impl Seen {
    /// Looks whether a process that has one of `pipes` open runs, waits for a processor or for a disk, or has run since the last look.
    ///
    /// Silence is no sign of an end while that is so: a guest whose host has little time for it may take seconds to start a program. `false`
    /// also where `/proc` does not tell.
    pub(crate) fn at_work<'a>(&mut self, pipes: impl Iterator<Item = BorrowedFd<'a>>) -> bool {
        let names: Vec<PathBuf> = pipes
            .filter_map(|pipe| rustix::fs::fstat(pipe).ok())
            .map(|stat| PathBuf::from(format!("pipe:[{}]", stat.st_ino)))
            .collect();
        let ours = getpid().as_raw_nonzero().get();
        let has_open = |process: &&Process| {
            let open = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
            open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| names.contains(&target))
        };
        let all = processes();
        let others = || all.iter().filter(|process| process.pid != ours && !process.dead);
        // Who is seen at work at once need not be measured.
        if others().filter(|process| process.busy).any(|process| has_open(&process)) {
            self.ran = None;
            return true;
        }
        let ran = others().filter(has_open).map(|process| process.ran).fold(0, u64::saturating_add);
        let before = self.ran.replace(ran);
        before.is_some_and(|before| ran > before.saturating_add(MOST))
    }
}
