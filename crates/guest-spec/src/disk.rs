//! A further disk: what is on it, where it is attached, and which kind of disk it is.

use std::{fmt, path::PathBuf};

use serde::{Serialize, Serializer};

use crate::words::{BusChoice, DiskBus, Word};

/// The largest unit in which a disk takes discards, in bytes.
const MAX_GRANULARITY: u64 = 1 << 30;
/// Most paths to a disk: functions of a PCI device.
pub const MAX_PATHS: u32 = 8;

/// One extra disk. What is written to it is thrown away with the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskSpec {
    /// What is on it at first.
    #[serde(flatten)]
    pub content: DiskContent,
    /// Its serial number, by which the guest finds it (`/dev/disk/by-id/virtio-SERIAL` on virtio).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Where it is attached.
    pub bus: BusChoice,
    /// Whether it is a lab disk, which Belljar serves itself, so that it can be made to fail.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lab: bool,
    /// Which kind of disk it is.
    #[serde(flatten)]
    pub traits: DiskTraits,
}

impl DiskSpec {
    /// A disk of which nothing else is said.
    #[must_use]
    pub fn new(content: DiskContent) -> Self {
        Self { content, serial: None, bus: BusChoice::default(), lab: false, traits: DiskTraits::default() }
    }

    /// What it is called where somebody is told of it.
    #[must_use]
    pub fn name(&self) -> String {
        match (&self.serial, &self.content) {
            (Some(serial), _) => format!("the disk {serial}"),
            (None, DiskContent::Empty(size)) => format!("the disk of {size} bytes"),
            (None, DiskContent::Image(path)) => format!("the disk with {}", path.display()),
            (None, DiskContent::Directory(directory)) => format!("the disk with {}", directory.path.display()),
        }
    }

    /// All that is wrong with its kind, on this bus if it is known.
    #[must_use]
    pub fn conflicts(&self, bus: Option<DiskBus>) -> Vec<DiskConflict> {
        let size = match &self.content {
            DiskContent::Empty(size) => Some(*size),
            DiskContent::Image(_) => None,
            DiskContent::Directory(directory) => directory.size,
        };
        self.traits.conflicts(size, self.serial.is_some() || self.lab, bus)
    }
}

/// What is on a disk at first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum DiskContent {
    /// This many bytes of zeros.
    #[serde(rename = "size")]
    Empty(u64),
    /// An image, which is not written to.
    #[serde(rename = "file")]
    Image(PathBuf),
    /// A file system with the files of a directory, which is not written to.
    #[serde(rename = "directory")]
    Directory(DirectoryContent),
}

/// A file system that is made of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirectoryContent {
    /// The directory.
    pub path: PathBuf,
    /// Bytes of the disk; none is what fits, with room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The file system's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// What a guest is told of a disk beside its size and name. `None` is what QEMU's disks on that bus tell by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskTraits {
    /// Its logical sectors: the least that can be read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sector_size: Option<SectorSize>,
    /// Its physical sectors: the least that a power cut does not tear. Where nothing is said, as large as the logical ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical_sector_size: Option<SectorSize>,
    /// Its World Wide Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<Wwn>,
    /// Whether it refuses writes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether it turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
    /// Whether it has a cache that holds what was written until it is flushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_cache: Option<bool>,
    /// Whether its guest can have a single write be durable before it is answered (FUA), instead of flushing all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fua: Option<bool>,
    /// Whether it takes discards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// In which units it takes them, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard_granularity: Option<u64>,
    /// Whether its medium can be taken out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub removable: bool,
    /// By how many paths its guest has it: each is a disk there, with the same serial number and name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<u32>,
    /// Whether it is not in the machine until a test plugs it in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unplugged: bool,
}

impl DiskTraits {
    /// The sizes of its logical and of its physical sectors, if something is said of them.
    #[must_use]
    pub fn sectors(&self) -> Option<(SectorSize, SectorSize)> {
        if self.sector_size.is_none() && self.physical_sector_size.is_none() {
            return None;
        }
        let logical = self.sector_size.unwrap_or_default();
        Some((logical, self.physical_sector_size.unwrap_or(logical)))
    }

    /// By how many paths its guest has it.
    #[must_use]
    pub fn paths(&self) -> u32 {
        self.paths.unwrap_or(1)
    }

    /// All that is wrong with them on a disk of this size and on this bus, as far as these are known; `has_serial`: whether it has a serial number.
    #[must_use]
    pub fn conflicts(&self, size: Option<u64>, has_serial: bool, bus: Option<DiskBus>) -> Vec<DiskConflict> {
        let mut found = Vec::new();
        let mut wrong = |key, message: String, help: String| found.push(DiskConflict { key, message, help });
        if let Some((logical, physical)) = self.sectors() {
            if physical < logical {
                let message =
                    format!("physical sectors of {physical} bytes are smaller than the logical ones of {logical}");
                let help = format!("leave `{}` out, or give it {logical}", DiskKey::PhysicalSectorSize.word());
                wrong(DiskKey::PhysicalSectorSize, message, help);
            }
            if let Some(size) = size.filter(|size| !size.is_multiple_of(logical.bytes())) {
                let message = format!("{size} bytes are no whole number of sectors of {logical} bytes");
                wrong(DiskKey::SectorSize, message, format!("take a size that is a multiple of {logical}"));
            }
        }
        if let Some(granularity) = self.discard_granularity {
            let key = DiskKey::DiscardGranularity;
            let sector = self.sector_size.unwrap_or_default();
            if self.discard == Some(false) {
                let message = format!("`{}` says in which units a disk takes discards that takes none", key.word());
                wrong(key, message, format!("leave it or `{}` out", DiskKey::Discard.word()));
            } else if !granularity.is_multiple_of(sector.bytes()) || granularity > MAX_GRANULARITY {
                let message = format!("{granularity} bytes are no unit in which a disk takes discards");
                wrong(key, message, format!("take a multiple of its sectors of {sector} bytes, of 1 GiB at most"));
            }
        }
        if self.paths() > 1 && !has_serial && self.wwn.is_none() {
            let message = "the guest could not tell that both paths lead to the same disk".to_owned();
            wrong(DiskKey::Paths, message, "give it a `serial` or a `wwn`".to_owned());
        }
        if self.unplugged && !has_serial {
            let message = "a test could not name the disk that it is to plug in".to_owned();
            wrong(DiskKey::Unplugged, message, "give it a `serial`".to_owned());
        }
        let Some(bus) = bus else { return found };
        for &(_, key) in DiskKey::ALL {
            if let Some(why) = self.lacking(key, bus) {
                let able: Vec<_> = DiskBus::ALL
                    .iter()
                    .filter(|(_, bus)| self.lacking(key, *bus).is_none())
                    .map(|(word, _)| *word)
                    .collect();
                let message = format!("{} does not go with a disk on {bus}: {why}", self.said(key));
                wrong(key, message, format!("leave it out, or take another bus: {}", able.join(", ")));
            }
        }
        found
    }

    /// Why a disk on this bus cannot be what this key says, if it says something.
    fn lacking(&self, key: DiskKey, bus: DiskBus) -> Option<&'static str> {
        let is_ata = matches!(bus, DiskBus::Ide | DiskBus::Sata);
        match key {
            DiskKey::SectorSize => (is_ata && self.sector_size.is_some_and(|size| size != SectorSize::S512))
                .then_some("QEMU's have logical sectors of 512 bytes"),
            DiskKey::PhysicalSectorSize => {
                let (logical, physical) = self.sectors()?;
                (matches!(bus, DiskBus::Nvme | DiskBus::Usb) && physical != logical)
                    .then_some("its guest learns of one size, which is that of the logical sectors")
            }
            DiskKey::Wwn => (self.wwn.is_some() && !is_ata && bus != DiskBus::Scsi).then_some("it has no such name"),
            DiskKey::ReadOnly => match bus {
                _ if !self.read_only => None,
                DiskBus::Ide | DiskBus::Sata => Some("there is no such disk"),
                DiskBus::Nvme => Some("QEMU's does not tell its guest, which would take refused writes for errors"),
                DiskBus::Virtio | DiskBus::Scsi | DiskBus::Usb => None,
            },
            DiskKey::Rotational => match (bus, self.rotational?) {
                (DiskBus::Virtio | DiskBus::Usb, _) => Some("its guest does not learn of that"),
                (DiskBus::Nvme, true) => Some("its guest takes none for one that turns"),
                _ => None,
            },
            DiskKey::WriteCache => (bus == DiskBus::Nvme && self.write_cache == Some(false))
                .then_some("QEMU's tells its guest of a cache whatever it has"),
            DiskKey::Fua => match (bus, self.fua?) {
                (DiskBus::Virtio, true) => Some("it has no such writes"),
                (DiskBus::Ide | DiskBus::Sata, true) => Some("QEMU's have no such writes"),
                (DiskBus::Nvme, false) => Some("QEMU's tells its guest of such writes in any case"),
                (DiskBus::Nvme, true) => Some("QEMU's tells its guest of such writes, and does not make them durable"),
                _ => None,
            },
            DiskKey::Discard => match (bus, self.discard?) {
                (DiskBus::Nvme, false) => Some("QEMU's takes discards in any case"),
                (DiskBus::Usb, true) => Some("its guest makes none"),
                _ => None,
            },
            DiskKey::DiscardGranularity => match (bus, self.discard_granularity?) {
                (DiskBus::Ide | DiskBus::Sata, bytes) if bytes != SectorSize::S512.bytes() => {
                    Some("it takes single sectors")
                }
                (DiskBus::Usb, _) => Some("its guest makes no discards"),
                _ => None,
            },
            DiskKey::Removable => (self.removable && !matches!(bus, DiskBus::Scsi | DiskBus::Usb))
                .then_some("its medium cannot be taken out"),
            DiskKey::Paths => {
                (self.paths() > 1 && bus != DiskBus::Scsi).then_some("QEMU has it on one controller only")
            }
            DiskKey::Unplugged => (self.unplugged && is_ata).then_some("QEMU plugs none into a machine that runs"),
        }
    }

    /// What is said by a key, as it is written.
    fn said(&self, key: DiskKey) -> String {
        let value = match key {
            DiskKey::SectorSize => self.sector_size.map(|size| size.to_string()),
            DiskKey::PhysicalSectorSize => self.physical_sector_size.map(|size| size.to_string()),
            DiskKey::Wwn => self.wwn.map(|wwn| wwn.to_string()),
            DiskKey::ReadOnly => Some(self.read_only.to_string()),
            DiskKey::Rotational => self.rotational.map(|on| on.to_string()),
            DiskKey::WriteCache => self.write_cache.map(|on| on.to_string()),
            DiskKey::Fua => self.fua.map(|on| on.to_string()),
            DiskKey::Discard => self.discard.map(|on| on.to_string()),
            DiskKey::DiscardGranularity => self.discard_granularity.map(|bytes| bytes.to_string()),
            DiskKey::Removable => Some(self.removable.to_string()),
            DiskKey::Paths => Some(self.paths().to_string()),
            DiskKey::Unplugged => Some(self.unplugged.to_string()),
        };
        format!("{} = {}", key.word(), value.unwrap_or_default())
    }
}

crate::words! {
    /// A key that says which kind of disk one is.
    DiskKey {
        /// [`DiskTraits::sector_size`].
        SectorSize = "sector-size",
        /// [`DiskTraits::physical_sector_size`].
        PhysicalSectorSize = "physical-sector-size",
        /// [`DiskTraits::wwn`].
        Wwn = "wwn",
        /// [`DiskTraits::read_only`].
        ReadOnly = "read-only",
        /// [`DiskTraits::rotational`].
        Rotational = "rotational",
        /// [`DiskTraits::write_cache`].
        WriteCache = "write-cache",
        /// [`DiskTraits::fua`].
        Fua = "fua",
        /// [`DiskTraits::discard`].
        Discard = "discard",
        /// [`DiskTraits::discard_granularity`].
        DiscardGranularity = "discard-granularity",
        /// [`DiskTraits::removable`].
        Removable = "removable",
        /// [`DiskTraits::paths`].
        Paths = "paths",
        /// [`DiskTraits::unplugged`].
        Unplugged = "unplugged",
    }
}

/// What is wrong with the kind of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConflict {
    /// The key that says it.
    pub key: DiskKey,
    /// What does not go together, and why.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// In one sentence.
impl fmt::Display for DiskConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

/// The size of a disk's sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectorSize {
    /// 512 bytes.
    #[default]
    S512,
    /// 4096 bytes.
    S4096,
}

impl SectorSize {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::S512, Self::S4096];

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::S512 => 512,
            Self::S4096 => 4096,
        }
    }

    /// The one with so many bytes.
    #[must_use]
    pub fn of(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bytes() == bytes)
    }
}

/// In bytes, without a unit.
impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

impl Serialize for SectorSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.bytes())
    }
}

/// A World Wide Name of 64 bits, by which a guest finds a disk as `/dev/disk/by-id/wwn-0x…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wwn(u64);

impl Wwn {
    /// Reads one such as `0x5000c500a1b2c3d4`.
    ///
    /// # Errors
    /// Says what it looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 16);
        let number = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
            // To QEMU it is none.
            None | Some(0) => {
                Err("no World Wide Name: write 0x and 16 hexadecimal digits, such as 0x5000c500a1b2c3d4".to_owned())
            }
            Some(number) => Ok(Self(number)),
        }
    }

    /// As a number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// As the guest has it in `/dev/disk/by-id`.
impl fmt::Display for Wwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Wwn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that are wrong on each bus, and on none that is known.
    fn wrong(traits: &DiskTraits) -> Vec<(Option<DiskBus>, Vec<DiskKey>)> {
        let buses = std::iter::once(None).chain(DiskBus::ALL.iter().map(|(_, bus)| Some(*bus)));
        let keys = |bus| traits.conflicts(Some(1 << 20), true, bus).into_iter().map(|c| c.key).collect::<Vec<_>>();
        buses.map(|bus| (bus, keys(bus))).filter(|(_, keys)| !keys.is_empty()).collect()
    }

    #[test]
    fn what_a_bus_cannot_have() {
        use DiskBus::{Ide, Nvme, Sata, Usb, Virtio};
        let on = |buses: &[DiskBus], key| buses.iter().map(|bus| (Some(*bus), vec![key])).collect::<Vec<_>>();
        let none = DiskTraits::default();
        assert_eq!(wrong(&none), []);
        for same in [SectorSize::S512, SectorSize::S4096] {
            let both = DiskTraits { sector_size: Some(same), physical_sector_size: Some(same), ..none.clone() };
            let ata: &[DiskBus] = if same == SectorSize::S512 { &[] } else { &[Sata, Ide] };
            assert_eq!(wrong(&both), on(ata, DiskKey::SectorSize));
        }
        let emulated = DiskTraits { physical_sector_size: Some(SectorSize::S4096), ..none.clone() };
        assert_eq!(wrong(&emulated), on(&[Nvme, Usb], DiskKey::PhysicalSectorSize));
        let wwn = DiskTraits { wwn: Some(Wwn(1)), ..none.clone() };
        assert_eq!(wrong(&wwn), on(&[Virtio, Nvme, Usb], DiskKey::Wwn));
        let read_only = DiskTraits { read_only: true, ..none.clone() };
        assert_eq!(wrong(&read_only), on(&[Sata, Ide, Nvme], DiskKey::ReadOnly));
        for (turns, buses) in [(true, &[Virtio, Nvme, Usb][..]), (false, &[Virtio, Usb])] {
            let traits = DiskTraits { rotational: Some(turns), ..none.clone() };
            assert_eq!(wrong(&traits), on(buses, DiskKey::Rotational));
        }
        for (has, buses) in [(true, &[][..]), (false, &[Nvme])] {
            let cache = DiskTraits { write_cache: Some(has), ..none.clone() };
            assert_eq!(wrong(&cache), on(buses, DiskKey::WriteCache));
            let fua = DiskTraits { fua: Some(has), ..none.clone() };
            assert_eq!(wrong(&fua), on(if has { &[Virtio, Sata, Ide, Nvme] } else { &[Nvme] }, DiskKey::Fua));
            let discard = DiskTraits { discard: Some(has), ..none.clone() };
            assert_eq!(wrong(&discard), on(if has { &[Usb] } else { &[Nvme] }, DiskKey::Discard));
        }
        let units = |bytes| DiskTraits { discard_granularity: Some(bytes), ..none.clone() };
        assert_eq!(wrong(&units(512)), on(&[Usb], DiskKey::DiscardGranularity));
        assert_eq!(wrong(&units(65536)), on(&[Sata, Ide, Usb], DiskKey::DiscardGranularity));
        let removable = DiskTraits { removable: true, ..none.clone() };
        assert_eq!(wrong(&removable), on(&[Virtio, Sata, Ide, Nvme], DiskKey::Removable));
        let paths = DiskTraits { paths: Some(2), ..none.clone() };
        assert_eq!(wrong(&paths), on(&[Virtio, Sata, Ide, Nvme, Usb], DiskKey::Paths));
        let scsi = Some(DiskBus::Scsi);
        assert_eq!(paths.conflicts(None, false, scsi)[0].key, DiskKey::Paths);
        assert_eq!(DiskTraits { wwn: Some(Wwn(1)), ..paths.clone() }.conflicts(None, false, scsi), []);
        assert_eq!(DiskTraits { paths: Some(1), ..none.clone() }.conflicts(None, false, None), []);
        let unplugged = DiskTraits { unplugged: true, ..none.clone() };
        assert_eq!(wrong(&unplugged), on(&[Sata, Ide], DiskKey::Unplugged));
        assert_eq!(unplugged.conflicts(None, false, None)[0].key, DiskKey::Unplugged);
        for odd in [
            units(100),
            units(1 << 31),
            DiskTraits { sector_size: Some(SectorSize::S4096), ..units(512) },
            DiskTraits { discard: Some(false), ..units(4096) },
        ] {
            assert_eq!(odd.conflicts(None, true, None).len(), 1, "{odd:?}");
        }
    }

    #[test]
    fn what_is_wrong_says_why_and_what_to_do() {
        let said = |traits: DiskTraits, size, bus| traits.conflicts(Some(size), false, bus)[0].to_string();
        let large = DiskTraits { sector_size: Some(SectorSize::S4096), ..DiskTraits::default() };
        insta::assert_snapshot!(
            [
                said(large.clone(), 1 << 20, Some(DiskBus::Sata)),
                said(large.clone(), 5000, None),
                said(DiskTraits { physical_sector_size: Some(SectorSize::S512), ..large }, 1 << 20, None),
                said(
                    DiskTraits { wwn: Some(Wwn(0x5000_c500_a1b2_c3d4)), ..DiskTraits::default() },
                    1,
                    Some(DiskBus::Nvme)
                ),
                said(DiskTraits { read_only: true, ..DiskTraits::default() }, 1, Some(DiskBus::Nvme)),
                said(DiskTraits { rotational: Some(true), ..DiskTraits::default() }, 1, Some(DiskBus::Virtio)),
                said(DiskTraits { write_cache: Some(false), ..DiskTraits::default() }, 1, Some(DiskBus::Nvme)),
                said(DiskTraits { fua: Some(true), ..DiskTraits::default() }, 1, Some(DiskBus::Virtio)),
                said(DiskTraits { fua: Some(true), ..DiskTraits::default() }, 1, Some(DiskBus::Nvme)),
                said(DiskTraits { fua: Some(false), ..DiskTraits::default() }, 1, Some(DiskBus::Nvme)),
                said(DiskTraits { discard_granularity: Some(100), ..DiskTraits::default() }, 1, None),
                said(DiskTraits { paths: Some(2), ..DiskTraits::default() }, 1, None),
            ]
            .join("\n")
        );
    }

    #[test]
    fn names_of_disks() {
        let wwn = Wwn::parse("0x5000C500a1b2c3d4").unwrap();
        assert_eq!((wwn.number(), wwn.to_string().as_str()), (0x5000_c500_a1b2_c3d4, "0x5000c500a1b2c3d4"));
        assert_eq!(Wwn::parse("0x0000000000000001").unwrap().to_string(), "0x0000000000000001");
        for wrong in [
            "",
            "0x",
            "5000c500a1b2c3d4",
            "0x5000c500a1b2c3d",
            "0x0000000000000000",
            "0x+000c500a1b2c3d",
            "0x5000c500a1b2c3d4f",
        ] {
            Wwn::parse(wrong).unwrap_err();
        }
        assert_eq!([512, 4096, 1024].map(SectorSize::of), [Some(SectorSize::S512), Some(SectorSize::S4096), None]);
    }
}
