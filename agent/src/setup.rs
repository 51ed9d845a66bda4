//! What the host asks for before the first command, and when it ends: shares, the clock, writing back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use belljar_proto::frame::{from_bytes, to_bytes};
use belljar_proto::message::{
    Mount, MountFault, MountMode, Quiesce, Setup, SetupReport, Source, SyncFault, SyncReport,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::time::{ClockId, Timespec};

use crate::job::{Job, Kind};
use crate::leftovers;
use crate::share::disk::Unpacked;
use crate::{modules, mounts, network, plain, share, sys, text};

/// How long writing back may take before the host is told that it did not happen.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// The same where all that was written has to be copied. The host waits for less.
const COPY_LIMIT: Duration = Duration::from_secs(1200);
/// How long who holds a share may take to end after it was killed, and how often that is looked at.
const HOLDERS_DIE: Duration = Duration::from_secs(5);
const HOLDERS_LOOK: Duration = Duration::from_millis(20);
/// Most mounts that are told of.
const MAX_LEFT: usize = 20;
/// A clock that is off by less is left alone: setting it is a jump for everything that runs.
const CLOCK_TOLERANCE_NS: u128 = 1_000_000_000;

/// Mounts the shares in a process of its own. `old` are those that an earlier setup mounted.
pub(crate) fn start(
    setup: Setup,
    old: &[Mount],
    before: Option<&Unpacked>,
    unpacked: Option<&Unpacked>,
) -> Result<Job, Errno> {
    Job::start(Kind::Setup, None, || to_bytes(&mount_all(&setup.mounts, old, before, unpacked)).unwrap_or_default())
}

/// Mounts the shares in place of `old`, of which `before` is known what came on a disk.
pub(crate) fn mount_all(
    wanted: &[Mount],
    old: &[Mount],
    before: Option<&Unpacked>,
    unpacked: Option<&Unpacked>,
) -> SetupReport {
    for mount in old.iter().rev() {
        let _ = rustix::mount::unmount(mount.path.as_str(), UnmountFlags::DETACH);
    }
    share::not_let_go(old.iter().flat_map(|mount| &mount.sources));
    before.into_iter().for_each(Unpacked::discard);
    share::mount_all(wanted, unpacked)
}

/// Makes directories that everybody may write to; gives why some could not be made.
pub(crate) fn make_directories(wanted: &[String]) -> Vec<String> {
    let make = |path: &String| {
        mounts::make_directory(path)?;
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(0o1777))
            .map_err(|errno| format!("chmod {path}: {}", text::errno(errno)))
    };
    wanted.iter().filter_map(|path| make(path).err()).collect()
}

/// Makes the directory in which commands run that are not told otherwise, root's and open to read; gives why it could not be made.
pub(crate) fn make_working_dir(path: &str) -> Result<(), String> {
    mounts::make_all(path).map_err(|(at, errno)| {
        format!("the image's WORKDIR {path} is missing and cannot be made: mkdir {at}: {}", text::errno(errno))
    })
}

/// Unmounts everything of the host's, has what later mounts need, and waits for the network cards; `addressed` as for
/// [`network::settle`].
pub(crate) fn start_quiesce(
    wanted: Quiesce,
    old: &[Mount],
    unpacked: Option<&Unpacked>,
    addressed: bool,
) -> Result<Job, Errno> {
    Job::start(Kind::Quiesce, Some(SYNC_LIMIT), || {
        let mut left = Vec::new();
        if wanted.end_holders {
            end_holders(&old.iter().flat_map(share::places).collect::<Vec<_>>());
        }
        let shares = old.iter().rev().flat_map(share::places).map(|path| (path, true));
        for (path, is_share) in wanted.unmount.iter().map(|path| (path.clone(), false)).chain(shares) {
            let path = path.as_str();
            if rustix::mount::unmount(path, UnmountFlags::empty()) == Err(Errno::BUSY) {
                let holder = if is_share { holder(path) } else { None };
                left.extend(holder.map(|holder| format!("{path}, held by {holder}")));
                let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            }
        }
        unpacked.into_iter().for_each(Unpacked::discard);
        share::load(&wanted.shares);
        if wanted.overlay && !share::is_known("overlay") {
            modules::load(&["overlay"]);
        }
        network::settle(addressed);
        // What the guest still has to write, each of its copies would.
        if wanted.sync {
            rustix::fs::sync();
        }
        left.extend(share::mounted());
        if left.is_empty() {
            left = share::not_let_go(old.iter().flat_map(|mount| &mount.sources));
        }
        left.truncate(MAX_LEFT);
        to_bytes(&left).unwrap_or_default()
    })
}

/// The processes that have their directory or an open file there.
fn holders(path: &Path) -> impl Iterator<Item = i32> {
    let is_there = move |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(move |pid: &i32| {
        let dir = Path::new("/proc").join(pid.to_string());
        let files = || fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().any(|file| is_there(&file.path()));
        ["cwd", "root", "exe"].iter().any(|name| is_there(&dir.join(name))) || files()
    })
}

/// A process that has its directory or an open file there.
fn holder(path: &str) -> Option<String> {
    let pid = holders(Path::new(path)).next()?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (process {pid})", text::lossy(name.trim_ascii())))
}

/// Ends what commands have left behind in these places: what is in the agent's own control group, as they were.
fn end_holders(places: &[String]) {
    let group = |pid: i32| fs::read(format!("/proc/{pid}/cgroup"));
    let (own, agent) = (std::process::id().cast_signed(), std::os::unix::process::parent_id().cast_signed());
    let Ok(ours) = group(agent) else { return };
    let until = Instant::now() + HOLDERS_DIE;
    loop {
        let left: Vec<i32> = places
            .iter()
            .flat_map(|place| holders(Path::new(place)))
            .filter(|pid| ![own, agent].contains(pid) && group(*pid).is_ok_and(|theirs| theirs == ours))
            .collect();
        if left.is_empty() || Instant::now() >= until {
            return;
        }
        for pid in left {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        sys::poll(&mut [], Some(HOLDERS_LOOK));
    }
}

/// Where something of the host's is still mounted.
pub(crate) fn left(report: &[u8]) -> Vec<String> {
    from_bytes(report).unwrap_or_else(|_| vec!["the agent's helper that unmounts died".into()])
}

/// What the setup's job reported.
pub(crate) fn report(report: &[u8]) -> SetupReport {
    let died = || MountFault::Failed { detail: "the agent's helper that mounts died".into() };
    from_bytes(report).unwrap_or_else(|_| SetupReport { faults: vec![(0, died())], ..SetupReport::default() })
}

/// Writes the shares back.
pub(crate) fn start_sync(mounts: &[Mount], unpacked: Option<&Unpacked>) -> Result<Job, Errno> {
    // The report comes of a look at the shares, which this process takes itself.
    leftovers::wake_relays();
    let limit = if unpacked.is_some() { COPY_LIMIT } else { SYNC_LIMIT };
    Job::start(Kind::Sync, Some(limit), || {
        let report = match unpacked {
            Some(unpacked) => unpacked.bring_back(),
            None => SyncReport { fault: sync_all(mounts).map(SyncFault::Failed), returned: None },
        };
        to_bytes(&report).unwrap_or_default()
    })
}

fn sync_all(mounts: &[Mount]) -> Option<String> {
    let written = mounts.iter().filter(|mount| mount.mode == MountMode::ReadWrite);
    let failed: Vec<String> = written
        .filter_map(|mount| {
            if matches!(mount.sources[..], [Source::Engine { .. }]) {
                // It is the host's own file system, which has what was written; only whose it is has to be mended.
                return plain::make_plain(mount.path.as_ref()).err();
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let synced = rustix::fs::open(mount.path.as_str(), flags, Mode::empty()).and_then(rustix::fs::syncfs);
            let errno = synced.err()?;
            Some(format!("sync {}: {}", mount.path, text::errno(errno)))
        })
        .collect();
    Some(failed.join("; ")).filter(|failed| !failed.is_empty())
}

/// What came of writing back.
pub(crate) fn sync_report(report: &[u8]) -> SyncReport {
    from_bytes(report).unwrap_or_else(|_| {
        let why = "writing back did not end in time, or the agent's helper for it died".to_owned();
        SyncReport { fault: Some(SyncFault::Failed(why)), returned: None }
    })
}

/// Has the wall clock jump by so many nanoseconds.
///
/// # Errors
/// Why it has not, for a person.
pub(crate) fn step_clock(nanoseconds: i64) -> Result<(), String> {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let all = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec) + i128::from(nanoseconds);
    let seconds = i64::try_from(all.div_euclid(1_000_000_000)).map_err(|_| "there is no such time".to_owned())?;
    let rest = i64::try_from(all.rem_euclid(1_000_000_000)).unwrap_or(0);
    let time = Timespec { tv_sec: seconds, tv_nsec: rest };
    rustix::time::clock_settime(ClockId::Realtime, time)
        .map_err(|errno| format!("the clock cannot be set: {}", text::errno(errno)))
}

/// Sets the wall clock to the host's.
pub(crate) fn set_clock(host_ns: u64) {
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    if host_ns == 0 || ours.abs_diff(u128::from(host_ns)) <= CLOCK_TOLERANCE_NS {
        return;
    }
    let time = Timespec {
        tv_sec: i64::try_from(host_ns / 1_000_000_000).unwrap_or(0),
        tv_nsec: (host_ns % 1_000_000_000) as i64,
    };
    let _ = rustix::time::clock_settime(ClockId::Realtime, time);
}
