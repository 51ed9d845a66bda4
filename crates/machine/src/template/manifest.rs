//! The manifest of a template: what belongs to it, and how it is known that each part is as it was made.
//!
//! ```text
//! 4f1c…                 checksum (BLAKE3, hexadecimal) of everything after this line
//! { "format": 1, … }    JSON, see `Manifest`
//! ```
//!
//! A manifest is at most [`MAX_LEN`] bytes; one of another [`FORMAT`] is no manifest.
//!
//! # How parts are believed
//!
//! Each part has its size and a checksum of all that is not zero in it. To take the checksum of a guest's memory before each use
//! would cost more than the use, and is not needed: whoever changes a file changes its inode's number or its change time (ctime), which
//! the kernel sets and nobody can set back. So a part whose [`Stamp`] is the one that was written down after its checksum was taken
//! is the one whose checksum was taken. Two things can break this, and in both cases everything is read and compared before it is used:
//!
//! - The host went down: what was written last may be lost although the times are there. Stamps hold for one boot of the host.
//! - The change was so soon after the stamp that its time is the same: file systems count in ticks of some milliseconds. A stamp holds
//!   only if it was taken well after the change that it tells of.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::sparse;

/// Changes with what a manifest means.
pub(super) const FORMAT: u32 = 1;
/// Longest manifest, in bytes.
pub(super) const MAX_LEN: u64 = 256 << 10;
/// Longer than a tick of any file system's clock that counts in the kernel's.
const TICK: Duration = Duration::from_millis(30);

/// What a template is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The directory's own name: a directory under another name is not this template.
    pub(super) key: String,
    /// For a person: which guest.
    pub(super) guest: String,
    /// For a person: which QEMU made it.
    pub(super) qemu: String,
    /// Seconds since the epoch.
    pub(super) made: u64,
    /// Milliseconds from QEMU's start until the guest was frozen.
    pub(super) boot_millis: u64,
    pub(super) session: Frozen,
    pub(super) parts: Vec<Part>,
    /// The host's boot in which the stamps were taken.
    pub(super) boot_id: String,
}

/// How a frozen guest is talked to again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Frozen {
    /// The agent listens on the virtio port.
    AgentOnVirtio,
    /// The agent listens on the second serial port.
    AgentOnSerial,
    /// A shell of root's is on the console.
    Shell,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) hash: String,
    pub(super) stamp: Stamp,
    /// When the stamp was taken, in nanoseconds since the epoch.
    pub(super) stamped: u64,
}

/// Changes whenever a file does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: i128,
    ctime: i128,
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What is wrong with a template.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    /// A part cannot be read.
    #[error("{part} cannot be read: {source}")]
    Read {
        /// Which.
        part: String,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is none, or not this template's.
    #[error("the manifest is not usable: {0}")]
    Manifest(String),
    /// A part is not as it was.
    #[error("{part} is not as it was made: {what}")]
    Changed {
        /// Which.
        part: String,
        /// How it is known.
        what: String,
    },
}

impl Manifest {
    pub(super) fn write(&self) -> Vec<u8> {
        let body = serde_json::to_vec_pretty(self).unwrap_or_default();
        let mut text = blake3::hash(&body).to_hex().as_bytes().to_vec();
        text.push(b'\n');
        text.extend(body);
        text
    }

    pub(super) fn read(file: &File, key: &str) -> Result<Self, Flaw> {
        let bad = |what: &str| Flaw::Manifest(what.to_owned());
        let mut text = Vec::new();
        let mut limited = file.take(MAX_LEN + 1);
        limited.read_to_end(&mut text).map_err(|source| Flaw::Read { part: "the manifest".into(), source })?;
        if text.len() as u64 > MAX_LEN {
            return Err(bad("it is too long"));
        }
        let end = text.iter().position(|b| *b == b'\n').ok_or_else(|| bad("it is cut off"))?;
        let (sum, body) = (&text[..end], &text[end + 1..]);
        if blake3::hash(body).to_hex().as_bytes() != sum {
            return Err(bad("its checksum is wrong"));
        }
        let manifest: Self = serde_json::from_slice(body).map_err(|e| bad(&e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(bad("it is of another version"));
        }
        if manifest.key != key {
            return Err(bad("it is of another template"));
        }
        Ok(manifest)
    }
}

impl Part {
    /// Takes the measure of a file that was just written; `hash` is its checksum where it is known.
    pub(super) fn of(name: &str, file: &File, hash: Option<blake3::Hash>) -> io::Result<Self> {
        let before = file.metadata()?;
        let hash = match hash {
            Some(hash) => hash,
            None => sparse::check(file, before.len())?.hash,
        };
        Ok(Self {
            name: name.to_owned(),
            size: before.len(),
            hash: hash.to_hex().as_str().to_owned(),
            stamp: Stamp::of(&before),
            stamped: now(),
        })
    }

    /// Whether a file still is this part without reading it. `None`: it has to be read.
    fn glance(&self, metadata: &Metadata) -> Option<()> {
        let changed = u64::try_from(self.stamp.ctime).unwrap_or(u64::MAX);
        let settled = changed.saturating_add(u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX)) < self.stamped;
        (settled && Stamp::of(metadata) == self.stamp).then_some(())
    }

    /// Sees to it that a file is this part. `thorough` reads it in any case. Gives whether the stamp has to be taken anew.
    pub(super) fn verify(&self, file: &File, thorough: bool) -> Result<Option<Self>, Flaw> {
        let read = |source| Flaw::Read { part: self.name.clone(), source };
        let changed = |what: String| Flaw::Changed { part: self.name.clone(), what };
        let metadata = file.metadata().map_err(read)?;
        if metadata.len() != self.size {
            return Err(changed(format!("it has {} bytes instead of {}", metadata.len(), self.size)));
        }
        if !thorough && self.glance(&metadata).is_some() {
            return Ok(None);
        }
        let found = sparse::check(file, self.size).map_err(read)?;
        if found.hash.to_hex().as_str() != self.hash {
            return Err(changed("its checksum is wrong".into()));
        }
        // What was read is what was there before the reading began, or the stamp differs the next time.
        Ok(Some(Self { stamp: Stamp::of(&metadata), stamped: now(), ..self.clone() }))
    }

    /// Whether an open file is what it was when it was verified.
    pub(super) fn is_unchanged(&self, file: &File) -> bool {
        file.metadata().is_ok_and(|now| {
            // Removing the file's name is a change as well, but none of its content.
            let now = Stamp::of(&now);
            now.size == self.stamp.size && now.mtime == self.stamp.mtime
        })
    }
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Names the host's present boot; empty where it cannot be told, which is believed by nobody.
pub(super) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn part() -> (File, Part) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"the content", 0).unwrap();
        let part = Part::of("ram", &file, None).unwrap();
        // As if the stamp had been taken later.
        let part = Part { stamped: part.stamped + 1_000_000_000, ..part };
        (file, part)
    }

    #[test]
    fn a_stamp_that_holds_saves_the_reading() {
        let (file, part) = part();
        let misread = Part { hash: "not read".into(), ..part };
        assert_eq!(misread.verify(&file, false).unwrap(), None);
        assert!(matches!(misread.verify(&file, true), Err(Flaw::Changed { .. })));
    }

    #[test]
    fn a_stamp_as_old_as_the_change_is_not_believed() {
        let (file, part) = part();
        let part = Part { stamped: u64::try_from(part.stamp.ctime).unwrap(), ..part };
        assert!(part.verify(&file, false).unwrap().is_some(), "it was read, and is what it was");
        let misread = Part { hash: "not read".into(), ..part };
        assert!(misread.verify(&file, false).is_err());
    }

    #[test]
    fn a_change_in_place_is_seen_by_its_time_even_if_that_is_set_back() {
        let (file, part) = part();
        let time = file.metadata().unwrap().modified().unwrap();
        loop {
            file.write_all_at(b"THE CONTENT", 0).unwrap();
            file.set_modified(time).unwrap();
            // Times go in steps.
            if Stamp::of(&file.metadata().unwrap()) != part.stamp {
                break;
            }
        }
        assert!(matches!(part.verify(&file, false), Err(Flaw::Changed { .. })));
    }

    #[test]
    fn manifests_are_bounded_and_of_one_version() {
        let read = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            Manifest::read(&file, "k").map_err(|flaw| flaw.to_string())
        };
        let manifest = Manifest {
            format: FORMAT,
            key: "k".into(),
            guest: "g".into(),
            qemu: "1".into(),
            made: 1,
            boot_millis: 2,
            session: Frozen::AgentOnSerial,
            parts: Vec::new(),
            boot_id: "b".into(),
        };
        assert_eq!(read(&manifest.write()).unwrap(), manifest);
        let other = Manifest { format: FORMAT + 1, ..manifest.clone() };
        assert!(read(&other.write()).unwrap_err().contains("another version"));
        let long = Manifest { guest: "g".repeat(300 << 10), ..manifest };
        assert!(read(&long.write()).unwrap_err().contains("too long"));
        assert!(read(b"no newline").unwrap_err().contains("cut off"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_a_manifest(bytes: Vec<u8>) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            proptest::prop_assert!(Manifest::read(&file, "k").is_err());
        }
    }
}
