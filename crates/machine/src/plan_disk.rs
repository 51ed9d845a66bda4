//! The disks of a plan: throw-away layers without a name, handed to QEMU as descriptors.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use belljar_image::disk::{self, DiskError, Format, Layer, UnknownFormat};

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

/// Collects disks in their order.
pub(crate) struct Disks<'a> {
    qemu_img: &'a Path,
    dir: &'a Path,
    made: Vec<Made>,
}

struct Made {
    fd: OwnedFd,
    disk: Disk,
    /// How a person makes the same.
    by_hand: Vec<OsString>,
    file_by_hand: PathBuf,
}

impl<'a> Disks<'a> {
    /// Layers are made in `dir`, for a moment.
    pub(crate) fn new(qemu_img: &'a Path, dir: &'a Path) -> Self {
        Self { qemu_img, dir, made: Vec::new() }
    }

    /// The disk to boot from.
    pub(crate) fn boot(&mut self, image: &Path, format: Option<&str>, bus: Bus) -> Result<(), PlanDiskError> {
        let format = format.map(str::parse).transpose()?;
        self.layer(image, format, bus, None, Some(0))
    }

    /// Another disk.
    pub(crate) fn extra(&mut self, spec: &DiskSpec) -> Result<(), PlanDiskError> {
        match &spec.content {
            DiskContent::Image(path) => self.layer(path, None, spec.bus, spec.serial.clone(), None),
            DiskContent::Empty(size) => {
                let fd = disk::create_empty(self.dir, *size)?.fd;
                let file_by_hand = self.name("raw");
                let by_hand = words(["qemu-img", "create", "-q", "-f", "raw"])
                    .chain([file_by_hand.clone().into_os_string(), size.to_string().into()])
                    .collect();
                let disk = Disk {
                    bus: bus_of(spec.bus),
                    serial: spec.serial.clone(),
                    ..Disk::new(DiskSource::FdSet(0), Format::Raw.driver())
                };
                self.made.push(Made { fd, disk, by_hand, file_by_hand });
                Ok(())
            }
        }
    }

    fn layer(
        &mut self,
        image: &Path,
        format: Option<Format>,
        bus: Bus,
        serial: Option<String>,
        boot_index: Option<u32>,
    ) -> Result<(), PlanDiskError> {
        let image = disk::inspect(self.qemu_img, image, format)?;
        let overlay = disk::create_overlay(self.dir, &image)?;
        let file_by_hand = self.name("qcow2");
        let by_hand = words(["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.format().driver(), "-b"])
            .chain([image.path().as_os_str().to_owned(), file_by_hand.clone().into_os_string()])
            .collect();
        let disk = Disk {
            backing: backing(image.layers()),
            bus: bus_of(bus),
            serial,
            boot_index,
            ..Disk::new(DiskSource::FdSet(0), Format::Qcow2.driver())
        };
        self.made.push(Made { fd: overlay.fd, disk, by_hand, file_by_hand });
        Ok(())
    }

    fn name(&self, extension: &str) -> PathBuf {
        PathBuf::from(format!("belljar-disk{}.{extension}", self.made.len()))
    }

    /// The disks as a person would have them, and the commands that make them.
    pub(crate) fn describe(&self, config: &mut MachineConfig) -> Vec<Vec<OsString>> {
        config.disks = self
            .made
            .iter()
            .map(|m| Disk { source: DiskSource::Path(m.file_by_hand.clone()), ..m.disk.clone() })
            .collect();
        self.made.iter().map(|m| m.by_hand.clone()).collect()
    }

    /// Puts the disks into the machine; gives the descriptors under the numbers that QEMU is to find.
    pub(crate) fn finish(self, config: &mut MachineConfig) -> Vec<(i32, OwnedFd)> {
        let mut fds = Vec::new();
        for ((fd, set), made) in (FIRST_EXTRA_FD..).zip(1..).zip(self.made) {
            config.fd_sets.push(FdSet { fd, set });
            config.disks.push(Disk { source: DiskSource::FdSet(set), ..made.disk });
            fds.push((fd, made.fd));
        }
        fds
    }
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
