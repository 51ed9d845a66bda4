//! What a process has used, from `/proc/PID/stat` (proc_pid_stat(5)).

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::Pid;

use super::child::Shared;
use crate::proc_stat;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct Stat {
    /// Of all threads, in user and kernel mode, guest included.
    pub(in crate::qemu) cpu: Duration,
    /// Bytes in memory.
    pub(in crate::qemu) rss: u64,
}

pub(in crate::qemu) fn read(pid: Pid) -> Option<Stat> {
    // The kernel gives all of it to one read that has room for it, and a few hundred bytes are the longest.
    let mut text = [0; 1024];
    let read = fs::File::open(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?.read(&mut text).ok()?;
    parse(&String::from_utf8_lossy(&text[..read]), clock_ticks_per_second(), page_size() as u64)
}

fn parse(text: &str, ticks_per_second: u64, page: u64) -> Option<Stat> {
    let mut fields = proc_stat::behind_name(text)?;
    // utime is field 14, stime 15, rss 24; the first one here is field 3.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let pages: u64 = fields.nth(8)?.parse().ok()?;
    let ticks = user.saturating_add(system);
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second.max(1));
    Some(Stat { cpu: Duration::from_nanos(u64::try_from(nanos).ok()?), rss: pages.saturating_mul(page) })
}

/// Reads one process, as long as its id is its own.
#[derive(Debug)]
pub(super) struct Usage(Arc<Shared>);

impl Usage {
    pub(super) fn of(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Stays at the last value when it has ended.
    pub(super) fn cpu_time(&mut self) -> Duration {
        let mut life = self.0.life();
        if !life.reaped
            && let Some(stat) = read(self.0.pid)
        {
            life.cpu = stat.cpu;
        }
        life.cpu
    }

    /// Time that its threads ran and waited for a processor (`/proc/PID/task/TID/schedstat`).
    pub(super) fn wanted_time(&self) -> Option<Duration> {
        let life = self.0.life();
        if life.reaped {
            return None;
        }
        let mut nanos = 0_u64;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.pid.as_raw_nonzero())).ok()?.flatten() {
            // A thread may end at any moment.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
            let (ran, waited) = (fields.next()?.ok()?, fields.next()?.ok()?);
            nanos = nanos.saturating_add(ran).saturating_add(waited);
        }
        Some(Duration::from_nanos(nanos))
    }

    /// `None` when it has ended.
    pub(super) fn rss(&self) -> Option<u64> {
        let life = self.0.life();
        if life.reaped { None } else { read(self.0.pid).map(|stat| stat.rss) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let text =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 100 1000000 25 18446744073709551615 1 1";
        assert_eq!(parse(text, 100, 4096), Some(Stat { cpu: Duration::from_secs(3), rss: 25 * 4096 }));
        for broken in ["", "7 (a", "7 (a) S 1 2", "7 (a) S 1 7 7 0 -1 4 100 0 0 0 x 50 0 0 20 0 3 0 100 1 25"] {
            assert_eq!(parse(broken, 100, 4096), None, "{broken}");
        }
    }

    #[test]
    fn our_own_can_be_read() {
        let stat = read(rustix::process::getpid()).unwrap();
        assert!(stat.rss > 0);
    }
}
