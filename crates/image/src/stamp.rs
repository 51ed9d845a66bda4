//! How it is known that a file is as it was without reading it.
//!
//! Whoever changes a file changes its inode's number or its change time (ctime), which the kernel sets and nobody can set back. So a file
//! whose [`Stamp`] is the one that was written down after its checksum was taken is the one whose checksum was taken. Two things can
//! break this, and in both cases the content has to be read and compared:
//!
//! - The host went down: what was written last may be lost although the times are there. Stamps hold for one boot of the host
//!   ([`boot_id`]).
//! - The change was so soon after the stamp that its time is the same: file systems count in ticks of some milliseconds. A stamp holds
//!   only if it was taken well after the change that it tells of ([`Stamp::holds`]).

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Longer than a tick of any file system's clock that counts in the kernel's.
const TICK: Duration = Duration::from_millis(30);

/// Changes whenever a file does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "self-describing names; times are in nanoseconds since the epoch")]
pub struct Stamp {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: i128,
    pub ctime: i128,
}

impl Stamp {
    /// That of a file with this metadata.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a file with this metadata is the one of this stamp, which was taken at `taken` (see [`now`]). `false`: it has to be read.
    #[must_use]
    pub fn holds(&self, taken: u64, metadata: &Metadata) -> bool {
        let changed = u64::try_from(self.ctime).unwrap_or(u64::MAX);
        let settled = changed.saturating_add(u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX)) < taken;
        settled && Self::of(metadata) == *self
    }
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Names the host's present boot; empty where it cannot be told, which is believed by nobody.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
