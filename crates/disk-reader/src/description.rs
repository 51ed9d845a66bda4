//! What is on a disk, as data; its files can still be read.

use std::collections::HashSet;
use std::io::Write;

use belljar_image::initramfs::ModuleNames;
use belljar_image::kernel;
use serde::Serialize;

use crate::boot::{self, Boot, BootEntry, FileRef, Loader};
use crate::content::{self, Content, ContentKind};
use crate::disk::{Disk, Part, ReadError};
use crate::fs::{FileError, FileSystems, View};
use crate::lvm;
use crate::partition::{self, Partition, Table};
use crate::system::{self, System, SystemKernel};

/// Code that a BIOS runs is in the first bytes of a disk.
const BOOT_CODE: usize = 440;
/// Bytes of an initramfs whose contents are looked at, which are held in memory meanwhile.
const MAX_INITRAMFS: u64 = 256 << 20;
/// What one file of it counts as at least, so that there are not very many of them.
const SMALLEST_INITRAMFS: u64 = 4 << 20;

/// A part of a disk that may hold a file system.
#[derive(Clone, Debug, Serialize)]
pub struct Volume {
    /// For a person: `partition 1`, `the whole disk`, `the logical volume vg/root`.
    pub name: String,
    /// Where it is in the table; none for a whole disk and a logical volume.
    pub partition: Option<Partition>,
    /// Volume group and name of a logical volume.
    pub logical: Option<(String, String)>,
    /// Bytes.
    pub size: u64,
    /// What it holds.
    pub content: Content,
    /// Why its files cannot be read, although it is a file system of a kind that can be.
    pub unreadable: Option<String>,
    #[serde(skip)]
    pub(crate) part: Part,
}

impl Volume {
    /// Whether its files can be read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.content.kind.is_readable() && self.unreadable.is_none()
    }

    pub(crate) fn has_subvolumes(&self) -> bool {
        self.content.kind == ContentKind::Btrfs
    }

    /// As GRUB calls it.
    pub(crate) fn grub_name(&self) -> String {
        match (&self.partition, &self.logical) {
            (_, Some((group, name))) => format!("lvm/{}-{}", group.replace('-', "--"), name.replace('-', "--")),
            (Some(partition), None) if partition.kind.len() > 2 => format!("hd0,gpt{}", partition.number),
            (Some(partition), None) => format!("hd0,msdos{}", partition.number),
            (None, None) => "hd0".into(),
        }
    }
}

/// A volume smaller than this holds no system: where nothing is known of it, nobody need read it.
const SMALLEST_SYSTEM: u64 = 32 << 20;

/// What is on a disk.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// Bytes that the guest sees.
    pub size: u64,
    /// How it is divided.
    pub table: Table,
    /// Its parts: partitions in the table's order, then logical volumes; or the whole disk alone.
    pub volumes: Vec<Volume>,
    /// Whether there is code in the first sector that a BIOS would run.
    pub has_boot_code: bool,
    /// Whether it is the image of a CD that boots from a disk as well.
    pub is_cd: bool,
    /// What starts the kernel.
    pub loader: Loader,
    /// The boot menu, entries of submenus among them; only those whose kernel is there.
    pub entries: Vec<BootEntry>,
    /// Which of [`entries`](Self::entries) boots when nobody chooses.
    pub default: Option<usize>,
    /// What a person should know: what is broken, was left out, or was guessed.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub(crate) disk: Disk,
}

/// Looks at a disk: its partitions, file systems and boot configuration. A few megabytes are read.
///
/// What is wrong with a file system or a configuration is in the description. Nothing is written, and nothing of the disk is run.
///
/// # Errors
/// When the disk itself cannot be read, or a limit was met.
pub fn inspect(disk: &Disk) -> Result<Description, ReadError> {
    disk.begin();
    let found = partition::read(disk)?;
    let mut notes = found.notes;
    let whole = Part::new(disk, 0, disk.size());
    let has_boot_code = disk.size() >= 512 && {
        let sector = whole.bytes(0, 512)?;
        sector.ends_with(&[0x55, 0xaa]) && sector[..BOOT_CODE].iter().any(|&byte| byte != 0)
    };
    let is_cd = content::look(&whole).is_ok_and(|whole| whole.kind == ContentKind::Iso9660);
    let mut volumes = Vec::new();
    if found.partitions.is_empty() {
        volumes.push(volume("the whole disk".into(), None, None, whole));
    }
    for partition in found.partitions {
        // What is past the disk's end is not there.
        let length = partition.length.min(disk.size().saturating_sub(partition.start));
        let part = Part::new(disk, partition.start, length);
        volumes.push(volume(format!("partition {}", partition.number), Some(partition), None, part));
    }
    let physical: Vec<(&str, &Part)> =
        volumes.iter().filter(|v| v.content.kind == ContentKind::Lvm).map(|v| (v.name.as_str(), &v.part)).collect();
    let logical = lvm::read(&physical, &mut notes);
    for found in logical {
        let name = format!("the logical volume {}/{}", found.group, found.name);
        volumes.push(volume(name, None, Some((found.group, found.name)), found.part));
    }
    if let Some(limit) = disk.limit_met() {
        return Err(limit);
    }
    let broken: Vec<(usize, String)> = {
        let mut fs = file_systems(&volumes);
        let readable = (0..volumes.len()).filter(|&index| volumes[index].content.kind.is_readable());
        readable.filter_map(|index| Some((index, fs.check(index).err()?.to_string()))).collect()
    };
    for (index, why) in broken {
        volumes[index].unreadable = Some(why);
    }
    for volume in volumes.iter().filter(|volume| volume.content.kind == ContentKind::Btrfs) {
        // The log's root, in the superblock; zero after an orderly end.
        if volume.part.bytes(0x1_0060, 8).is_ok_and(|root| root != [0; 8]) {
            notes.push(format!(
                "{}: the btrfs was not unmounted, and what only its log has (what was synced in the last seconds) is not seen",
                volume.name
            ));
        }
    }
    let boot = boot::find(&volumes, &mut file_systems(&volumes));
    if let Some(limit) = disk.limit_met() {
        return Err(limit);
    }
    let Boot { loader, from: _, entries, default, notes: of_boot } = boot.unwrap_or(Boot {
        loader: Loader::None,
        from: String::new(),
        entries: Vec::new(),
        default: None,
        notes: Vec::new(),
    });
    notes.extend(of_boot);
    Ok(Description {
        size: disk.size(),
        table: found.table,
        volumes,
        has_boot_code,
        is_cd,
        loader,
        entries,
        default,
        notes,
        disk: disk.clone(),
    })
}

pub(crate) fn file_systems(volumes: &[Volume]) -> FileSystems<'_> {
    FileSystems::new(volumes.iter().map(|volume| (&volume.part, volume.content.kind)).collect())
}

fn volume(name: String, partition: Option<Partition>, logical: Option<(String, String)>, part: Part) -> Volume {
    let (content, unreadable) = match content::look(&part) {
        Ok(content) => (content, None),
        Err(error) => (
            Content { kind: ContentKind::Unknown, label: String::new(), uuid: String::new(), size: None },
            Some(error.to_string()),
        ),
    };
    Volume { name, partition, logical, size: part.size(), content, unreadable, part }
}

impl Description {
    /// What boots when nobody chooses.
    #[must_use]
    pub fn default_entry(&self) -> Option<&BootEntry> {
        self.entries.get(self.default?)
    }

    /// A volume that may hold a system which is not read here, and which others, such as GRUB, may read.
    #[must_use]
    pub fn for_others_to_read(&self) -> Option<&Volume> {
        let has_logical = self.volumes.iter().any(|volume| volume.logical.is_some());
        self.volumes.iter().find(|volume| match volume.content.kind {
            ContentKind::Empty | ContentKind::Swap | ContentKind::Luks | ContentKind::Bitlocker => false,
            ContentKind::Unknown => volume.size >= SMALLEST_SYSTEM,
            // Its logical volumes are volumes of their own, where they are read.
            ContentKind::Lvm => !has_logical,
            kind if kind.is_readable() => volume.unreadable.is_some(),
            _ => true,
        })
    }

    /// The kernel of the system that boots when nobody chooses: by what its file says of itself, else by its file's name. None where that is no kernel of
    /// the system's.
    #[must_use]
    pub fn booting_kernel<'a>(&self, system: &'a System) -> Option<&'a SystemKernel> {
        let entry = self.default_entry()?;
        let head = FileRef { size: entry.kernel.size.min(kernel::IDENTITY), ..entry.kernel.clone() };
        let release = self.read_file(&head, head.size).ok().and_then(|head| kernel::identify(&head)?.1);
        // By their names alone, for where one file system has both the other may see them at another path.
        let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let by_release = |kernel: &&SystemKernel| release.is_some() && kernel.release == release;
        let by_name = |kernel: &&SystemKernel| file(&kernel.path) == file(&entry.kernel.path);
        system.kernels.iter().find(by_release).or_else(|| system.kernels.iter().find(by_name))
    }

    /// The contents of a file of at most `max` bytes.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read_file(&self, file: &FileRef, max: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        self.copy_file(file, max, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies a file of at most `max` bytes, piece by piece. The limits of the disk hold for each copy anew.
    ///
    /// # Errors
    /// See [`FileError`]; `out` may have a part of it then.
    pub fn copy_file(&self, file: &FileRef, max: u64, out: &mut dyn Write) -> Result<u64, FileError> {
        self.disk.begin();
        file_systems(&self.volumes).copy_range(file, max, out)
    }

    /// The names of the kernel modules in the initramfs that an entry hands to its kernel; none where it hands over no initramfs.
    ///
    /// # Errors
    /// When one of its files cannot be read, is too large, or is nothing that a kernel unpacks: for a person.
    pub fn initramfs_modules(&self, entry: &BootEntry) -> Result<HashSet<String>, String> {
        let mut names = ModuleNames::default();
        // For all of them together.
        let mut left = MAX_INITRAMFS;
        for file in &entry.initrds {
            let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", file.path);
            let bytes = self.read_file(file, left).map_err(|error| failed(&error))?;
            left = left.saturating_sub((bytes.len() as u64).max(SMALLEST_INITRAMFS));
            names.add(&bytes).map_err(|error| failed(&error))?;
        }
        Ok(names.into_modules())
    }

    /// The operating system, or the first that is found of several; none if none is.
    ///
    /// # Errors
    /// When a limit was met, or the disk cannot be read any more.
    pub fn system(&self) -> Result<Option<System>, ReadError> {
        self.disk.begin();
        let system = system::read(&self.volumes, &mut file_systems(&self.volumes), self.default_entry());
        self.disk.limit_met().map_or(Ok(system), Err)
    }

    /// EFI programs that firmware finds without being told where: `/EFI/BOOT/BOOTX64.EFI` and its like.
    #[must_use]
    pub fn efi_programs(&self) -> Vec<String> {
        self.disk.begin();
        let mut fs = file_systems(&self.volumes);
        let mut found = Vec::new();
        for volume in (0..self.volumes.len()).filter(|&index| self.volumes[index].content.kind == ContentKind::Fat) {
            let names = fs.list(volume, View::Top, "/EFI/BOOT").unwrap_or_default();
            let is_program = |name: &String| {
                name.to_ascii_uppercase().starts_with("BOOT") && name.to_ascii_uppercase().ends_with(".EFI")
            };
            found.extend(names.into_iter().filter(is_program));
        }
        found
    }

    /// The contents of the file of at most `max` bytes that a path on a volume leads to, links resolved within it.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read_path(&self, volume: usize, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        self.disk.begin();
        file_systems(&self.volumes).read(volume, View::Top, path, max)
    }

    /// The names in a directory of a volume, sorted; of a large one only some.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn list_path(&self, volume: usize, path: &str) -> Result<Vec<String>, FileError> {
        self.disk.begin();
        file_systems(&self.volumes).list(volume, View::Top, path)
    }

    /// An EFI system partition, from which firmware of that kind would boot.
    #[must_use]
    pub fn esp(&self) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.partition.as_ref().is_some_and(Partition::is_esp))
    }
}
