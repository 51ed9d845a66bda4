//! What the host asks for before the first command, and when it ends: shares, the clock, writing back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use belljar_proto::frame::{from_bytes, to_bytes};
use belljar_proto::message::{Mount, MountFault, MountMode, Setup};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::time::{ClockId, Timespec};

use crate::job::{Job, Kind};
use crate::{mounts, text};

/// How long writing back may take before the host is told that it did not happen.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// A clock that is off by less is left alone: setting it is a jump for everything that runs.
const CLOCK_TOLERANCE_NS: u128 = 1_000_000_000;

/// Faults by index, as the job reports them.
type Faults = Vec<(u32, MountFault)>;

/// Mounts the shares. `old` are those that an earlier setup mounted.
pub(crate) fn start(setup: Setup, old: &[Mount]) -> Result<Job, Errno> {
    Job::start(Kind::Setup, None, || {
        for mount in old.iter().rev() {
            let _ = rustix::mount::unmount(mount.path.as_str(), UnmountFlags::DETACH);
        }
        let faults: Faults = (0_u32..)
            .zip(&setup.mounts)
            .filter_map(|(index, mount)| mounts::share(mount).err().map(|fault| (index, fault)))
            .collect();
        to_bytes(&faults).unwrap_or_default()
    })
}

/// What the setup's job reported.
pub(crate) fn faults(report: &[u8]) -> Faults {
    from_bytes(report)
        .unwrap_or_else(|_| vec![(0, MountFault::Failed { detail: "the agent's helper that mounts died".into() })])
}

/// Writes the shares back.
pub(crate) fn start_sync(mounts: &[Mount]) -> Result<Job, Errno> {
    Job::start(Kind::Sync, Some(SYNC_LIMIT), || {
        let failed: Vec<String> = mounts
            .iter()
            .filter(|mount| mount.mode == MountMode::ReadWrite)
            .filter_map(|mount| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let synced = rustix::fs::open(mount.path.as_str(), flags, Mode::empty()).and_then(rustix::fs::syncfs);
                let errno = synced.err()?;
                Some(format!("sync {}: {}", mount.path, text::errno(errno)))
            })
            .collect();
        let mut report = failed.join("; ").into_bytes();
        // Distinguishes success from a helper that died.
        report.push(b'.');
        report
    })
}

/// What could not be written back, if anything.
pub(crate) fn sync_failure(report: &[u8]) -> Option<String> {
    match report {
        [b'.'] => None,
        [text @ .., b'.'] => Some(text::lossy(text)),
        _ => Some(format!("writing back did not end within {} s", SYNC_LIMIT.as_secs())),
    }
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
