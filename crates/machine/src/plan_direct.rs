//! The direct start of what is in an image: its kernel, its initramfs and the kernel's words, as its boot loader would start them.
//!
//! They are read out of the image once, and kept in the cache under a name that follows the image's files.

use std::{
    cell::OnceCell,
    fs::File,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
};

use belljar_disk_reader::{BootEntry, Description, Disk, Init, InitKind, Limits, Provisioning, RootPassword};
use belljar_guest_spec::{Access, BootSource, DiskBus, GuestSpec};
use belljar_image::{
    boot::{self, BootFiles},
    cache::{self, Cache, CacheError},
    disk::DiskImage,
    kernel::Kernel,
};
use serde::{Deserialize, Serialize};

use crate::{
    access::rungs::{self, OLDEST_SYSTEMD, Rung},
    host::HostContext,
    plan::{Choices, PlanError},
    plan_source::hash_of_image,
    qemu::platform::{self, Platform},
    volume::Volume,
};

/// Part of the names in the cache: change it with what is read and how.
const VERSION: &[u8] = b"1";
/// The most bytes of a kernel, and of an initramfs.
const MAX_KERNEL: u64 = 512 << 20;
const MAX_INITRD: u64 = 2 << 30;
/// The first process of an initramfs where the kernel's words name no other (the kernel's `admin-guide/kernel-parameters.rst`).
const INIT: &str = "/init";

/// What the image's boot loader would start.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    title: String,
    kernel: String,
    initrds: Vec<String>,
    words: String,
    from: String,
    guess: bool,
}

/// An image's files in the cache, which are read out of it when they are not there.
struct Source<'a> {
    image: &'a DiskImage,
    qemu_img: &'a Path,
    cache: &'a Cache,
    name: String,
    disk: OnceCell<Disk>,
    description: OnceCell<Description>,
}

/// What of a system decides how it is got into where nobody says how.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    /// Nobody logs in as root without a password.
    root_is_locked: bool,
    /// systemd's version, if its init is one that says so.
    systemd: Option<u32>,
    /// Its init, for a person.
    init: String,
    /// An entry with an initramfs can be started directly.
    has_entry: bool,
    /// cloud-init is there, and not switched off.
    cloud_init: bool,
}

/// How an image is got into whose own boot leads to nobody who can get in, with the reason.
#[derive(Debug, PartialEq, Eq)]
enum Detour {
    /// Its kernel is started directly.
    Direct(String),
    /// Its cloud-init is told to start the agent.
    CloudInit(String),
}

impl Facts {
    fn of(found: &Description) -> Result<Self, String> {
        let system = found.system().map_err(|error| error.to_string())?;
        let system = system.ok_or("no operating system was found in it")?;
        let init = system.init.as_ref();
        let systemd = init.filter(|init| init.kind == InitKind::Systemd).and_then(|init| init.version);
        let version = |init: &Init| init.version.map_or_else(String::new, |version| format!(" {version}"));
        Ok(Self {
            root_is_locked: matches!(system.root_password, RootPassword::Locked | RootPassword::Set),
            systemd,
            init: init.map_or_else(|| "unknown".to_owned(), |init| format!("{}{}", init.kind.name(), version(init))),
            has_entry: found.default_entry().is_some_and(|entry| !entry.initrds.is_empty() && !entry.guess),
            cloud_init: system.provisioning.contains(&Provisioning::CloudInit),
        })
    }

    /// How to get in where the guest's own boot is known to lead to nobody who can, if there is a way.
    fn detour(&self) -> Option<Detour> {
        let takes_credentials = self.systemd.is_some_and(|version| version >= OLDEST_SYSTEMD);
        if !self.root_is_locked || takes_credentials {
            return None;
        }
        let init = &self.init;
        let why = format!("its root has no login without a password, and its init, {init}, takes no unit from outside");
        match self {
            Self { has_entry: true, .. } => Some(Detour::Direct(why)),
            Self { cloud_init: true, .. } => Some(Detour::CloudInit(format!(
                "{why}; nothing was found in it that could be started directly, and cloud-init is there"
            ))),
            Self { .. } => None,
        }
    }
}

/// The ways into a guest of this disk that are tried where nobody says which, by their names; and why what is in it is started directly, if it is.
/// They suit every disk where nothing is known of its system.
#[must_use]
pub fn ways_into(source: &BootSource, found: &Description) -> (Vec<&'static str>, Option<String>) {
    let (rungs, why) = match Facts::of(found).ok().and_then(|facts| facts.detour()) {
        Some(Detour::Direct(why)) => (rungs::choose_direct(source), Some(why)),
        Some(Detour::CloudInit(_)) => (rungs::choose_cloud_init(source), None),
        None => (rungs::choose(source), None),
    };
    (rungs.iter().map(|rung| rung.name).collect(), why)
}

/// How the image is to be got into where neither a way in nor a login was asked for, if its own boot would not lead there. Of an image that cannot
/// be read nothing is known, and it boots by itself.
fn detour(image: &DiskImage, qemu_img: &Path, cache: &Cache) -> Option<Detour> {
    if image.layers().iter().any(|layer| layer.device) {
        return None;
    }
    let source = Source::new(image, qemu_img, cache).ok()?;
    let facts = source.get("facts", |source, out| {
        // Where nothing can be read now, for want of a program, it may be later; what is not understood now will not be then.
        source.disk()?;
        let facts = source.description().and_then(Facts::of).ok();
        serde_json::to_writer(out, &facts).map_err(|error| error.to_string())
    });
    let facts: Option<Facts> = serde_json::from_slice(&fs_err::read(facts.ok()?).ok()?).ok()?;
    facts?.detour()
}

/// Which guest it is about, and on what host.
pub(crate) struct Start<'a> {
    pub(crate) source: &'a BootSource,
    pub(crate) spec: &'a GuestSpec,
    pub(crate) platform: &'static Platform,
    pub(crate) host: &'a HostContext,
    pub(crate) cache: &'a Cache,
}

impl Start<'_> {
    /// The disk of an image, and what starts it directly with the words for its kernel; none of that where it boots by itself. Where nobody says how
    /// to get in, that depends on what is in the image, and `rungs` with it.
    pub(crate) fn of_image(
        &self,
        (path, format, bus): (&Path, Option<&str>, DiskBus),
        rungs: &mut Vec<&'static Rung>,
        choices: &mut Choices,
    ) -> Result<(Volume, Option<(BootFiles, String)>), PlanError> {
        let qemu_img = &self.host.qemu_img;
        let Some(agent) = self.platform.agent() else {
            return Ok((Volume::boot(qemu_img, path, format, bus)?, None));
        };
        let asked = rungs.iter().any(|rung| rung.starts_directly);
        let volume = match asked {
            true => Volume::started_directly(qemu_img, path, format, bus)?,
            false => Volume::boot(qemu_img, path, format, bus)?,
        };
        let Some(image) = volume.image() else { return Ok((volume, None)) };
        if !asked {
            let nobody_says = self.source.access() == Access::Auto && self.spec.login.is_none();
            let why = match nobody_says.then(|| detour(image, qemu_img, self.cache)).flatten() {
                Some(Detour::Direct(why)) => why,
                Some(Detour::CloudInit(why)) => {
                    choices.add("seed", "a disk for the guest's cloud-init", why);
                    *rungs = rungs::choose_cloud_init(self.source);
                    return Ok((volume, None));
                }
                None => return Ok((volume, None)),
            };
            choices.add("start", "directly, without the image's boot loader", why);
            *rungs = rungs::choose_direct(self.source);
        }
        let started = direct_start(image, qemu_img, (self.platform, agent.program), self.cache, choices)?;
        Ok((volume, Some(started)))
    }
}

/// Makes ready what starts the image directly, with the agent behind its initramfs; gives the words for its kernel too.
fn direct_start(
    image: &DiskImage,
    qemu_img: &Path,
    (platform, agent): (&'static Platform, &'static [u8]),
    cache: &Cache,
    choices: &mut Choices,
) -> Result<(BootFiles, String), PlanError> {
    let failed = |why: String| PlanError::Direct { image: image.path().to_owned(), why };
    if let Some(device) = image.layers().iter().find(|layer| layer.device) {
        let device = device.path.display();
        return Err(failed(format!(
            "{device} is a block device, whose changes would not be noticed; use --access credentials"
        )));
    }
    let source = Source::new(image, qemu_img, cache).map_err(|error| failed(error.to_string()))?;
    let entry = source.get("entry", |source, out| {
        let entry = source.entry()?;
        let entry = Entry {
            title: entry.title.clone(),
            kernel: entry.kernel.path.clone(),
            initrds: entry.initrds.iter().map(|file| file.path.clone()).collect(),
            words: entry.command_line.clone(),
            from: entry.from.clone(),
            guess: entry.guess,
        };
        serde_json::to_writer(out, &entry).map_err(|error| error.to_string())
    });
    let entry = entry.and_then(|path| {
        let file = fs_err::read(&path).map_err(|error| error.to_string())?;
        serde_json::from_slice::<Entry>(&file).map_err(|error| error.to_string())
    });
    let entry = entry.map_err(failed)?;
    if entry.initrds.is_empty() {
        let why = format!(
            "{} has no initramfs for {}, behind which Belljar's program could be; use --access credentials, or give a --login",
            entry.from, entry.kernel
        );
        return Err(failed(why));
    }
    let kernel = source.get("kernel", |source, out| {
        let entry = source.entry()?;
        source.copy(&entry.kernel, MAX_KERNEL, out)
    });
    let initrd = source.get("initrd", |source, out| {
        for file in &source.entry()?.initrds {
            // The kernel looks for each archive at a multiple of four bytes.
            let end = out.stream_position().map_err(|error| error.to_string())?;
            out.write_all(&vec![0; padding(end)]).map_err(|error| error.to_string())?;
            source.copy(file, MAX_INITRD, out)?;
        }
        Ok(())
    });
    let (kernel, initrd) = (kernel.map_err(failed)?, initrd.map_err(failed)?);
    let why = if entry.guess {
        "no boot loader's configuration was found, and it is the newest kernel there".to_owned()
    } else {
        format!("{} boots \"{}\" when nobody chooses", entry.from, entry.title.escape_debug())
    };
    choices.add("kernel", format!("{} of the image", entry.kernel), why);
    let kernel = Kernel::open(&kernel, &platform::processors())?;
    let init = entry.words.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("rdinit="));
    let init = init.unwrap_or(INIT);
    let files = boot::guests_initramfs(&kernel, &initrd, init, &platform.processor, agent, cache)?;
    Ok((files, entry.words))
}

/// How many bytes there are from `at` to the next multiple of four.
fn padding(at: u64) -> usize {
    usize::try_from(at.next_multiple_of(4) - at).unwrap_or_default()
}

impl<'a> Source<'a> {
    fn new(image: &'a DiskImage, qemu_img: &'a Path, cache: &'a Cache) -> io::Result<Self> {
        let name = format!("direct-{}", cache::short(&hash_of_image(image, VERSION)?));
        Ok(Self { image, qemu_img, cache, name, disk: OnceCell::new(), description: OnceCell::new() })
    }

    /// A file of the cache, which `write` makes if it is not there, or is not as it was made.
    fn get(&self, what: &str, write: impl Fn(&Self, &mut File) -> Result<(), String>) -> Result<PathBuf, String> {
        let name = format!("{}-{what}", self.name);
        let made = self.cache.get_or_write(&name, |out, _| write(self, out).map_err(Failed));
        made.map(|cached| cached.path).map_err(|Failed(why)| why)
    }

    fn disk(&self) -> Result<&Disk, String> {
        if let Some(disk) = self.disk.get() {
            return Ok(disk);
        }
        let disk = Disk::open(self.image, self.qemu_img, Limits::default()).map_err(|error| error.to_string())?;
        Ok(self.disk.get_or_init(|| disk))
    }

    fn description(&self) -> Result<&Description, String> {
        if let Some(description) = self.description.get() {
            return Ok(description);
        }
        let found = belljar_disk_reader::inspect(self.disk()?).map_err(|error| error.to_string())?;
        Ok(self.description.get_or_init(|| found))
    }

    fn entry(&self) -> Result<&BootEntry, String> {
        let found = self.description()?;
        found.default_entry().ok_or_else(|| {
            let notes = found.notes.iter().map(|note| format!("; {note}")).collect::<String>();
            format!(
                "no kernel was found in it that its boot loader would start{notes}. `belljar doctor {}` says what was found",
                self.image.path().display()
            )
        })
    }

    fn copy(&self, file: &belljar_disk_reader::FileRef, max: u64, out: &mut File) -> Result<(), String> {
        let copied = self.description()?.copy_file(file, max, out);
        copied.map(drop).map_err(|error| format!("cannot read {} out of it: {error}", file.path))
    }
}

/// Why a file cannot be made.
struct Failed(String);

impl From<CacheError> for Failed {
    fn from(error: CacheError) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_got_into_otherwise_only_where_its_own_boot_lets_nobody_in() {
        let facts = |root_is_locked, systemd, has_entry, cloud_init| Facts {
            root_is_locked,
            systemd,
            init: "sysvinit".into(),
            has_entry,
            cloud_init,
        };
        let directly = |facts: Facts| matches!(facts.detour(), Some(Detour::Direct(why)) if why.contains("sysvinit"));
        for cloud_init in [false, true] {
            assert!(
                directly(facts(true, Some(247), true, cloud_init)) && directly(facts(true, None, true, cloud_init))
            );
            assert_eq!(facts(true, Some(252), true, cloud_init).detour(), None, "it takes credentials");
            assert_eq!(facts(true, Some(252), false, cloud_init).detour(), None, "it takes credentials");
            assert_eq!(facts(false, None, false, cloud_init).detour(), None, "root logs in without a password");
        }
        assert_eq!(facts(true, None, false, false).detour(), None, "there is nothing to start");
        let late = facts(true, Some(247), false, true).detour();
        assert!(matches!(late, Some(Detour::CloudInit(why)) if why.contains("cloud-init is there")));
    }

    #[test]
    fn each_archive_begins_where_the_kernel_looks_for_it() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(padding), [0, 3, 2, 1, 0, 3]);
    }
}
