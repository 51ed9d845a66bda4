//! Why no machine boots from a disk, as far as that can be seen without trying.

use crate::boot::Loader;
use crate::content::ContentKind;
use crate::description::{Description, Volume};

/// A reason for which a boot need not be tried. What merely could not be found out is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// There is nothing on it at all.
    #[error(
        "there is nothing on it: all of it that a table or a file system would be in is zeros; mend: get a disk image with a system on it"
    )]
    Empty,
    /// A part of it is missing.
    #[error(
        "it is cut short: {what} has {wanted} bytes and {found} of them are there; was its download or copy interrupted?"
    )]
    Truncated {
        /// Which part.
        what: String,
        /// Its bytes.
        wanted: u64,
        /// What is there of them.
        found: u64,
    },
    /// All that a system could be on is encrypted, so that a guest waits for a key.
    #[error(
        "{} encrypted ({kind}), and no system is beside it: a guest would wait for the key, which Belljar does not have; mend: use an image that is not \
         encrypted",
        volumes_are(volumes)
    )]
    Encrypted {
        /// What is.
        volumes: Vec<String>,
        /// By what.
        kind: &'static str,
    },
    /// No firmware finds anything to start.
    #[error(
        "there is nothing to boot on it: no code in its first sector, no EFI system partition, and no kernel that can be read; mend: get a disk image with a system on \
         it; as an extra disk (--disk file=…) it will do"
    )]
    NothingToBoot,
}

fn volumes_are(volumes: &[String]) -> String {
    let verb = if volumes.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", volumes.join(", "))
}

impl Description {
    /// Why no machine boots from this disk; nothing if one may.
    #[must_use]
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let mut found: Vec<Obstacle> = self.volumes.iter().filter_map(truncated).collect();
        let holds = |kind: fn(ContentKind) -> bool| self.volumes.iter().any(|volume| kind(volume.content.kind));
        let programs = self.efi_programs();
        let kernel = self.default_entry().is_some();
        let system = self.system().map_or(true, |system| system.is_some());
        let encrypted: Vec<&Volume> = self.volumes.iter().filter(|volume| volume.content.kind.is_encrypted()).collect();
        if !encrypted.is_empty() && !system && !holds(ContentKind::is_other_file_system) {
            let kind = encrypted[0].content.kind.name().trim_end_matches(" (encrypted)");
            found.push(Obstacle::Encrypted {
                volumes: encrypted.iter().map(|volume| volume.name.clone()).collect(),
                kind,
            });
        }
        let only_empty = self.volumes.iter().all(|volume| volume.content.kind == ContentKind::Empty);
        if only_empty && !self.has_boot_code && self.volumes.iter().all(|volume| volume.partition.is_none()) {
            found.push(Obstacle::Empty);
        } else if !self.has_boot_code
            && programs.is_empty()
            && self.esp().is_none()
            && !kernel
            && self.loader == Loader::None
        {
            // Firmware for UEFI may find a program in any FAT.
            let unread = self.volumes.iter().any(|volume| {
                let kind = volume.content.kind;
                kind == ContentKind::Fat && volume.unreadable.is_some()
            });
            if !unread && encrypted.is_empty() {
                found.push(Obstacle::NothingToBoot);
            }
        }
        found
    }
}

/// Whether a partition, or the file system in it, goes past its end.
fn truncated(volume: &Volume) -> Option<Obstacle> {
    let partition = volume.partition.as_ref().map(|partition| partition.length).filter(|&length| length > volume.size);
    let file_system = volume.content.size.filter(|&size| size > volume.size);
    let wanted = partition.max(file_system)?;
    let what = if partition.is_some() {
        volume.name.clone()
    } else {
        format!("the {} file system of {}", volume.content.kind.name(), volume.name)
    };
    Some(Obstacle::Truncated { what, wanted, found: volume.size })
}
