//! The table of EFI. Source: the UEFI Specification, chapter 5.3.

use super::{MAX_PARTITIONS, Partition};
use crate::bytes::{guid, le16, le32, le64};
use crate::disk::{Part, ReadError};

pub(super) const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
pub(super) const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";

/// The Discoverable Partitions Specification has the rest.
const PURPOSES: &[(&str, &str)] = &[
    (ESP, "EFI system"),
    (BIOS_BOOT, "BIOS boot"),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "boot loader's"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "LVM"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "swap"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "root of x86-64"),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "root of aarch64"),
    ("72ec70a6-cf74-40e6-bd49-4bda08e8f224", "root of riscv64"),
    ("44479540-f297-41b2-9af7-d131d5f0458a", "root of 32-bit x86"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "home"),
    ("516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"),
    ("516e7cb6-6ecf-11d6-8ff8-00022d09712b", "FreeBSD UFS"),
    ("516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD ZFS"),
    ("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "FreeBSD boot"),
    ("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft data"),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
];

const MAX_ENTRY: usize = 4096;
/// Most entries of a table, used or not.
const MAX_ENTRIES: usize = 1 << 14;

pub(super) fn purpose(kind: &str) -> Option<&'static str> {
    PURPOSES.iter().find(|(guid, _)| *guid == kind).map(|(_, purpose)| *purpose)
}

/// The partitions; none if there is no such table. The second header is at the disk's end, and is looked for only where something says that there
/// is such a table.
pub(super) fn read(
    whole: &Part,
    protective: bool,
    notes: &mut Vec<String>,
) -> Result<Option<Vec<Partition>>, ReadError> {
    for sector in [512_u64, 4096] {
        let primary = table(whole, sector, 1);
        if let Ok(found) = primary {
            return Ok(Some(found.partitions(notes)));
        }
        let broken = matches!(primary, Err(Broken::Header | Broken::Entries));
        if broken || protective {
            let last = (whole.size() / sector).saturating_sub(1);
            if let Ok(found) = table(whole, sector, last) {
                notes.push("the first GPT cannot be used; its copy at the disk's end was read".into());
                return Ok(Some(found.partitions(notes)));
            }
        }
        if broken {
            notes.push(format!(
                "there is a GPT, but its checksum is wrong (or it has more than {MAX_ENTRIES} entries), and there is no good copy at the disk's end"
            ));
            return Ok(None);
        }
    }
    match whole.disk().limit_met() {
        Some(limit) => Err(limit),
        None => Ok(None),
    }
}

/// Why a table cannot be used.
enum Broken {
    NotThere,
    Header,
    Entries,
}

struct Entries {
    bytes: Vec<u8>,
    size: usize,
    sector: u64,
    disk: u64,
}

fn table(whole: &Part, sector: u64, at: u64) -> Result<Entries, Broken> {
    let header = whole.bytes(at.checked_mul(sector).ok_or(Broken::NotThere)?, 512).map_err(|_| Broken::NotThere)?;
    if !header.starts_with(b"EFI PART") {
        return Err(Broken::NotThere);
    }
    let field = |offset| le32(&header, offset).ok_or(Broken::Header);
    let length = usize::try_from(field(12)?).map_err(|_| Broken::Header)?;
    let mut checked = header.get(..length).filter(|h| h.len() >= 92).ok_or(Broken::Header)?.to_vec();
    checked[16..20].fill(0);
    if crc32fast::hash(&checked) != field(16)? || le64(&header, 24) != Some(at) {
        return Err(Broken::Header);
    }
    let size =
        usize::try_from(field(84)?).ok().filter(|size| (128..=MAX_ENTRY).contains(size)).ok_or(Broken::Header)?;
    let count = usize::try_from(field(80)?).ok().filter(|&count| count <= MAX_ENTRIES).ok_or(Broken::Header)?;
    let start = le64(&header, 72).and_then(|lba| lba.checked_mul(sector)).ok_or(Broken::Entries)?;
    let bytes = whole.bytes(start, count * size).map_err(|_| Broken::Entries)?;
    if crc32fast::hash(&bytes) != field(88)? {
        return Err(Broken::Entries);
    }
    Ok(Entries { bytes, size, sector, disk: whole.size() })
}

impl Entries {
    fn partitions(&self, notes: &mut Vec<String>) -> Vec<Partition> {
        let mut found = Vec::new();
        for (number, entry) in (1_u32..).zip(self.bytes.chunks_exact(self.size)) {
            let used = entry.iter().take(16).any(|&byte| byte != 0);
            let Some(partition) = used.then(|| self.partition(number, entry)).flatten() else { continue };
            if partition.start.checked_add(partition.length).is_none_or(|end| end > self.disk) {
                notes.push(format!("partition {number} ends past the end of the disk: the image is cut short"));
            }
            if found.len() == MAX_PARTITIONS {
                notes.push(format!("there are more than {MAX_PARTITIONS} partitions; the rest was not looked at"));
                break;
            }
            found.push(partition);
        }
        found
    }

    fn partition(&self, number: u32, entry: &[u8]) -> Option<Partition> {
        let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        let name: Vec<u16> = (0..36).map_while(|i| le16(entry, 56 + 2 * i)).take_while(|&unit| unit != 0).collect();
        Some(Partition {
            number,
            start: first.checked_mul(self.sector)?,
            length: sectors.checked_mul(self.sector)?,
            kind: guid(entry, 0)?,
            name: String::from_utf16_lossy(&name),
            partuuid: guid(entry, 16)?,
        })
    }
}
