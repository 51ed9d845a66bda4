//! What a machine writes to that is not memory: its volumes, each with a number, a place, and a part in the template's key.
//!
//! A volume has a *content*, what is in it before the guest writes ([`content`]), and a *front*, what it is in the machine ([`disk`]).
//! Where its bytes are depends on how the machine comes about ([`Bytes`]): that is the same for all, whatever they hold and whatever they
//! are. A volume's number is its place among those of its guest, and that of its part of a template.

mod content;
pub(crate) mod directory;
mod disk;
mod flash;
mod lab;
mod made;
mod raw_copy;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{DiskBus, DiskConflict, DiskContent, DiskSpec, Hardware, SectorSize};
use belljar_image::disk::{DiskError, DiskImage, UnknownFormat, unnamed};
use belljar_model::EventKind;

pub(crate) use self::lab::Watched;
use self::{
    content::Content,
    disk::{DiskFront, Role},
    flash::FlashFront,
    lab::LabFront,
};
use crate::{
    Lost,
    access::rungs::Seed,
    host::HostContext,
    launch::Launch,
    qemu::{
        args::{Backing, DiskSource, MachineConfig, Node, ProgramSource},
        descriptors::Purpose,
        firmware::FlashImage,
    },
    template::{KeyMaker, Making, Unkeyable, copy_sparse},
};

/// The name, and the serial number, of a boot disk that Belljar serves.
pub(crate) const BOOT_LAB: &str = "boot";

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The image, or the layer over it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The format that was given is none.
    #[error(transparent)]
    Format(#[from] UnknownFormat),
    /// An image of which no copy can be kept.
    #[error(
        "a lab disk is served from a raw copy of {}, and a part of that is on a block device, whose changes nobody would notice; copy it to a file: qemu-img convert -O qcow2 {} disk.qcow2", path.display(), path.display()
    )]
    OnDevice {
        /// The image.
        path: PathBuf,
    },
    /// A lab disk that is larger than such a disk can be.
    #[error("the lab disk {name} would have {}, and one has 8 TiB at most; make it smaller, or no lab disk", crate::bounds::size(*size))]
    TooLarge {
        /// The disk.
        name: String,
        /// Its bytes.
        size: u64,
    },
    /// A kind of disk that does not go with the bus.
    #[error("{disk}: {conflict}")]
    Kind {
        /// The disk.
        disk: String,
        /// What is wrong.
        conflict: DiskConflict,
    },
    /// An image that ends in the middle of a sector.
    #[error(
        "{disk}: its {size} bytes are no whole number of sectors of {sector} bytes; leave `sector-size` out, or make the image larger: truncate -s %{sector} FILE, where it is raw"
    )]
    Sectors {
        /// The disk.
        disk: String,
        /// Bytes of the disk.
        size: u64,
        /// Its logical sectors.
        sector: SectorSize,
    },
    /// No file system was made of a directory.
    #[error("Belljar's own defect: no file system was made of {}", path.display())]
    NotMade {
        /// The directory.
        path: PathBuf,
    },
    /// A lab disk that nobody could tell from another disk.
    #[error(
        "two disks have the serial number {serial}, by which a lab disk is told from others; give each one of its own"
    )]
    SameName {
        /// The serial number.
        serial: String,
    },
}

/// One volume of a guest. What takes the guest's writes is made when the guest is started.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    content: Content,
    front: Front,
    /// What Belljar serves it by, if it does itself.
    lab: Option<LabFront>,
}

/// What a volume is in the machine.
#[derive(Clone, Debug)]
enum Front {
    /// A disk.
    Disk(DiskFront),
    /// Flash memory.
    Flash(FlashFront),
}

/// When a volume can be plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Plugging {
    /// It has to be there from the machine's start.
    Never,
    /// Before the machine is frozen, so that the copies have it.
    Frozen,
    /// Into each copy: QEMU cannot freeze a machine that has it.
    Late,
}

/// Where a volume's bytes are.
enum Bytes<'a> {
    /// In a file without a name, which is made in this directory.
    InDir(&'a Path),
    /// In a part of a template, which is made.
    InTemplate(&'a Making),
    /// In a copy of a template's part, which is the guest's own.
    Own(File),
    /// In a template's part, under a layer without a name that is made in this directory.
    Over(File, &'a Path),
    /// Where the machine before left them, in this directory.
    Again(Kept, &'a Path),
}

/// What is kept of a volume's bytes for a machine that takes the place of this one.
#[derive(Debug)]
pub(crate) enum Kept {
    /// The file.
    File(File),
    /// The layer that is written to, and what it lies over.
    Layer {
        /// What is written to.
        layer: File,
        /// What is not.
        below: File,
    },
    /// Belljar serves it, and writes to this file.
    Lab(File),
    /// Nothing: its bytes are made anew.
    Anew,
}

impl Kept {
    /// The same files.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::File(file) => Self::File(file.try_clone()?),
            Self::Layer { layer, below } => Self::Layer { layer: layer.try_clone()?, below: below.try_clone()? },
            Self::Lab(file) => Self::Lab(file.try_clone()?),
            Self::Anew => Self::Anew,
        })
    }

    /// What is written to as it is now, in another file without a name in `dir`. Whoever serves a lab disk has that.
    pub(crate) fn copy(&self, dir: &Path) -> io::Result<Self> {
        let copied = |file: &File| -> io::Result<File> {
            let copy = unnamed(dir).map_err(io::Error::other)?;
            copy_sparse(file, &copy, file.metadata()?.len())?;
            Ok(copy)
        };
        Ok(match self {
            Self::File(file) => Self::File(copied(file)?),
            Self::Layer { layer, below } => Self::Layer { layer: copied(layer)?, below: below.try_clone()? },
            Self::Lab(_) | Self::Anew => self.try_clone()?,
        })
    }

    /// About how many bytes a copy takes.
    pub(crate) fn allocated(&self) -> u64 {
        match self {
            Self::File(file) | Self::Layer { layer: file, .. } => {
                file.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
            }
            Self::Lab(_) | Self::Anew => 0,
        }
    }
}

impl Volume {
    /// The disk to boot from, of which what is on a medium does it if there is one.
    /// It is served by Belljar if it `is_lab`.
    pub(crate) fn boot(image: DiskImage, bus: DiskBus, has_medium: bool, is_lab: bool) -> Result<Self, VolumeError> {
        let role = if has_medium { Role::BootBehindMedium } else { Role::Boot };
        let front = Front::Disk(DiskFront::new(bus, None, role));
        let disk = Self { content: Content::Image(image), front, lab: None };
        if is_lab { disk.into_lab(BOOT_LAB.to_owned()) } else { Ok(disk) }
    }

    /// The disk in `file` from which the firmware starts what boots the guest from another.
    pub(crate) fn medium(qemu_img: &Path, file: &Path, serial: &str, bus: DiskBus) -> Result<Self, VolumeError> {
        let content = Content::data(qemu_img, file, Some("raw"))?;
        let front = Front::Disk(DiskFront::new(bus, Some(serial.to_owned()), Role::Medium));
        Ok(Self { content, front, lab: None })
    }

    /// The disk with the root of a guest whose kernel Belljar gives.
    pub(crate) fn root(qemu_img: &Path, file: &Path, serial: &str) -> Result<Self, VolumeError> {
        let content = Content::data(qemu_img, file, Some("raw"))?;
        let front = Front::Disk(DiskFront::new(DiskBus::Virtio, Some(serial.to_owned()), Role::Boot));
        Ok(Self { content, front, lab: None })
    }

    /// Whether the user's disks can be of the kind that they are to be, on this bus where none was asked for.
    pub(crate) fn check_kinds(specs: &[DiskSpec], bus: DiskBus) -> Result<(), VolumeError> {
        for spec in specs {
            if let Some(conflict) = spec.conflicts(Some(spec.bus.asked().unwrap_or(bus))).into_iter().next() {
                return Err(VolumeError::Kind { disk: spec.name(), conflict });
            }
        }
        Ok(())
    }

    /// The user's disks beside that which is booted from, on this bus where none was asked for.
    pub(crate) fn all_further(qemu_img: &Path, hardware: &Hardware, bus: DiskBus) -> Result<Vec<Self>, VolumeError> {
        let specs = &hardware.disks;
        let mut all = Vec::new();
        // A number that two have is no name of either.
        let mut names: BTreeSet<String> = specs.iter().filter_map(|spec| spec.serial.clone()).collect();
        if hardware.boot_lab && names.contains(BOOT_LAB) {
            return Err(VolumeError::SameName { serial: BOOT_LAB.to_owned() });
        }
        for spec in specs {
            let mut disk = Self::further(qemu_img, spec, bus)?;
            if spec.lab {
                // It has to have a name, and the guest has to know which one it is.
                let free =
                    |names: &BTreeSet<String>| (0..).map(|at| format!("lab{at}")).find(|name| !names.contains(name));
                if let Some(serial) = &spec.serial
                    && specs.iter().filter(|other| other.serial.as_ref() == Some(serial)).count() > 1
                {
                    return Err(VolumeError::SameName { serial: serial.clone() });
                }
                let name = spec.serial.clone().or_else(|| free(&names)).unwrap_or_default();
                names.insert(name.clone());
                disk = disk.into_lab(name)?;
            }
            all.push(disk);
        }
        Ok(all)
    }

    /// The disk with the kernel's modules, for a guest whose init is to find them. It is on SCSI, so that no disk that was asked for has another name for it but one on SCSI.
    pub(crate) fn modules(qemu_img: &Path, file: &Path, serial: &str) -> Result<Self, VolumeError> {
        let content = Content::data(qemu_img, file, Some("raw"))?;
        let front = Front::Disk(DiskFront::new(DiskBus::Scsi, Some(serial.to_owned()), Role::Fixed));
        Ok(Self { content, front, lab: None })
    }

    /// Another disk, on this bus if none was asked for.
    pub(crate) fn further(qemu_img: &Path, spec: &DiskSpec, bus: DiskBus) -> Result<Self, VolumeError> {
        let content = match &spec.content {
            DiskContent::Image(path) => Content::data(qemu_img, path, None)?,
            DiskContent::Empty(size) => Content::Empty(*size),
            DiskContent::Directory(directory) => {
                return Err(VolumeError::NotMade { path: directory.path.clone() });
            }
        };
        let bus = spec.bus.asked().unwrap_or(bus);
        if let Some((sector, _)) = spec.traits.sectors()
            && !content.size().is_multiple_of(sector.bytes())
        {
            return Err(VolumeError::Sectors { disk: spec.name(), size: content.size(), sector });
        }
        let traits = spec.traits.clone();
        let front = Front::Disk(DiskFront { traits, ..DiskFront::new(bus, spec.serial.clone(), Role::Further) });
        Ok(Self { content, front, lab: None })
    }

    /// The disk by which a rung tells a program in the guest what to do: to start the agent that comes from `program`.
    pub(crate) fn seed(seed: Seed, bus: DiskBus, program: ProgramSource) -> Self {
        let front = Front::Disk(DiskFront::new(bus, Some(seed.serial.to_owned()), Role::Further));
        Self { content: Content::Seed(seed, program), front, lab: None }
    }

    /// The variables of the firmware, which are these at first.
    pub(crate) fn variables(qemu_img: &Path, image: &FlashImage) -> Result<Self, VolumeError> {
        let content = Content::data(qemu_img, &image.path, Some(&image.format))?;
        Ok(Self { content, front: Front::Flash(FlashFront), lab: None })
    }

    /// Whether it can be plugged into a machine that runs, if its slot there is known, and whether that machine can be frozen then.
    pub(crate) fn plugging(&self) -> Plugging {
        match &self.front {
            Front::Disk(disk) => disk.plugging(),
            Front::Flash(flash) => flash.plugging(),
        }
    }

    /// Whether it is a disk of the user's beside that which is booted from.
    pub(crate) fn is_further(&self) -> bool {
        match &self.front {
            Front::Disk(disk) => disk.role == Role::Further && !matches!(self.content, Content::Seed(..)),
            Front::Flash(_) => false,
        }
    }

    /// The kind of device that it is, of which all can be plugged into a guest or none.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.front {
            Front::Disk(disk) => disk.kind(),
            Front::Flash(_) => "flash memory",
        }
    }

    /// What it is, in the name of a person's file.
    fn noun(&self) -> &'static str {
        match &self.front {
            Front::Disk(_) => "disk",
            Front::Flash(_) => "variables",
        }
    }

    /// The kind of disk that it is, if it is one of which something is said.
    fn disk(&self) -> Option<&DiskFront> {
        match &self.front {
            Front::Disk(disk) => Some(disk),
            Front::Flash(_) => None,
        }
    }

    /// Whether it takes a slot of its own among those of further disks.
    pub(crate) fn takes_slot(&self) -> bool {
        match &self.front {
            Front::Disk(disk) => disk.takes_slot(),
            Front::Flash(_) => false,
        }
    }

    /// Puts it into a machine, its bytes being there.
    fn show(&self, node: Node, attached: bool, config: &mut MachineConfig) {
        match &self.front {
            Front::Disk(disk) => config.disks.push(disk.device(node, attached)),
            Front::Flash(flash) => flash.show(node, config),
        }
    }

    /// Puts what decides it into a key, and itself into the machine whose arguments go there too.
    fn add_to(&self, key: &mut KeyMaker, config: &mut MachineConfig) -> Result<(), Unkeyable> {
        match &self.front {
            Front::Disk(disk) => disk.check_key()?,
            Front::Flash(_) => {}
        }
        self.content.add_to(key)?;
        if self.lab.is_some() {
            key.add("lab", belljar_lab::FROZEN_FORMAT);
        }
        // Where its bytes are is another place each time, and what it lies over is in the key already.
        let node = Node { backing: None, ..self.content.node(DiskSource::Path(PathBuf::new())) };
        self.show(node, true, config);
        Ok(())
    }

    /// Sees to it that its bytes are there, and puts it into a machine. `number` is its own.
    fn put(&self, number: usize, bytes: Bytes<'_>, attached: bool, launch: &mut Launch) -> Result<(), DiskError> {
        if let Some(lab) = &self.lab {
            let node = lab::serve(lab, &self.content, self.disk(), number, bytes, launch)?;
            self.show(node, attached, &mut launch.config);
            return Ok(());
        }
        let in_dir = |source| DiskError::Layer { dir: "the run's directory".into(), source };
        let bytes = match bytes {
            Bytes::Again(Kept::File(file), _) => Bytes::Own(file),
            Bytes::Again(Kept::Anew | Kept::Lab(_), dir) => Bytes::InDir(dir),
            bytes => bytes,
        };
        let Launch { config, descriptors, kept, .. } = launch;
        let is_seed = matches!(self.content, Content::Seed(..));
        let mut keep = |kept_now: io::Result<Kept>| -> Result<(), DiskError> {
            kept.push(if is_seed { Kept::Anew } else { kept_now.map_err(in_dir)? });
            Ok(())
        };
        let mut hand_over = |purpose, file: File| DiskSource::FdSet(descriptors.add_set(purpose, file));
        let mut alone = |file: File| -> Result<Node, DiskError> {
            keep(file.try_clone().map(Kept::File))?;
            Ok(self.content.node(hand_over(Purpose::Volume, file)))
        };
        let node = match bytes {
            Bytes::InDir(dir) => alone(self.content.make(unnamed(dir)?, dir)?)?,
            Bytes::InTemplate(making) => {
                let dir = making.dir();
                let file = making.create_volume(number);
                let file = file.map_err(|source| DiskError::Layer { dir: dir.to_owned(), source })?;
                alone(self.content.make(file, dir)?)?
            }
            Bytes::Own(file) => alone(file)?,
            Bytes::Over(below, dir) => {
                let layer = self.content.make_layer(unnamed(dir)?, dir)?;
                self.layered(layer, below, keep, hand_over)?
            }
            Bytes::Again(Kept::Layer { layer, below }, _) => self.layered(layer, below, keep, hand_over)?,
            // The others are none of these any more.
            Bytes::Again(_, dir) => alone(self.content.make(unnamed(dir)?, dir)?)?,
        };
        self.show(node, attached, config);
        Ok(())
    }

    /// What is written to over what is not.
    fn layered(
        &self,
        layer: File,
        below: File,
        mut keep: impl FnMut(io::Result<Kept>) -> Result<(), DiskError>,
        mut hand_over: impl FnMut(Purpose, File) -> DiskSource,
    ) -> Result<Node, DiskError> {
        let both = layer.try_clone().and_then(|layer| Ok(Kept::Layer { layer, below: below.try_clone()? }));
        keep(both)?;
        let layer = hand_over(Purpose::Volume, layer);
        let Node { source, format, backing, .. } = self.content.node(hand_over(Purpose::Below, below));
        let below = Backing { source, format, device: false, backing };
        Ok(Node { backing: Some(Box::new(below)), ..Node::layer(layer) })
    }
}

/// The volumes of a guest: those that have to be there from the start, then those that can be plugged in and frozen, then those that go
/// into each copy.
#[derive(Clone, Debug)]
pub(crate) struct Volumes {
    all: Vec<Volume>,
    /// How many have to be there from the start.
    fixed: usize,
    /// How many a template of this guest has.
    frozen: usize,
}

impl Volumes {
    /// The volumes of a machine into which some can be plugged while it runs, if `pluggable`.
    pub(crate) fn new(mut all: Vec<Volume>, pluggable: bool) -> Self {
        let (mut fixed, mut frozen) = (all.len(), all.len());
        if pluggable {
            all.sort_by_key(Volume::plugging);
            fixed = all.iter().filter(|volume| volume.plugging() == Plugging::Never).count();
            frozen = all.iter().filter(|volume| volume.plugging() != Plugging::Late).count();
        }
        Self { all, fixed, frozen }
    }

    /// Whether what was not flushed to the boot disk is lost with the power.
    pub(crate) fn boot_loses_power(&self) -> bool {
        self.all.iter().any(|volume| volume.lab.as_ref().is_some_and(|lab| lab.name == BOOT_LAB))
    }

    /// Whether one is on NVMe.
    pub(crate) fn are_on_nvme(&self) -> bool {
        self.all.iter().any(|volume| matches!(&volume.front, Front::Disk(disk) if disk.bus == DiskBus::Nvme))
    }

    /// Whether one is made of a file in this directory.
    pub(crate) fn are_in(&self, dir: &Path) -> bool {
        self.all.iter().any(|volume| volume.content.is_in(dir))
    }

    /// Finds or makes what lab disks are served from; gives what a person is told of that. `dir` is for what no cache can take.
    ///
    /// # Errors
    /// Why an image cannot be copied.
    pub(crate) async fn find_copies(&mut self, host: &HostContext, dir: &Path) -> Result<Vec<EventKind>, Lost> {
        let mut told = Vec::new();
        for volume in &mut self.all {
            told.extend(volume.find_copy(host, dir).await?);
        }
        Ok(told)
    }

    /// Those that have to be there from the start.
    pub(crate) fn fixed(&self) -> &[Volume] {
        &self.all[..self.fixed]
    }

    /// Those that are plugged in before a machine is frozen.
    pub(crate) fn plugged(&self) -> &[Volume] {
        &self.all[self.fixed..self.frozen]
    }

    /// Those that go into each copy.
    pub(crate) fn late(&self) -> &[Volume] {
        &self.all[self.frozen..]
    }

    /// Only those that have to be there from the start.
    pub(crate) fn without_plugged(&self) -> Self {
        Self { all: self.fixed().to_vec(), fixed: self.fixed, frozen: self.fixed }
    }

    /// Puts what decides those that a template has into a key, and them into the machine whose arguments go there too.
    pub(crate) fn add_to(&self, key: &mut KeyMaker, config: &mut MachineConfig) -> Result<(), Unkeyable> {
        self.all[..self.frozen].iter().try_for_each(|volume| volume.add_to(key, config))
    }

    /// For a guest that boots, whose directory is `dir`.
    pub(crate) fn boot(&self, dir: &Path, launch: &mut Launch) -> Result<(), DiskError> {
        self.all.iter().enumerate().try_for_each(|(at, volume)| volume.put(at, Bytes::InDir(dir), true, launch))
    }

    /// For a guest that boots to be frozen.
    pub(crate) fn boot_to_freeze(&self, making: &Making, launch: &mut Launch) -> Result<(), DiskError> {
        let mut frozen = self.all[..self.frozen].iter().enumerate();
        frozen.try_for_each(|(at, volume)| volume.put(at, Bytes::InTemplate(making), true, launch))
    }

    /// For the copy of a template with these volumes; the copy's directory is `dir`.
    pub(crate) fn copy(&self, template: Vec<File>, dir: &Path, launch: &mut Launch) -> Result<(), DiskError> {
        for ((at, volume), below) in self.all[..self.frozen].iter().enumerate().zip(template) {
            volume.put(at, Bytes::Over(below, dir), true, launch)?;
        }
        let mut late = self.all.iter().enumerate().skip(self.frozen);
        late.try_for_each(|(at, volume)| volume.put(at, Bytes::InDir(dir), false, launch))
    }

    /// For a copy of a template that is to become one itself; `own` are copies of the template's volumes.
    pub(crate) fn go_on(&self, own: Vec<File>, launch: &mut Launch) -> Result<(), DiskError> {
        let mut frozen = self.all[..self.frozen].iter().enumerate().zip(own);
        frozen.try_for_each(|((at, volume), own)| volume.put(at, Bytes::Own(own), true, launch))
    }

    /// For a machine that takes the place of another of this guest's, of whose volumes this was kept.
    pub(crate) fn again(&self, kept: Vec<Kept>, dir: &Path, launch: &mut Launch) -> Result<(), DiskError> {
        let mut all = self.all.iter().enumerate().zip(kept);
        all.try_for_each(|((at, volume), kept)| volume.put(at, Bytes::Again(kept, dir), true, launch))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The same where the template is that of a base, which has those that are never plugged in. The others are made for the template that
    /// is being made, to be plugged in.
    pub(crate) fn go_on_to_plug(&self, own: Vec<File>, making: &Making, launch: &mut Launch) -> Result<(), DiskError> {
        self.without_plugged().go_on(own, launch)?;
        let mut plugged = self.all[..self.frozen].iter().enumerate().skip(self.fixed);
        plugged.try_for_each(|(at, volume)| volume.put(at, Bytes::InTemplate(making), false, launch))
    }

    /// Puts all into a machine as a person would have them; gives the commands that make them.
    pub(crate) fn describe(&self, qemu_img: &Path, config: &mut MachineConfig) -> Vec<Vec<OsString>> {
        let mut commands = Vec::new();
        for (at, volume) in self.all.iter().enumerate() {
            let file = PathBuf::from(format!("belljar-{}{at}.{}", volume.noun(), volume.content.extension()));
            let Some(command) = volume.content.by_hand(qemu_img, &file) else { continue };
            commands.push(command);
            volume.show(volume.content.node(DiskSource::Path(file)), true, config);
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use belljar_guest_spec::DiskTraits;

    use super::*;
    use crate::template::{Claim, TemplateStore};

    const SIZE: u64 = 1 << 20;

    fn volumes(buses: &[DiskBus], pluggable: bool) -> Volumes {
        let disk = DiskSpec::new(DiskContent::Empty(SIZE));
        let all = buses.iter().map(|bus| Volume::further(Path::new("qemu-img"), &disk, *bus).unwrap());
        Volumes::new(all.collect(), pluggable)
    }

    fn launch() -> Launch {
        Launch::of(MachineConfig::default())
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The sets of the descriptors that disks and what is below them are in.
    fn sets(launch: &Launch) -> Vec<(u32, Option<u32>)> {
        let set = |source: &DiskSource| match source {
            DiskSource::FdSet(set) => set.set,
            DiskSource::Fd(fd) => panic!("{fd}"),
            DiskSource::Path(path) => panic!("{}", path.display()),
        };
        let disks = launch.config.disks.iter().map(|disk| &disk.node);
        disks.map(|node| (set(&node.source), node.backing.as_ref().map(|below| set(&below.source)))).collect()
    }

    #[test]
    fn a_guest_that_boots_has_all_in_files_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut launch = launch();
        volumes(&[DiskBus::Virtio, DiskBus::Nvme], true).boot(dir.path(), &mut launch).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
        assert_eq!(sets(&launch), [(1, None), (2, None)]);
        assert!(launch.config.disks.iter().all(|disk| disk.attached));
        let written = launch.descriptors.written().unwrap();
        assert_eq!(written.iter().map(|file| file.metadata().unwrap().len()).collect::<Vec<_>>(), [SIZE; 2]);
    }

    #[test]
    fn those_of_a_template_are_its_parts_by_their_numbers_and_a_copy_has_layers_over_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = TemplateStore::new(dir.path().join("templates"), u64::MAX);
        let key = KeyMaker::new().finish();
        let Ok(Claim::Ours(making)) = store.claim(&key, false) else { panic!("it is nobody's") };
        let all = volumes(&[DiskBus::Nvme, DiskBus::Virtio, DiskBus::Ide], true);
        let kinds = |volumes: &[Volume]| volumes.iter().map(Volume::kind).collect::<Vec<_>>();
        assert_eq!(
            (kinds(all.fixed()), kinds(all.plugged()), kinds(all.late())),
            (vec!["ide"], vec!["virtio"], vec!["nvme"])
        );

        let mut base = launch();
        all.without_plugged().boot_to_freeze(&making, &mut base).unwrap();
        assert_eq!((names(making.dir()), sets(&base)), (vec!["disk0".to_owned(), "lock".to_owned()], vec![(1, None)]));

        let mut plugging = launch();
        let own = || vec![tempfile::tempfile().unwrap()];
        all.go_on_to_plug(own(), &making, &mut plugging).unwrap();
        assert_eq!(names(making.dir()), ["disk0", "disk1", "lock"]);
        assert_eq!(plugging.config.disks.iter().map(|disk| disk.attached).collect::<Vec<_>>(), [true, false]);

        let run = tempfile::tempdir().unwrap();
        let mut copy = launch();
        let template = vec![own().remove(0), own().remove(0)];
        all.copy(template, run.path(), &mut copy).unwrap();
        assert_eq!(names(run.path()), [""; 0]);
        assert_eq!(sets(&copy), [(1, Some(2)), (3, Some(4)), (5, None)]);
        assert_eq!(copy.config.disks.iter().map(|disk| disk.attached).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(copy.descriptors.written().unwrap().len(), 3, "nobody writes to what is below");
    }

    #[test]
    fn a_guests_variables_are_in_its_flash_memory_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vars");
        std::fs::write(&file, vec![0; 540_672]).unwrap();
        let image = FlashImage { path: file.clone(), format: "raw".to_owned() };
        let mut all = volumes(&[DiskBus::Virtio], true).all;
        all.push(Volume::variables(Path::new("qemu-img"), &image).unwrap());
        let all = Volumes::new(all, true);
        assert_eq!((all.fixed().len(), all.plugged().len(), all.without_plugged().fixed().len()), (1, 1, 1));
        let of = |source: &DiskSource| match source {
            DiskSource::FdSet(set) => set.set.to_string(),
            DiskSource::Fd(fd) => fd.to_string(),
            DiskSource::Path(path) => path.display().to_string(),
        };
        let chain = |launch: &Launch| {
            let (mut node, mut all) =
                (launch.config.flash[0].backing.as_deref(), vec![of(&launch.config.flash[0].source)]);
            while let Some(below) = node {
                all.push(of(&below.source));
                node = below.backing.as_deref();
            }
            (launch.config.flash.len(), all)
        };
        let vars = file.display().to_string();
        let mut booted = launch();
        all.boot(dir.path(), &mut booted).unwrap();
        assert_eq!(chain(&booted), (1, vec!["1".to_owned(), vars.clone()]), "a layer over them");
        assert_eq!(names(dir.path()), ["vars"], "the layer has no name");
        let mut copy = launch();
        all.copy(vec![tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()], dir.path(), &mut copy).unwrap();
        assert_eq!(chain(&copy), (1, vec!["1".to_owned(), "2".to_owned(), vars]), "one over the template's");
        let mut people = MachineConfig::default();
        let commands = all.describe(Path::new("qemu-img"), &mut people);
        assert_eq!(commands[0].last(), Some(&"belljar-variables0.qcow2".into()));
        let key = || {
            let (mut key, mut config) = (KeyMaker::new(), MachineConfig::default());
            all.add_to(&mut key, &mut config).unwrap();
            key.finish()
        };
        let before = key();
        assert_eq!(key(), before);
        std::fs::write(&file, vec![1; 540_672]).unwrap();
        assert_ne!(key(), before, "what they are at first decides how a guest boots");
    }

    #[test]
    fn a_lab_disks_server_knows_its_kind() {
        let dir = tempfile::tempdir().unwrap();
        let served = |traits: DiskTraits| {
            let disk = DiskSpec { lab: true, traits, ..DiskSpec::new(DiskContent::Empty(SIZE)) };
            let hardware = Hardware { disks: vec![disk], ..Hardware::default() };
            let all = Volume::all_further(Path::new("qemu-img"), &hardware, DiskBus::Virtio).unwrap();
            let mut launch = launch();
            Volumes::new(all, true).boot(dir.path(), &mut launch).unwrap();
            let setup = &launch.lab[0].setup;
            (setup.sector, setup.read_only, launch.config.disks[0].node.refuses_writes())
        };
        assert_eq!(served(DiskTraits::default()), (512, false, false));
        let physical_sector_size = Some(SectorSize::S4096);
        assert_eq!(served(DiskTraits { physical_sector_size, ..DiskTraits::default() }), (4096, false, false));
        assert_eq!(served(DiskTraits { read_only: true, ..DiskTraits::default() }), (512, true, true));
    }

    #[test]
    fn what_a_disk_cannot_be_is_told_with_its_name() {
        let said = |content, bus, traits| {
            let disks = vec![DiskSpec { serial: Some("data0".to_owned()), traits, ..DiskSpec::new(content) }];
            let hardware = Hardware { disks, ..Hardware::default() };
            let all = Volume::check_kinds(&hardware.disks, bus)
                .and_then(|()| Volume::all_further(Path::new("qemu-img"), &hardware, bus));
            all.unwrap_err().to_string()
        };
        let large = DiskTraits { sector_size: Some(SectorSize::S4096), ..DiskTraits::default() };
        assert_eq!(
            said(DiskContent::Empty(SIZE), DiskBus::Sata, large.clone()),
            "the disk data0: sector-size = 4096 does not go with a disk on sata: QEMU's have logical sectors of 512 bytes; leave it out, or take \
             another bus: virtio, scsi, nvme, usb"
        );
        assert!(
            said(DiskContent::Empty(5000), DiskBus::Scsi, large).contains("no whole number of sectors of 4096 bytes")
        );
    }

    #[test]
    fn what_is_in_them_is_in_the_key_and_where_is_not() {
        let key = |buses: &[DiskBus]| {
            let (mut key, mut config) = (KeyMaker::new(), MachineConfig::default());
            volumes(buses, false).add_to(&mut key, &mut config).map(|()| (key.finish(), config.to_args().unwrap()))
        };
        assert_eq!(key(&[DiskBus::Virtio]).unwrap(), key(&[DiskBus::Virtio]).unwrap());
        assert_ne!(key(&[DiskBus::Virtio]).unwrap().0, key(&[DiskBus::Virtio; 2]).unwrap().0);
        assert_ne!(key(&[DiskBus::Virtio]).unwrap().1, key(&[DiskBus::Scsi]).unwrap().1);
        assert!(matches!(key(&[DiskBus::Nvme]), Err(Unkeyable::Impossible(_))));
    }
}
