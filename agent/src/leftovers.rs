//! What earlier commands left in a guest that others use after them: processes, and mounts that are not as they were.
//!
//! A process is named by its number and the time of its start, for numbers come again. Everything that was there when the first
//! test began belongs to the guest, and so do workers that a daemon among these makes of itself, and what systemd starts anew of its units. Whatever else runs
//! when a test is over is ended: by its own parent or not, in whatever session, control group or namespace it hides, but for one that goes into the group of
//! a service that was there.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use belljar_proto::message::{Leftovers, MAX_NAMED, Mount, MountMode, RELAY_NAME, Source};
use rustix::io::Errno;
use rustix::process::{WaitOptions, getpid};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::disk_state::DiskStates;
use crate::disk_use::DiskUses;
use crate::systemd::System;
use crate::{mount_table, sys, text, watchdogs};

/// How long processes have to end after they were killed: the kernel may have much memory to take back.
const DYING: Duration = Duration::from_secs(10);
/// Two clocks that are read one after the other differ by less, in milliseconds.
const JITTER: i64 = 500;
/// How often killed processes are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// `PF_KTHREAD` of the kernel's `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// File systems that every test may count on, and the agent too.
const SYSTEM: &[&str] = &["/", "/proc", "/sys", "/dev", "/run", "/tmp"];

/// What belongs to the guest.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Baseline {
    /// Number and start of each process.
    processes: Vec<(i32, u64)>,
    /// Those of them that somebody has stopped.
    stopped: Vec<(i32, u64)>,
    places: Vec<Mounted>,
    /// Where the shares are.
    shares: Vec<String>,
    mounts: Vec<mount_table::Mounted>,
    /// Watchdogs that run.
    watchdogs: Vec<String>,
    disks: DiskUses,
    states: DiskStates,
    /// What is systemd's, where it is the first process.
    system: Option<System>,
}

/// What is mounted somewhere.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mounted {
    at: String,
    device: u64,
    read_only: bool,
}

impl Mounted {
    fn at(path: &str) -> Result<Self, Errno> {
        let device = rustix::fs::stat(path)?.st_dev;
        let flags = rustix::fs::statvfs(path)?.f_flag;
        Ok(Self { at: path.to_owned(), device, read_only: flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) })
    }

    /// What has become of it, where it is not as it was.
    fn change(&self) -> Option<String> {
        match Self::at(&self.at) {
            Ok(now) if now == *self => None,
            Ok(now) if now.device == self.device => {
                Some(format!("{} (mounted {} now)", self.at, if now.read_only { "read-only" } else { "writable" }))
            }
            // What FUSE answers when the relay, or whoever it passes requests to, has ended.
            Err(Errno::NOTCONN | Errno::CONNABORTED) => Some(format!("{} (what serves it has ended)", self.at)),
            _ => Some(format!("{} (unmounted, or something else is mounted there)", self.at)),
        }
    }
}

/// File systems whose devices Linux does not set up again when it wakes.
const LOST_IN_SLEEP: &[&str] = &["9p", "virtiofs"];

/// The shares that are written to, as they are mounted now.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Shares {
    written: Vec<Mounted>,
    /// What was mounted when they had been.
    mounts: Vec<mount_table::Mounted>,
    /// For how long the guest had been suspended, in milliseconds.
    slept: i64,
    /// Nothing is mounted that a suspended guest loses.
    lasting: bool,
}

impl Shares {
    pub(crate) fn of(mounts: &[Mount]) -> Self {
        let written = mounts.iter().filter(|mount| mount.mode == MountMode::ReadWrite);
        let written: Vec<Mounted> = written.filter_map(|mount| Mounted::at(&mount.path).ok()).collect();
        // A container's are the host's own directories, whatever these are on.
        let of_engine = |mount: &Mount| matches!(mount.sources[..], [Source::Engine { .. }]);
        let of_host = !mounts.is_empty() && mounts.iter().all(of_engine);
        let mounts = mount_table::read();
        let lasting = of_host || !mounts.iter().any(|mount| LOST_IN_SLEEP.contains(&mount.kind()));
        Self { written, mounts, slept: slept(), lasting }
    }

    /// Whether the guest was suspended since they were mounted, and they did not survive it: whoever touches such a share then waits for ever.
    pub(crate) fn are_dead(&self) -> bool {
        !self.lasting && slept() - self.slept > JITTER
    }

    /// Those that are not as they were.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.written.iter().filter_map(Mounted::change).collect()
    }

    /// Places in them that something else was mounted over.
    pub(crate) fn covered(&self) -> Vec<String> {
        let mut places = mount_table::covering(self.written.iter().map(|share| share.at.as_str()), &self.mounts);
        places.truncate(MAX_NAMED);
        places
    }
}

/// For how long the guest has been suspended in all, in milliseconds: one of its clocks goes on meanwhile and one does not.
fn slept() -> i64 {
    let millis = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    };
    millis(ClockId::Boottime) - millis(ClockId::Monotonic)
}

/// One process of the guest.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    start: u64,
    name: String,
    pub(crate) dead: bool,
    pub(crate) stopped: bool,
    /// It runs, waits for a processor, or for a disk.
    pub(crate) busy: bool,
    /// How long it and its children that have ended have run, in the kernel's ticks (proc_pid_stat(5), fields 14 to 17).
    pub(crate) ran: u64,
}

impl Process {
    /// `None`: a thread of the kernel's, or gone.
    fn read(pid: i32) -> Option<Self> {
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
            // Something that is mounted over it hides nothing.
            let hidden = sys::kill(pid, 0).is_ok();
            let name = "one that hides".to_owned();
            return hidden.then_some(Self {
                pid,
                parent: 0,
                start: 0,
                name,
                dead: false,
                stopped: false,
                busy: false,
                ran: 0,
            });
        };
        Self::parse(pid, &text::lossy(&stat))
    }

    fn parse(pid: i32, stat: &str) -> Option<Self> {
        // The name is in parentheses and may contain some.
        let (before, fields) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        if number(6)? & KERNEL_THREAD != 0 {
            return None;
        }
        let state = *fields.first()?;
        let (dead, stopped, busy) = (matches!(state, "Z" | "X"), state == "T", matches!(state, "R" | "D"));
        let ran = (11..=14).filter_map(number).fold(0, u64::saturating_add);
        Some(Self { pid, parent: i32::try_from(number(1)?).ok()?, start: number(19)?, name, dead, stopped, busy, ran })
    }

    /// Whether it has ended, and only nobody has waited for it yet.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead
    }

    /// What no other process has, even if its number comes again.
    pub(crate) fn key(&self) -> (i32, u64) {
        (self.pid, self.start)
    }

    fn shown(&self) -> String {
        format!("{} ({})", self.name, self.pid)
    }
}

/// Every process but the kernel's threads.
pub(crate) fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Process::read).collect()
}

/// Has relays of shares go on that somebody has stopped: whoever looks at a share of theirs would wait for ever.
pub(crate) fn wake_relays() {
    for relay in processes().iter().filter(|process| process.stopped && process.name == RELAY_NAME) {
        let _ = sys::kill(relay.pid, libc::SIGCONT);
    }
}

/// The file that a process runs.
fn program(pid: i32) -> Option<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}

/// Numbers of the ports to the host, as `major:minor`.
fn ports() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/virtio-ports") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("dev")).ok());
    numbers.map(|number| number.trim().to_owned()).collect()
}

/// Whether a process has one of these ports open, which two cannot have at a time.
fn has_port(pid: i32, ports: &[String]) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    // By its number, for the name by which it was opened may be gone.
    let devices = open.flatten().filter_map(|entry| fs::metadata(entry.path()).ok()).map(|file| file.rdev());
    devices
        .filter(|device| *device != 0)
        .any(|device| ports.contains(&format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))))
}

impl Baseline {
    /// What there is now. With `own_only` it is not a guest, whose systemd is somebody else's.
    pub(crate) fn now(mounts: &[Mount], own_only: bool) -> Self {
        let shares = mounts.iter().map(|mount| mount.path.as_str());
        // Before the processes are looked at, of which it starts some.
        let system = if own_only { None } else { System::now() };
        let all = processes();
        Self {
            system,
            processes: all.iter().map(Process::key).collect(),
            stopped: all.iter().filter(|process| process.stopped).map(Process::key).collect(),
            places: SYSTEM.iter().copied().chain(shares.clone()).filter_map(|path| Mounted::at(path).ok()).collect(),
            shares: shares.map(str::to_owned).collect(),
            mounts: mount_table::read(),
            watchdogs: if own_only { Vec::new() } else { watchdogs::running() },
            disks: if own_only { DiskUses::default() } else { DiskUses::now() },
            states: if own_only { DiskStates::default() } else { DiskStates::now() },
        }
    }

    /// Shares were mounted anew: what is mounted there now belongs to the guest, and who serves it.
    pub(crate) fn remounted(&mut self, mounts: &[Mount]) {
        let shares: Vec<String> = mounts.iter().map(|mount| mount.path.clone()).collect();
        self.places.retain(|place| !shares.contains(&place.at));
        self.places.extend(shares.iter().filter_map(|path| Mounted::at(path).ok()));
        mount_table::renew(&mut self.mounts, &shares);
        self.shares = shares;
        let (of_agent, ports) = (program(getpid().as_raw_nonzero().get()), ports());
        let is_relay = |process: &Process| {
            process.name == RELAY_NAME && program(process.pid) == of_agent && has_port(process.pid, &ports)
        };
        self.processes.extend(processes().iter().filter(|process| is_relay(process)).map(Process::key));
    }

    /// Ends what does not belong to the guest, and says what else is not as it was. With `own_only` nothing is touched but what descends
    /// from the agent.
    pub(crate) fn restore(&mut self, own_only: bool) -> Leftovers {
        wake_relays();
        let mut found =
            Leftovers { left: self.places.iter().filter_map(Mounted::change).collect(), ..Leftovers::default() };
        if found.left.is_empty() && !own_only {
            found.left = mount_table::changes(&self.shares, &self.mounts);
        }
        if !found.left.is_empty() {
            // Without /proc nothing is seen; the guest is of no use either way.
            found.left.truncate(MAX_NAMED);
            return found;
        }
        if let Some(system) = self.system.as_mut().filter(|_| !own_only) {
            let units = system.restore();
            found.stopped_count = u32::try_from(units.stopped.len()).unwrap_or(u32::MAX);
            found.stopped = units.stopped.into_iter().take(MAX_NAMED).collect();
            found.gone_count = u32::try_from(units.gone.len()).unwrap_or(u32::MAX);
            found.gone = units.gone.into_iter().take(MAX_NAMED).collect();
            found.left = units.left;
            if !found.left.is_empty() {
                return found;
            }
        }
        let until = Instant::now() + DYING;
        let own = getpid().as_raw_nonzero().get();
        let of_agent = program(own);
        let is_agent = |pid| of_agent.is_some() && program(pid) == of_agent;
        let mut killed: Vec<(i32, u64)> = Vec::new();
        loop {
            let all = processes();
            let strangers = self.strangers(&all, own_only);
            if strangers.is_empty() {
                let survivors = all.iter().filter(|process| !process.dead && !killed.contains(&process.key()));
                self.processes = survivors.map(Process::key).collect();
                if !own_only {
                    found.left = self.stopped_since(&all);
                    // Now, for one that was stopped in order when its program ended does not run.
                    found.left.extend(watchdogs::started(&self.watchdogs));
                    if found.left.is_empty() {
                        found.disks = self.disks.since();
                        found.kept = self.disks.kept();
                        found.changed = self.states.changed_since();
                    }
                }
                break;
            }
            if Instant::now() >= until {
                let shown = |p: &&Process| format!("the process {}, which does not end", p.shown());
                found.left = strangers.iter().take(MAX_NAMED).map(shown).collect();
                break;
            }
            // Stopped first, so that none makes others while these are killed.
            for signal in [libc::SIGSTOP, libc::SIGKILL] {
                for process in &strangers {
                    let _ = sys::kill(process.pid, signal);
                }
            }
            for process in strangers {
                if killed.contains(&process.key()) {
                    continue;
                }
                killed.push(process.key());
                // Not a test's: the agent's own helper, whose work is done and which has not ended yet.
                if process.parent == own && is_agent(process.pid) {
                    continue;
                }
                found.killed_count += 1;
                if found.killed.len() < MAX_NAMED {
                    found.killed.push(process.shown());
                }
            }
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
            sys::poll(&mut [], Some(LOOK));
        }
        found
    }

    /// What belongs to the guest and has been stopped, so that whoever asks it something waits for ever.
    fn stopped_since(&self, all: &[Process]) -> Vec<String> {
        let is_new = |process: &&Process| process.stopped && !self.stopped.contains(&process.key());
        let shown = |process: &Process| format!("the process {}, which somebody has stopped", process.shown());
        all.iter().filter(is_new).take(MAX_NAMED).map(shown).collect()
    }

    /// Which of these do not belong to the guest.
    fn strangers<'a>(&self, all: &'a [Process], own_only: bool) -> Vec<&'a Process> {
        let own = getpid().as_raw_nonzero().get();
        let by_pid: HashMap<i32, &Process> = all.iter().map(|process| (process.pid, process)).collect();
        let belongs = |process: &Process| self.processes.contains(&process.key());
        let above = |process: &Process| {
            let mut line = Vec::new();
            let mut at = process.parent;
            while let Some(parent) = by_pid.get(&at) {
                line.push(*parent);
                at = parent.parent;
                if line.len() > all.len() {
                    break;
                }
            }
            line
        };
        let is_worker = |process: &Process| {
            let daemon = above(process).into_iter().find(|parent| belongs(parent));
            daemon.is_some_and(|daemon| {
                daemon.pid != 1 && daemon.pid != own && {
                    let of_daemon = program(daemon.pid);
                    of_daemon.is_some() && of_daemon == program(process.pid)
                }
            })
        };
        all.iter()
            .filter(|process| process.pid != own && process.pid != 1 && !process.dead && !belongs(process))
            .filter(|process| !own_only || above(process).iter().any(|parent| parent.pid == own))
            .filter(|process| !is_worker(process))
            .filter(|process| !self.system.as_ref().is_some_and(|system| system.has(process.pid, process.parent)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, start: 7, name: "x".into(), dead: false, stopped: false, busy: false, ran: 0 }
    }

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name() {
        let stat = "412 (a) b (c)) S 1 412 412 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 99887 0 0";
        let read = Process::parse(412, stat).unwrap();
        assert_eq!((read.parent, read.start, read.name.as_str(), read.dead), (1, 99887, "a) b (c)", false));
        let stopped = |state: &str| Process::parse(412, &stat.replace(" S ", state)).unwrap().stopped;
        assert_eq!((stopped(" S "), stopped(" T "), stopped(" t ")), (false, true, false));
        let kernel = stat.replace("4194560", "2129984");
        assert!(Process::parse(412, &kernel).is_none());
        for broken in ["", "412 (x", "412 (x) S", "412 (x) S a b c"] {
            assert!(Process::parse(412, broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn whatever_came_later_is_a_stranger() {
        let own = getpid().as_raw_nonzero().get();
        let baseline = Baseline { processes: vec![(1, 7), (own, 7), (50, 7)], ..Baseline::default() };
        // A number that was used again, a child of the first process, one of the agent, one of a daemon's that runs another program.
        let mut again = process(60, 1);
        again.start = 8;
        let all = [process(1, 0), process(own, 1), process(50, 1), again, process(61, own), process(62, 50)];
        let pids = |own_only| baseline.strangers(&all, own_only).iter().map(|p| p.pid).collect::<Vec<_>>();
        assert_eq!(pids(false), [60, 61, 62]);
        assert_eq!(pids(true), [61]);
    }

    #[test]
    fn what_was_stopped_since_is_named() {
        let stopped = |pid| Process { stopped: true, ..process(pid, 1) };
        let baseline =
            Baseline { processes: vec![(50, 7), (51, 7), (52, 7)], stopped: vec![(50, 7)], ..Baseline::default() };
        let named = baseline.stopped_since(&[stopped(50), stopped(51), process(52, 1)]);
        assert_eq!(named, ["the process x (51), which somebody has stopped"]);
    }

    #[test]
    fn a_share_that_is_not_where_it_was_is_named() {
        let mounted = Mounted::at("/proc").unwrap();
        assert_eq!(mounted.change(), None);
        let gone = Mounted { device: mounted.device + 1, ..Mounted::at("/proc").unwrap() };
        assert!(gone.change().unwrap().starts_with("/proc (unmounted"));
        let other = Mounted { read_only: !mounted.read_only, ..Mounted::at("/proc").unwrap() };
        assert!(other.change().unwrap().contains("/proc (mounted "));
        let nowhere = Mounted { at: "/no/such/place".into(), device: 1, read_only: false };
        assert!(nowhere.change().is_some());
    }
}
