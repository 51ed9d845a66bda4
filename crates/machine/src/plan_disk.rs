//! The disks of a plan: throw-away layers without a name, handed to QEMU as descriptors.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{DiskBus, DiskContent, DiskSpec, Word};
use belljar_image::disk::{self, DiskError, DiskImage, Format, Layer, UnknownFormat, Use};

use crate::{
    qemu::{
        args::{Backing, Disk, DiskSource, MachineConfig},
        descriptors::{Descriptors, Purpose},
    },
    template::{KeyMaker, Making, Unkeyable},
};

/// Why a disk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlanDiskError {
    /// The image, or the layer over it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The format that was given is none.
    #[error(transparent)]
    Format(#[from] UnknownFormat),
}

/// One disk of a plan. What takes the guest's writes is made when the guest is started.
#[derive(Clone, Debug)]
pub(crate) struct PlannedDisk {
    content: Content,
    bus: DiskBus,
    serial: Option<String>,
    boot_index: Option<u32>,
}

/// When a disk can be plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Plugging {
    /// It has to be there from the machine's start.
    Never,
    /// Before the machine is frozen, so that the copies have it.
    Frozen,
    /// Into each copy: QEMU cannot freeze a machine that has it.
    Late,
}

#[derive(Clone, Debug)]
enum Content {
    /// An image, under a layer.
    Image(DiskImage),
    /// This many bytes of zeros.
    Empty(u64),
}

impl PlannedDisk {
    /// The disk to boot from.
    pub(crate) fn boot(
        qemu_img: &Path,
        image: &Path,
        format: Option<&str>,
        bus: DiskBus,
    ) -> Result<Self, PlanDiskError> {
        let format = format.map(str::parse).transpose()?;
        let content = Content::Image(disk::inspect(qemu_img, image, format, Use::Boot)?);
        Ok(Self { content, bus, serial: None, boot_index: Some(0) })
    }

    /// Another disk.
    pub(crate) fn extra(qemu_img: &Path, spec: &DiskSpec) -> Result<Self, PlanDiskError> {
        let content = match &spec.content {
            DiskContent::Image(path) => Content::Image(disk::inspect(qemu_img, path, None, Use::Data)?),
            DiskContent::Empty(size) => Content::Empty(*size),
        };
        Ok(Self { content, bus: spec.bus, serial: spec.serial.clone(), boot_index: None })
    }

    /// Whether it can be plugged into a machine of type `pc` that runs, and whether that machine can be frozen then.
    pub(crate) fn plugging(&self) -> Plugging {
        match self.bus {
            _ if self.boot_index.is_some() => Plugging::Never,
            DiskBus::Ide | DiskBus::Sata => Plugging::Never,
            DiskBus::Virtio | DiskBus::Scsi => Plugging::Frozen,
            DiskBus::Nvme => Plugging::Late,
        }
    }

    /// Whether it is another than that which is booted from.
    pub(crate) fn is_further(&self) -> bool {
        self.boot_index.is_none()
    }

    /// What it is plugged into.
    pub(crate) fn kind(&self) -> &'static str {
        self.bus.word()
    }

    /// Whether it has a place of its own on the PCI bus.
    pub(crate) fn is_on_pci(&self) -> bool {
        matches!(self.bus, DiskBus::Virtio | DiskBus::Nvme)
    }

    /// Puts what decides the disk's content into a key.
    fn add_to(&self, key: &mut KeyMaker) -> Result<(), Unkeyable> {
        if self.bus == DiskBus::Nvme {
            return Err(Unkeyable::Impossible("QEMU cannot freeze an NVMe disk".into()));
        }
        match &self.content {
            Content::Empty(size) => key.add("empty", &size.to_le_bytes()),
            Content::Image(image) => {
                key.add("size", &image.virtual_size.to_le_bytes());
                for layer in image.layers() {
                    if layer.device {
                        let what =
                            format!("{} is a block device, whose changes cannot be noticed", layer.path.display());
                        return Err(Unkeyable::Impossible(what));
                    }
                    key.add("format", layer.format.driver().as_bytes());
                }
                let files = image.files();
                for file in files.map_err(|source| Unkeyable::File { path: image.path().to_owned(), source })? {
                    key.add_file("layer", &file)?;
                }
            }
        }
        Ok(())
    }

    /// Bytes that the guest sees.
    fn size(&self) -> u64 {
        match &self.content {
            Content::Image(image) => image.virtual_size,
            Content::Empty(size) => *size,
        }
    }

    /// The disk for QEMU, its bytes being in `source`.
    fn device(&self, source: DiskSource) -> Disk {
        let (format, backing) = match &self.content {
            Content::Image(image) => (Format::Qcow2, backing(image.layers())),
            Content::Empty(_) => (Format::Raw, None),
        };
        Disk {
            backing,
            bus: self.bus,
            serial: self.serial.clone(),
            boot_index: self.boot_index,
            ..Disk::new(source, format.driver())
        }
    }

    /// A file without a name in `dir` that takes what the guest writes.
    fn make(&self, dir: &Path) -> Result<OwnedFd, DiskError> {
        let overlay = match &self.content {
            Content::Image(image) => disk::create_overlay(dir, image)?,
            Content::Empty(size) => disk::create_empty(dir, *size)?,
        };
        Ok(overlay.fd)
    }

    /// How a person makes the same.
    fn by_hand(&self, qemu_img: &Path, file: &Path) -> Vec<OsString> {
        let (options, operands) = match &self.content {
            Content::Image(image) => (
                vec!["-f", "qcow2", "-F", image.format().driver(), "-b"],
                vec![image.path().as_os_str().to_owned(), file.as_os_str().to_owned()],
            ),
            Content::Empty(size) => (vec!["-f", "raw"], vec![file.as_os_str().to_owned(), size.to_string().into()]),
        };
        let command = [qemu_img.as_os_str(), "create".as_ref(), "-q".as_ref()].map(OsStr::to_owned).into_iter();
        command.chain(options.into_iter().map(OsString::from)).chain(operands).collect()
    }
}

/// Puts the disks into a machine as a person would have them; gives the commands that make them.
pub(crate) fn describe(disks: &[PlannedDisk], qemu_img: &Path, config: &mut MachineConfig) -> Vec<Vec<OsString>> {
    let mut commands = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let extension = match disk.content {
            Content::Image(_) => "qcow2",
            Content::Empty(_) => "raw",
        };
        let file = PathBuf::from(format!("belljar-disk{at}.{extension}"));
        commands.push(disk.by_hand(qemu_img, &file));
        config.disks.push(disk.device(DiskSource::Path(file)));
    }
    commands
}

/// Puts what decides the disks into a key, and the disks into the machine whose arguments go there too.
pub(crate) fn add_to(disks: &[PlannedDisk], key: &mut KeyMaker, config: &mut MachineConfig) -> Result<(), Unkeyable> {
    for disk in disks {
        disk.add_to(key)?;
        // Where its bytes are is another place each time.
        config.disks.push(Disk { backing: None, ..disk.device(DiskSource::Path(PathBuf::new())) });
    }
    Ok(())
}

/// Makes what takes the guest's writes until it is frozen, as parts of a template. Those before are there already.
pub(crate) fn open_in_template(
    disks: &[PlannedDisk],
    making: &Making,
    attached: bool,
    config: &mut MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<(), DiskError> {
    for disk in disks {
        let dir = making.dir();
        let file = making.create_disk(config.disks.len());
        let file = file.map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })?;
        let made = match &disk.content {
            Content::Image(image) => disk::overlay_in(file, dir, image.virtual_size)?,
            Content::Empty(size) => disk::empty_in(file, dir, *size)?,
        };
        let source = DiskSource::FdSet(descriptors.add_set(Purpose::Volume, made.fd));
        config.disks.push(Disk { attached, ..disk.device(source) });
    }
    Ok(())
}

/// Puts disks that a template has into the machine, to be written to.
pub(crate) fn go_on(
    disks: &[PlannedDisk],
    files: Vec<File>,
    config: &mut MachineConfig,
    descriptors: &mut Descriptors,
) {
    for (disk, file) in disks.iter().zip(files) {
        let source = DiskSource::FdSet(descriptors.add_set(Purpose::Volume, file));
        config.disks.push(disk.device(source));
    }
}

/// Makes what takes a copy's writes, in `dir`, over a template's disks.
pub(crate) fn open_over_template(
    disks: &[PlannedDisk],
    template: Vec<File>,
    dir: &Path,
    config: &mut MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<(), DiskError> {
    for (disk, below) in disks.iter().zip(template) {
        let layer = disk::create_layer(dir, disk.size())?.fd;
        let over = disk.device(DiskSource::FdSet(descriptors.add_set(Purpose::Volume, layer)));
        let source = DiskSource::FdSet(descriptors.add_set(Purpose::Below, below));
        let backing = Backing { source, format: over.format, device: false, backing: over.backing };
        config.disks.push(Disk { format: Format::Qcow2.driver().to_owned(), backing: Some(Box::new(backing)), ..over });
    }
    Ok(())
}

/// Makes what takes the guest's writes, in `dir`, and puts the disks into the machine.
pub(crate) fn open(
    disks: &[PlannedDisk],
    dir: &Path,
    attached: bool,
    config: &mut MachineConfig,
    descriptors: &mut Descriptors,
) -> Result<(), DiskError> {
    for disk in disks {
        let source = DiskSource::FdSet(descriptors.add_set(Purpose::Volume, disk.make(dir)?));
        config.disks.push(Disk { attached, ..disk.device(source) });
    }
    Ok(())
}

/// The whole chain below a layer, formats included, so that QEMU takes nothing from a header on trust.
fn backing(layers: &[Layer]) -> Option<Box<Backing>> {
    let (first, rest) = layers.split_first()?;
    Some(Box::new(Backing {
        source: DiskSource::Path(first.path.clone()),
        format: first.format.driver().to_owned(),
        device: first.device,
        backing: backing(rest),
    }))
}
