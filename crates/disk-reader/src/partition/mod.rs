//! The partition table of a disk.

mod gpt;
mod mbr;

use serde::Serialize;

use crate::bytes::le16;
use crate::disk::{Disk, Part, ReadError};

/// More partitions than any disk has; the rest of a table is left out, and that is said.
pub(crate) const MAX_PARTITIONS: usize = 256;

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Not at all: what is on it begins with its first byte.
    None,
    /// The table in the first sector, of at most four partitions and what is in an extended one.
    Mbr,
    /// The table of EFI.
    Gpt,
}

/// One partition as its table has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// As the kernel counts: `vda1`.
    pub number: u32,
    /// Offset of its first byte on the disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is for, as the table says: a GUID, or two hexadecimal digits.
    pub kind: String,
    /// The name that the table gives it; empty for an MBR.
    pub name: String,
    /// By which `root=PARTUUID=` finds it.
    pub partuuid: String,
}

impl Partition {
    /// For firmware of the EFI kind.
    #[must_use]
    pub fn is_esp(&self) -> bool {
        self.kind == gpt::ESP || self.kind == mbr::ESP
    }

    /// Where GRUB's code for a BIOS is on a disk with a GPT.
    #[must_use]
    pub fn is_bios_boot(&self) -> bool {
        self.kind == gpt::BIOS_BOOT
    }

    /// What the table says that it is for, where that has a name.
    #[must_use]
    pub fn purpose(&self) -> Option<&'static str> {
        gpt::purpose(&self.kind).or_else(|| mbr::purpose(&self.kind))
    }
}

/// What is known of a disk's division.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partitions {
    pub(crate) table: Table,
    pub(crate) partitions: Vec<Partition>,
    /// What is wrong with the table.
    pub(crate) notes: Vec<String>,
}

/// Reads the table of a disk.
pub(crate) fn read(disk: &Disk) -> Result<Partitions, ReadError> {
    let whole = Part::new(disk, 0, disk.size());
    let Ok(first) = whole.bytes(0, 512) else {
        return Ok(Partitions { table: Table::None, partitions: Vec::new(), notes: Vec::new() });
    };
    let mut notes = Vec::new();
    let protective = mbr::has_protective(&first);
    if let Some(partitions) = gpt::read(&whole, protective, &mut notes)? {
        return Ok(Partitions { table: Table::Gpt, partitions, notes });
    }
    if protective {
        notes.push("its first sector says that it has a GPT, of which nothing can be read".into());
    }
    if le16(&first, 510) == Some(0xaa55) && !crate::content::is_boot_sector_of_file_system(&first) {
        let partitions = mbr::read(&whole, &first, &mut notes)?;
        if !partitions.is_empty() {
            return Ok(Partitions { table: Table::Mbr, partitions, notes });
        }
    }
    Ok(Partitions { table: Table::None, partitions: Vec::new(), notes })
}
