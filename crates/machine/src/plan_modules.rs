//! The kernel's modules on a disk of the machine's own, for a guest whose init is to find them from its start.
//!
//! A share of the host's would do for guests that nobody freezes: an init's udev keeps the index of the modules mapped for as long as it runs, so that a share
//! could not be unmounted before the freeze, and each copy would have to mount it again under udev's feet. A disk is the guest's own, and frozen with it. It
//! is an EROFS like the root, without compression: all guests share the host's page cache of one file, which is made once for a directory of modules as it is.

use std::path::PathBuf;

use belljar_image::{
    cache::{Cache, CacheError},
    modules::{Feature, ModuleIndex, Presence},
};
use belljar_model::EventKind;
use belljar_oci::{
    image::{Image, ImageError},
    limits::Limits,
};
use belljar_proto::message::InitModules;

use crate::{plan_choices::Choices, spec::KernelModules};

/// The disk's serial number.
pub(crate) const MODULES_DISK: &str = "belljar-modules";
/// What is on it.
const FILE_SYSTEM: &str = "erofs";
/// Part of the name in the cache: change it with what is written.
const FORMAT: u32 = 1;

/// Modules as a disk has them.
pub(crate) struct OnDisk {
    /// What is on the disk.
    pub(crate) file: PathBuf,
    /// What the agent is told of it.
    pub(crate) init: InitModules,
}

#[derive(Debug, thiserror::Error)]
enum NotMade {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// These modules as a file system in the cache, if the kernel can have them from a disk; else they come when the guest has booted, and why is told.
pub(crate) fn on_disk(
    modules: &KernelModules,
    index: &ModuleIndex,
    cache: &Cache,
    choices: &mut Choices,
) -> Option<OnDisk> {
    let by = Feature::VirtioScsi;
    if index.feature(by) == Presence::Absent {
        let why = format!("the kernel has no {by}, by which they could be there before");
        choices.add("modules", "when the guest has booted", why);
        return None;
    }
    let made = Image::of_host(&modules.dir, Limits::default()).map_err(NotMade::from).and_then(|image| {
        let what = format!("{FORMAT} {} {}", modules.dir.display(), image.stamp().unwrap_or_default());
        let key = blake3::hash(what.as_bytes()).to_hex();
        cache.get_or_write(&format!("modules-{FORMAT}-{key}"), |file, _| {
            image.write(file)?;
            Ok::<_, NotMade>(())
        })
    });
    match made {
        Ok(cached) => {
            if let Some(flaw) = cached.flaw {
                let message = format!(
                    "the file system of the kernel's modules in the cache was not as it was made ({flaw}) and was made anew"
                );
                choices.0.push(EventKind::Warning { message });
            }
            let when = if cached.hit { "made by an earlier run" } else { "made now" };
            let why = format!("{}, as a file system ({when}): the guest's init finds them", modules.dir.display());
            choices.add("disk of modules", cached.path.display().to_string(), why);
            let (serial, file_system) = (MODULES_DISK.to_owned(), FILE_SYSTEM.to_owned());
            let init = InitModules { serial, file_system, release: modules.release.clone() };
            Some(OnDisk { file: cached.path, init })
        }
        Err(error) => {
            let message = format!(
                "the kernel's modules cannot be put on a disk, and are in the guest when it has booted, not before: {error}"
            );
            choices.0.push(EventKind::Warning { message });
            None
        }
    }
}
