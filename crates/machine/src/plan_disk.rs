//! The disks of a plan: throw-away layers without a name, handed to QEMU as descriptors.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use belljar_image::disk::{self, DiskError, DiskImage, Format, Layer, UnknownFormat};

use crate::{
    qemu::args::{Backing, Disk, DiskBus, DiskSource, FIRST_EXTRA_FD, FdSet, MachineConfig},
    spec::{Bus, DiskContent, DiskSpec},
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
    bus: Bus,
    serial: Option<String>,
    boot_index: Option<u32>,
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
    pub(crate) fn boot(qemu_img: &Path, image: &Path, format: Option<&str>, bus: Bus) -> Result<Self, PlanDiskError> {
        let format = format.map(str::parse).transpose()?;
        let content = Content::Image(disk::inspect(qemu_img, image, format)?);
        Ok(Self { content, bus, serial: None, boot_index: Some(0) })
    }

    /// Another disk.
    pub(crate) fn extra(qemu_img: &Path, spec: &DiskSpec) -> Result<Self, PlanDiskError> {
        let content = match &spec.content {
            DiskContent::Image(path) => Content::Image(disk::inspect(qemu_img, path, None)?),
            DiskContent::Empty(size) => Content::Empty(*size),
        };
        Ok(Self { content, bus: spec.bus, serial: spec.serial.clone(), boot_index: None })
    }

    /// The disk for QEMU, its bytes being in `source`.
    fn device(&self, source: DiskSource) -> Disk {
        let (format, backing) = match &self.content {
            Content::Image(image) => (Format::Qcow2, backing(image.layers())),
            Content::Empty(_) => (Format::Raw, None),
        };
        Disk {
            backing,
            bus: bus_of(self.bus),
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
    fn by_hand(&self, file: &Path) -> Vec<OsString> {
        match &self.content {
            Content::Image(image) => {
                words(["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.format().driver(), "-b"])
                    .chain([image.path().as_os_str().to_owned(), file.as_os_str().to_owned()])
                    .collect()
            }
            Content::Empty(size) => words(["qemu-img", "create", "-q", "-f", "raw"])
                .chain([file.as_os_str().to_owned(), size.to_string().into()])
                .collect(),
        }
    }
}

/// Puts the disks into a machine as a person would have them; gives the commands that make them.
pub(crate) fn describe(disks: &[PlannedDisk], config: &mut MachineConfig) -> Vec<Vec<OsString>> {
    let mut commands = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let extension = match disk.content {
            Content::Image(_) => "qcow2",
            Content::Empty(_) => "raw",
        };
        let file = PathBuf::from(format!("belljar-disk{at}.{extension}"));
        commands.push(disk.by_hand(&file));
        config.disks.push(disk.device(DiskSource::Path(file)));
    }
    commands
}

/// Makes what takes the guest's writes, in `dir`, and puts the disks into the machine; gives the descriptors under the numbers
/// that QEMU is to find.
pub(crate) fn open(
    disks: &[PlannedDisk],
    dir: &Path,
    config: &mut MachineConfig,
) -> Result<Vec<(i32, OwnedFd)>, DiskError> {
    let mut fds = Vec::new();
    for ((fd, set), disk) in (FIRST_EXTRA_FD..).zip(1..).zip(disks) {
        fds.push((fd, disk.make(dir)?));
        config.fd_sets.push(FdSet { fd, set });
        config.disks.push(disk.device(DiskSource::FdSet(set)));
    }
    Ok(fds)
}

fn words<const N: usize>(words: [&str; N]) -> impl Iterator<Item = OsString> {
    words.map(OsString::from).into_iter()
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

fn bus_of(bus: Bus) -> DiskBus {
    match bus {
        Bus::Virtio => DiskBus::Virtio,
        Bus::Scsi => DiskBus::Scsi,
        Bus::Sata => DiskBus::Sata,
        Bus::Ide => DiskBus::Ide,
        Bus::Nvme => DiskBus::Nvme,
    }
}
