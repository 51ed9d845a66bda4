//! The manifest of a template: what belongs to it, and how it is known that each part is as it was made.
//!
//! ```text
//! 4f1c…                 checksum (BLAKE3, hexadecimal) of everything after this line
//! { "format": 2, … }    JSON, see `Manifest`
//! ```
//!
//! A manifest is at most [`MAX_LEN`] bytes; one of another [`FORMAT`] is no manifest.
//!
//! # How parts are believed
//!
//! Each part has its size and a checksum of all that is not zero in it. To take the checksum of a guest's memory before each use
//! would cost more than the use, and is not needed where the part's [`Stamp`] holds: see [`belljar_image::stamp`].

use std::{
    fs::File,
    io::{self, Read},
};

use belljar_image::stamp::Stamp;
pub(super) use belljar_image::stamp::{boot_id, now};
use serde::{Deserialize, Serialize};

use crate::session::agent::PortKind;

/// Changes with what a manifest means.
pub(super) const FORMAT: u32 = 2;
/// Longest manifest, in bytes.
pub(super) const MAX_LEN: u64 = 256 << 10;

/// What a template is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The directory's own name: a directory under another name is not this template.
    pub(super) key: String,
    /// For a person: which guest.
    pub(super) guest: String,
    /// For a person: the key of the template that it was made of, if it did not boot.
    pub(super) base: Option<String>,
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

impl Frozen {
    /// By its agent, which is at this port.
    pub(crate) fn of_agent(port: PortKind) -> Self {
        match port {
            PortKind::Virtio | PortKind::Socket => Self::AgentOnVirtio,
            PortKind::Serial => Self::AgentOnSerial,
        }
    }
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

/// What is wrong with a template.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    /// A part cannot be read.
    #[error("{part} cannot be read: {source}")]
    Read {
        /// The name of its file.
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
        /// The name of its file.
        part: String,
        /// How it is known.
        what: String,
    },
}

impl Flaw {
    /// Whether it is the host that cannot read now what may well be whole.
    pub(crate) fn is_the_hosts(&self) -> bool {
        use rustix::io::Errno as E;
        let Self::Read { source, .. } = self else { return false };
        let of_host =
            [E::MFILE, E::NFILE, E::NOMEM, E::ACCESS, E::PERM, E::INTR, E::AGAIN, E::NOBUFS, E::STALE, E::TIMEDOUT];
        source.raw_os_error().is_some_and(|code| of_host.contains(&E::from_raw_os_error(code)))
    }
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
            None => belljar_image::sparse::check(file, before.len())?.hash,
        };
        Ok(Self {
            name: name.to_owned(),
            size: before.len(),
            hash: hash.to_hex().as_str().to_owned(),
            stamp: Stamp::of(&before),
            stamped: now(),
        })
    }

    /// Sees to it that a file is this part. `thorough` reads it in any case. Gives whether the stamp has to be taken anew.
    pub(super) fn verify(&self, file: &File, thorough: bool) -> Result<Option<Self>, Flaw> {
        let read = |source| Flaw::Read { part: self.name.clone(), source };
        let changed = |what: String| Flaw::Changed { part: self.name.clone(), what };
        let metadata = file.metadata().map_err(read)?;
        if metadata.len() != self.size {
            return Err(changed(format!("it has {} bytes instead of {}", metadata.len(), self.size)));
        }
        if !thorough && self.stamp.holds(self.stamped, &metadata) {
            return Ok(None);
        }
        let found = belljar_image::sparse::check(file, self.size).map_err(read)?;
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
    fn what_the_host_cannot_read_now_may_be_whole() {
        use rustix::io::Errno as E;
        let flaw = |code: E| Flaw::Read { part: "ram".into(), source: code.into() };
        for code in [E::MFILE, E::NFILE, E::NOMEM, E::ACCESS, E::STALE] {
            assert!(flaw(code).is_the_hosts(), "{code}");
        }
        for code in [E::NOENT, E::LOOP, E::IO] {
            assert!(!flaw(code).is_the_hosts(), "{code}");
        }
        let cut = Flaw::Read { part: "ram".into(), source: io::ErrorKind::UnexpectedEof.into() };
        assert!(!cut.is_the_hosts());
        assert!(!Flaw::Changed { part: "ram".into(), what: "its checksum is wrong".into() }.is_the_hosts());
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
            base: Some("b".into()),
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
