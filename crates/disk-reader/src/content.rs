//! What is in a partition, by its first bytes. Offsets are those of `libblkid`.

use serde::Serialize;

use crate::bytes::{be16, le16, le32, le64, text, uuid};
use crate::disk::{Part, ReadError};

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Content {
    /// What it is.
    pub kind: ContentKind,
    /// The label that somebody gave it; empty if none.
    pub label: String,
    /// By which `root=UUID=` finds it; empty if it has none.
    pub uuid: String,
    /// Bytes that the file system has by its own account; none where that is not known.
    pub size: Option<u64>,
}

/// The kinds of contents that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContentKind {
    /// Without a journal.
    Ext2,
    /// With a journal, and without extents.
    Ext3,
    /// The usual file system of Debian and its kin.
    Ext4,
    /// The usual file system of RHEL and its kin.
    Xfs,
    /// The usual file system of Fedora and openSUSE.
    Btrfs,
    /// Of any size of entries.
    Fat,
    /// Of large cards and sticks.
    ExFat,
    /// Of Windows.
    Ntfs,
    /// Flash-friendly.
    F2fs,
    /// Read-only, packed.
    Squashfs,
    /// Read-only, packed.
    Erofs,
    /// A CD's.
    Iso9660,
    /// A BSD's.
    Ufs,
    /// With pools of its own.
    Zfs,
    /// Old.
    Reiserfs,
    /// Old.
    Jfs,
    /// No file system.
    Swap,
    /// A physical volume of LVM.
    Lvm,
    /// A part of a RAID array.
    Md,
    /// Encrypted.
    Luks,
    /// Encrypted by Windows.
    Bitlocker,
    /// Nothing but zeros where anything known would be.
    Empty,
    /// None of these.
    Unknown,
}

impl ContentKind {
    /// As people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::Fat => "FAT",
            Self::ExFat => "exFAT",
            Self::Ntfs => "NTFS",
            Self::F2fs => "F2FS",
            Self::Squashfs => "squashfs",
            Self::Erofs => "EROFS",
            Self::Iso9660 => "ISO 9660",
            Self::Ufs => "UFS",
            Self::Zfs => "ZFS",
            Self::Reiserfs => "ReiserFS",
            Self::Jfs => "JFS",
            Self::Swap => "swap",
            Self::Lvm => "LVM",
            Self::Md => "Linux RAID",
            Self::Luks => "LUKS (encrypted)",
            Self::Bitlocker => "BitLocker (encrypted)",
            Self::Empty => "empty",
            Self::Unknown => "unknown",
        }
    }

    /// Whether its files can be read here.
    #[must_use]
    pub fn is_readable(self) -> bool {
        matches!(self, Self::Ext2 | Self::Ext3 | Self::Ext4 | Self::Xfs | Self::Btrfs | Self::Fat)
    }

    /// Whether it is a file system whose files cannot be read here.
    #[must_use]
    pub fn is_other_file_system(self) -> bool {
        matches!(
            self,
            Self::ExFat
                | Self::Ntfs
                | Self::F2fs
                | Self::Squashfs
                | Self::Erofs
                | Self::Iso9660
                | Self::Ufs
                | Self::Zfs
                | Self::Reiserfs
                | Self::Jfs
        )
    }

    /// Whether nobody reads it without a key.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Luks | Self::Bitlocker)
    }
}

/// As much of a volume as is looked at.
const HEAD: u64 = 68 << 10;

/// Whether a sector that ends in 55 AA is a file system's own, so that what looks like a partition table in it is none.
pub(crate) fn is_boot_sector_of_file_system(sector: &[u8]) -> bool {
    let at = |offset: usize, word: &[u8]| sector.get(offset..).is_some_and(|rest| rest.starts_with(word));
    let jump = matches!(sector.first(), Some(0xeb | 0xe9));
    let sane = le16(sector, 11).is_some_and(|size| matches!(size, 512 | 1024 | 2048 | 4096));
    jump && sane && (at(54, b"FAT1") || at(82, b"FAT32") || at(3, b"NTFS    ") || at(3, b"-FVE-FS-"))
        || at(3, b"EXFAT   ")
}

/// Looks at the beginning of a volume, and where a kind is known by its end, at that.
pub(crate) fn look(part: &Part) -> Result<Content, ReadError> {
    let length = usize::try_from(part.size().min(HEAD)).unwrap_or(0);
    let head = part.bytes(0, length)?;
    if let Some(found) = by_head(&head) {
        return Ok(found);
    }
    if is_md_at_end(part)? {
        return Ok(plain(ContentKind::Md));
    }
    Ok(plain(if head.iter().all(|&byte| byte == 0) { ContentKind::Empty } else { ContentKind::Unknown }))
}

fn plain(kind: ContentKind) -> Content {
    Content { kind, label: String::new(), uuid: String::new(), size: None }
}

fn by_head(head: &[u8]) -> Option<Content> {
    let at = |offset: usize, word: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(word));
    let found = |kind, label: Option<String>, uuid: Option<String>| {
        Some(Content { kind, label: label.unwrap_or_default(), uuid: uuid.unwrap_or_default(), size: size(kind, head) })
    };
    // What holds others comes first: an old file system's remains may lie behind it.
    if at(0, b"LUKS\xba\xbe") && matches!(be16(head, 6), Some(1 | 2)) {
        return found(ContentKind::Luks, text(head, 24, 48).filter(|_| be16(head, 6) == Some(2)), text(head, 168, 40));
    }
    if at(3, b"-FVE-FS-") {
        return found(ContentKind::Bitlocker, None, None);
    }
    if (0..4).any(|sector| at(sector * 512, b"LABELONE") && at(sector * 512 + 24, b"LVM2 001")) {
        return found(ContentKind::Lvm, None, None);
    }
    if [0, 4096].into_iter().any(|offset| le32(head, offset) == Some(MD) && le32(head, offset + 4) == Some(1)) {
        return found(ContentKind::Md, None, None);
    }
    if at(0, b"XFSB") {
        return found(ContentKind::Xfs, text(head, 108, 12), uuid(head, 32));
    }
    if at(0x1_0040, b"_BHRfS_M") {
        return found(ContentKind::Btrfs, text(head, 0x1_012b, 256), uuid(head, 0x1_0020));
    }
    if le16(head, 1024 + 56) == Some(0xef53) {
        let (compatible, incompatible) = (le32(head, 1024 + 92)?, le32(head, 1024 + 96)?);
        // Extents, 64 bit, flexible groups, and the like came with ext4; so did most of what may be ignored while reading.
        let kind = if incompatible & !0x17 != 0 || le32(head, 1024 + 100)? & !0x7 != 0 {
            ContentKind::Ext4
        } else if compatible & 4 != 0 {
            ContentKind::Ext3
        } else {
            ContentKind::Ext2
        };
        return found(kind, text(head, 1024 + 120, 16), uuid(head, 1024 + 104));
    }
    if is_boot_sector_of_file_system(head) {
        let serial = |offset| le32(head, offset).map(|n| format!("{:04X}-{:04X}", n >> 16, n & 0xffff));
        let label = |offset| text(head, offset, 11).filter(|label| label != "NO NAME");
        return match () {
            () if at(3, b"NTFS    ") => found(ContentKind::Ntfs, None, le64(head, 72).map(|n| format!("{n:016X}"))),
            () if at(3, b"EXFAT   ") => found(ContentKind::ExFat, None, serial(100)),
            () if at(82, b"FAT32") => found(ContentKind::Fat, label(71), serial(67)),
            () => found(ContentKind::Fat, label(43), serial(39)),
        };
    }
    if at(4086, b"SWAPSPACE2") || at(4086, b"SWAP-SPACE") {
        return found(ContentKind::Swap, text(head, 1024 + 28, 16), uuid(head, 1024 + 12));
    }
    let others: &[(usize, &[u8], ContentKind)] = &[
        (0, b"hsqs", ContentKind::Squashfs),
        (1024, &0xe0f5_e1e2_u32.to_le_bytes(), ContentKind::Erofs),
        (1024, &0xf2f5_2010_u32.to_le_bytes(), ContentKind::F2fs),
        (0x8001, b"CD001", ContentKind::Iso9660),
        (0x1_055c, &0x1954_0119_u32.to_le_bytes(), ContentKind::Ufs),
        (0x255c, &0x0001_1954_u32.to_le_bytes(), ContentKind::Ufs),
        (0x1_0034, b"ReIsEr", ContentKind::Reiserfs),
        (0x8000, b"JFS1", ContentKind::Jfs),
    ];
    if let Some((.., kind)) = others.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return found(*kind, None, None);
    }
    // An uberblock of a ZFS label; there are 128 of them, and not all are used.
    let uberblock = |at: usize| le64(head, at) == Some(0x00ba_b10c);
    (128..).map(|n| n << 10).take_while(|&offset| offset < head.len()).any(uberblock).then(|| plain(ContentKind::Zfs))
}

/// How large a file system says that it is.
fn size(kind: ContentKind, head: &[u8]) -> Option<u64> {
    match kind {
        ContentKind::Ext2 | ContentKind::Ext3 | ContentKind::Ext4 => {
            let wide = le32(head, 1024 + 96)? & 0x80 != 0;
            let high = if wide { u64::from(le32(head, 1024 + 336)?) << 32 } else { 0 };
            (high | u64::from(le32(head, 1024 + 4)?)).checked_mul(1024_u64.checked_shl(le32(head, 1024 + 24)?.min(16))?)
        }
        ContentKind::Xfs => {
            let field = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
            field(8)?.checked_mul(field(0)? & 0xffff_ffff)
        }
        ContentKind::Btrfs => le64(head, 0x1_0070),
        _ => None,
    }
}

const MD: u32 = 0xa92b_4efc;

/// Versions 0.90 and 1.0 have their superblock at the end.
fn is_md_at_end(part: &Part) -> Result<bool, ReadError> {
    let size = part.size();
    let places = [(size & !0xffff).checked_sub(0x1_0000), (size & !0xfff).checked_sub(0x2000)];
    for place in places.into_iter().flatten() {
        match part.bytes(place, 4) {
            Ok(bytes) if le32(&bytes, 0) == Some(MD) => return Ok(true),
            Err(error) if error.is_limit() => return Err(error),
            _ => {}
        }
    }
    Ok(false)
}
