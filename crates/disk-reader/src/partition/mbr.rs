//! The table in the first sector, and the chain of tables in an extended partition.

use super::{MAX_PARTITIONS, Partition};
use crate::bytes::{le16, le32};
use crate::disk::{Part, ReadError};

pub(super) const ESP: &str = "ef";
const EXTENDED: &[u8] = &[0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;
const SECTOR: u64 = 512;

const PURPOSES: &[(&str, &str)] = &[
    ("01", "FAT"),
    ("04", "FAT"),
    ("06", "FAT"),
    ("07", "NTFS or exFAT"),
    ("0b", "FAT"),
    ("0c", "FAT"),
    ("0e", "FAT"),
    ("41", "PReP boot"),
    ("82", "swap"),
    ("83", "Linux"),
    ("8e", "LVM"),
    ("a5", "FreeBSD"),
    ("a6", "OpenBSD"),
    ("a9", "NetBSD"),
    (ESP, "EFI system"),
    ("fd", "Linux RAID"),
];

pub(super) fn purpose(kind: &str) -> Option<&'static str> {
    PURPOSES.iter().find(|(id, _)| *id == kind).map(|(_, purpose)| *purpose)
}

struct Entry {
    kind: u8,
    start: u64,
    sectors: u64,
}

fn entries(sector: &[u8]) -> impl Iterator<Item = Option<Entry>> + '_ {
    (0..4).map(|i| {
        let entry = sector.get(446 + 16 * i..462 + 16 * i)?;
        let (kind, start, sectors) = (entry[4], u64::from(le32(entry, 8)?), u64::from(le32(entry, 12)?));
        (kind != 0 && sectors != 0 && matches!(entry[0], 0 | 0x80)).then_some(Entry { kind, start, sectors })
    })
}

/// Whether the table is there only to keep tools off that do not know a GPT.
pub(super) fn has_protective(sector: &[u8]) -> bool {
    le16(sector, 510) == Some(0xaa55) && entries(sector).flatten().any(|entry| entry.kind == PROTECTIVE)
}

pub(super) fn read(whole: &Part, first: &[u8], notes: &mut Vec<String>) -> Result<Vec<Partition>, ReadError> {
    let disk_id = le32(first, 440).unwrap_or(0);
    let partition = |number: u32, kind: u8, start: u64, sectors: u64| Partition {
        number,
        start: start.saturating_mul(SECTOR),
        length: sectors.saturating_mul(SECTOR),
        kind: format!("{kind:02x}"),
        name: String::new(),
        partuuid: format!("{disk_id:08x}-{number:02x}"),
    };
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(entries(first)) {
        match entry {
            Some(entry) if EXTENDED.contains(&entry.kind) => extended = extended.or(Some(entry.start)),
            Some(entry) if entry.kind != PROTECTIVE => {
                found.push(partition(number, entry.kind, entry.start, entry.sectors));
            }
            _ => {}
        }
    }
    let mut next = extended;
    let mut seen = Vec::new();
    let mut number = 5;
    while let (Some(base), Some(at)) = (extended, next.take()) {
        if seen.contains(&at) {
            notes.push("the chain of the extended partition leads back to where it was".into());
            break;
        }
        seen.push(at);
        if found.len() >= MAX_PARTITIONS || seen.len() > MAX_PARTITIONS {
            notes.push(format!("there are more than {MAX_PARTITIONS} partitions; the rest was not looked at"));
            break;
        }
        let table = match whole.bytes(at.saturating_mul(SECTOR), 512) {
            Ok(table) if le16(&table, 510) == Some(0xaa55) => table,
            Ok(_) => {
                notes.push(format!("the extended partition has no table at sector {at}"));
                break;
            }
            Err(error) if error.is_limit() => return Err(error),
            Err(error) => {
                notes.push(format!("the table of the extended partition at sector {at} cannot be read: {error}"));
                break;
            }
        };
        for entry in entries(&table).take(2).flatten() {
            if EXTENDED.contains(&entry.kind) {
                next = base.checked_add(entry.start);
            } else {
                found.push(partition(number, entry.kind, at.saturating_add(entry.start), entry.sectors));
                number += 1;
            }
        }
    }
    for partition in &found {
        if partition.start.saturating_add(partition.length) > whole.size() {
            notes.push(format!("partition {} ends past the end of the disk: the image is cut short", partition.number));
        }
    }
    Ok(found)
}
