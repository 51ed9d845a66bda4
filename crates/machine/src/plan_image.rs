//! What an image says of the guest that boots from it: read out of it once, and remembered as long as its files stay as they are.

use std::{
    cell::OnceCell,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_disk_reader::{Description, Disk, Limits, ReadError, System};
use belljar_guest_spec::{Access, BootSource, GuestSpec};
use belljar_image::{
    cache::{self, Cache, CacheError},
    disk::{self, DiskImage},
    kernel::Arch,
    modules::Presence,
};
use serde::{Deserialize, Serialize};

use crate::{
    host::HostContext,
    plan::PlanError,
    plan_choices::Choices,
    plan_direct::{Entry, Login},
    plan_drivers::Drivers,
    plan_firmware::Wanted,
    qemu::platform::{self, Platform},
    share,
    volume::VolumeError,
};

/// Part of the names in the cache: change it with what is read and how.
const VERSION: &[u8] = b"9";
/// What of an image is kept in the cache when its own boot let nobody in.
const CLOSED: &str = "closed";
/// So long that is believed: it may have been the host's doing.
const CLOSED_HOLDS: Duration = Duration::from_secs(24 * 3600);
/// The reason is no longer, in bytes.
const MAX_CLOSED: u64 = 4096;

/// Which guest of an image it is about, and on what host.
pub(crate) struct ImageQuestion<'a> {
    pub(crate) source: &'a BootSource,
    pub(crate) spec: &'a GuestSpec,
    pub(crate) platform: &'static Platform,
    pub(crate) host: &'a HostContext,
}

/// What was found on an image's disk.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Why no machine boots from it, for a person; empty if one may.
    pub(crate) obstacles: Vec<String>,
    /// What its system is for, if that is known, by its number in ELF files.
    elf_machine: Option<u16>,
    /// What firmware it wants.
    pub(crate) firmware: Wanted,
    /// How one gets into its system, if one was found.
    pub(crate) login: Option<Login>,
    /// The kernel that is booted is known to have nothing by which it could mount a share.
    pub(crate) mounts_no_share: bool,
    /// What that kernel has drivers for; none where no system was found.
    pub(crate) drivers: Option<Drivers>,
    /// What may hold a system that GRUB reads, and Belljar does not, for a person.
    pub(crate) for_grub: Option<String>,
    /// What its boot loader starts when nobody chooses, or why that is not known.
    pub(crate) entry: Result<Entry, String>,
}

impl Facts {
    /// # Errors
    /// When a limit was met, so that it is not known.
    fn of(found: &Description) -> Result<Self, ReadError> {
        let system = found.system()?;
        let mut obstacles: Vec<String> = found.obstacles().iter().map(ToString::to_string).collect();
        let arch = system.as_ref().and_then(processor_of);
        obstacles.extend(arch.and_then(no_machine));
        Ok(Self {
            obstacles,
            elf_machine: arch.map(Arch::elf_machine),
            firmware: Wanted::of(found),
            login: system.as_ref().map(Login::of),
            mounts_no_share: system.as_ref().is_some_and(|system| mounts_no_share(found, system)),
            drivers: system.as_ref().map(|system| Drivers::of(found, system)),
            for_grub: for_grub(found),
            entry: Entry::of(found),
        })
    }
}

/// A volume that GRUB may be able to read where Belljar is not, for a person.
pub(crate) fn for_grub(found: &Description) -> Option<String> {
    found.for_others_to_read().map(|volume| format!("{} ({})", volume.name, volume.content.kind.name()))
}

impl Facts {
    /// What its system is for, if that is known.
    pub(crate) fn arch(&self) -> Option<Arch> {
        self.elf_machine.map(Arch::from_elf_machine)
    }
}

/// Whether the kernel that the boot loader starts, else the newest, is known to have nothing by which it could mount a share.
fn mounts_no_share(found: &Description, system: &System) -> bool {
    found.booting_kernel(system).or(system.kernels.first()).is_some_and(|kernel| {
        share::needs_disk(|feature| kernel.feature(feature).map(|presence| presence != Presence::Absent))
    })
}

/// Why no machine runs what is for `arch`, if Belljar makes none that does, for a person.
#[must_use]
pub fn no_machine(arch: Arch) -> Option<String> {
    let known: Vec<_> = platform::processors().iter().map(|processor| processor.arch.to_string()).collect();
    let why = || {
        format!(
            "its system is for {arch}, and Belljar makes machines for {} only; get the image of the same system for one of these",
            known.join(", ")
        )
    };
    platform::of(arch).is_none().then(why)
}

/// What a system is for, if its programs or its kernels say so.
#[must_use]
pub fn processor_of(system: &System) -> Option<Arch> {
    system.arch.or_else(|| system.kernels.iter().find_map(|kernel| kernel.arch))
}

/// An image that is booted from. One that is started `by_us` need not have anything of its own for that.
///
/// # Errors
/// Why it is none.
pub(crate) fn look_at(
    qemu_img: &Path,
    path: &Path,
    format: Option<&str>,
    by_us: bool,
) -> Result<DiskImage, VolumeError> {
    let format = format.map(str::parse).transpose()?;
    let using = if by_us { disk::Use::Data } else { disk::Use::Boot };
    Ok(disk::inspect(qemu_img, path, format, using)?)
}

/// An image that is read where that is needed.
#[derive(Debug)]
pub(crate) struct ImageReader<'a> {
    image: DiskImage,
    qemu_img: &'a Path,
    cache: &'a Cache,
    /// What the names in the cache begin with.
    name: OnceCell<String>,
    disk: OnceCell<Disk>,
    description: OnceCell<Description>,
    facts: OnceCell<Result<Facts, String>>,
}

impl<'a> ImageReader<'a> {
    pub(crate) fn new(image: DiskImage, qemu_img: &'a Path, cache: &'a Cache) -> Self {
        Self {
            image,
            qemu_img,
            cache,
            name: OnceCell::new(),
            disk: OnceCell::new(),
            description: OnceCell::new(),
            facts: OnceCell::new(),
        }
    }

    pub(crate) fn image(&self) -> &DiskImage {
        &self.image
    }

    /// What was found, or why it cannot be read. That it cannot be read is no reason against a boot.
    pub(crate) fn facts(&self) -> Result<&Facts, &str> {
        self.facts.get_or_init(|| self.find()).as_ref().map_err(String::as_str)
    }

    fn find(&self) -> Result<Facts, String> {
        if self.image.has_device() {
            // Nobody would notice its changes.
            return self.look();
        }
        let file = self.get("facts", |reader, out| {
            serde_json::to_writer(out, &reader.look()?).map_err(|error| error.to_string())
        })?;
        let json = fs_err::read(file).map_err(|error| error.to_string())?;
        serde_json::from_slice(&json).map_err(|error| error.to_string())
    }

    fn look(&self) -> Result<Facts, String> {
        Facts::of(self.description()?).map_err(|error| error.to_string())
    }

    /// What its kernel has drivers for, or why that is not known.
    pub(crate) fn drivers(&self) -> Result<&Drivers, &str> {
        self.facts()?.drivers.as_ref().ok_or("no system was found on it")
    }

    /// Refuses an image of which it is known that no machine boots from it. Who says how to get in is believed.
    ///
    /// # Errors
    /// With all that is in the way.
    pub(crate) fn refuse(&self, source: &BootSource, choices: &mut Choices) -> Result<(), PlanError> {
        let obstacles = self.facts().map(|facts| facts.obstacles.join("; and ")).unwrap_or_default();
        if obstacles.is_empty() {
            return Ok(());
        }
        if source.access() == Access::Auto {
            return Err(PlanError::Unbootable { image: self.image.path().to_owned(), why: obstacles });
        }
        choices.add("image", "started all the same, for a way in was named", obstacles);
        Ok(())
    }

    /// A file of the cache, which `write` makes if it is not there, or is not as it was made.
    ///
    /// # Errors
    /// Why it cannot be made. That is not remembered.
    pub(crate) fn get(
        &self,
        what: &str,
        write: impl Fn(&Self, &mut File) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let name = self.name_of(what).map_err(|error| error.to_string())?;
        let made = self.cache.get_or_write(&name, |out, _| write(self, out).map_err(Failed));
        made.map(|cached| cached.path).map_err(|Failed(why)| why)
    }

    /// Why the image's own boot let nobody in a short while ago, if that is known.
    pub(crate) fn closed(&self) -> Option<String> {
        let file = File::open(self.cache.path(&self.name_of(CLOSED).ok()?)).ok()?;
        let age = file.metadata().and_then(|found| found.modified()).ok()?.elapsed().unwrap_or_default();
        let mut why = String::new();
        file.take(MAX_CLOSED).read_to_string(&mut why).ok()?;
        (age < CLOSED_HOLDS && !why.is_empty()).then_some(why)
    }

    /// Remembers why, or that it is not so.
    pub(crate) fn set_closed(&self, why: Option<&str>) {
        let Ok(name) = self.name_of(CLOSED) else { return };
        // Where it cannot be written, it is found out again.
        drop(match why {
            Some(why) => self.cache.replace(&name, why.as_bytes()),
            None => std::fs::remove_file(self.cache.path(&name)),
        });
    }

    /// The name of what is kept of the image in the cache.
    fn name_of(&self, what: &str) -> io::Result<String> {
        Ok(format!("image-{}-{what}", self.name()?))
    }

    fn name(&self) -> io::Result<&str> {
        if self.name.get().is_none() {
            let _ = self.name.set(cache::short(&hash(&self.image)?));
        }
        Ok(self.name.get().map(String::as_str).unwrap_or_default())
    }

    fn disk(&self) -> Result<&Disk, String> {
        if let Some(disk) = self.disk.get() {
            return Ok(disk);
        }
        let disk = Disk::open(&self.image, self.qemu_img, Limits::default()).map_err(|error| error.to_string())?;
        Ok(self.disk.get_or_init(|| disk))
    }

    /// What is on the disk, read now.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(crate) fn description(&self) -> Result<&Description, String> {
        if let Some(description) = self.description.get() {
            return Ok(description);
        }
        let found = belljar_disk_reader::inspect(self.disk()?).map_err(|error| error.to_string())?;
        Ok(self.description.get_or_init(|| found))
    }
}

/// What begins the names, in the cache, of what follows from an image: its files, what their formats are taken for, and the version of what is found out.
fn hash(image: &DiskImage) -> io::Result<blake3::Hasher> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION);
    add_identity(image, &mut hasher)?;
    Ok(hasher)
}

/// What stands for the bytes of an image: the identity of each of its files, and what their formats are taken for.
pub(crate) fn add_identity(image: &DiskImage, hasher: &mut blake3::Hasher) -> io::Result<()> {
    for file in image.files()? {
        cache::fingerprint(&file, hasher)?;
    }
    for layer in image.layers() {
        hasher.update(layer.format.driver().as_bytes());
    }
    Ok(())
}

/// Why a file cannot be made.
struct Failed(String);

impl From<CacheError> for Failed {
    fn from(error: CacheError) -> Self {
        Self(error.to_string())
    }
}
