//! What starts an image's boot loader: as it was asked for, or what the image itself tells.

use std::path::Path;

use belljar_disk_reader::{Description, Disk, Limits, Loader, Partition, Table, inspect};
use belljar_guest_spec::{Firmware, GuestSpec};
use belljar_image::{
    cache::{self, Cache, CacheError},
    disk::{self, DiskImage, Use},
};
use serde::{Deserialize, Serialize};

use crate::{
    host::HostContext,
    plan::Choices,
    plan_source::hash_of_image,
    qemu::{
        firmware::{self, NoUefi, Uefi},
        platform::Platform,
        probe::QemuInfo,
    },
};

/// Part of names in the cache: change it when what follows from an image changes.
const VERSION: &[u8] = b"1";

/// Which guest it is about, and on what host.
pub(crate) struct FirmwareQuestion<'a> {
    pub(crate) spec: &'a GuestSpec,
    pub(crate) platform: &'a Platform,
    pub(crate) qemu: &'a QemuInfo,
    pub(crate) host: &'a HostContext,
    pub(crate) cache: &'a Cache,
}

impl FirmwareQuestion<'_> {
    /// The UEFI firmware that starts this image, if it is to be started by one. What was found out is told.
    ///
    /// # Errors
    /// Where there is none for the guest's machine.
    pub(crate) fn uefi_for(
        &self,
        path: &Path,
        format: Option<&str>,
        choices: &mut Choices,
    ) -> Result<Option<Uefi>, NoUefi> {
        let Self { spec, platform, qemu, host, cache } = self;
        let mut told = String::new();
        if spec.firmware == Firmware::Auto {
            let Wanted { uefi, why } = of_image(path, format, host, cache);
            if !uefi {
                choices.add("firmware", "bios", why);
                return Ok(None);
            }
            told = format!("; {why}");
        } else if spec.firmware != Firmware::Uefi {
            return Ok(None);
        }
        let found = firmware::find(platform, machine(platform, spec), &qemu.path, &host.firmware_dirs)?;
        let why = format!("UEFI, as {} says{told}", found.described_in.display());
        choices.add("firmware", found.code.path.display().to_string(), why);
        Ok(Some(found))
    }
}

/// The type of the guest's machine, with its properties.
pub(crate) fn machine<'a>(platform: &Platform, spec: &'a GuestSpec) -> &'a str {
    spec.machine.as_deref().unwrap_or(platform.default_machine().name)
}

/// What an image wants, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Wanted {
    uefi: bool,
    why: String,
}

/// What is in the way of finding it out.
struct Unread(String);

impl From<CacheError> for Unread {
    fn from(error: CacheError) -> Self {
        Self(error.to_string())
    }
}

/// Finds out what this image wants. The answer is remembered in `cache` as long as the image's files stay as they are. An image that cannot be
/// read is left to the BIOS.
fn of_image(path: &Path, format: Option<&str>, host: &HostContext, cache: &Cache) -> Wanted {
    found(path, format, &host.qemu_img, cache).unwrap_or_else(|Unread(why)| Wanted {
        uefi: false,
        why: format!("the image does not say what it wants, for it cannot be read: {why}"),
    })
}

fn found(path: &Path, format: Option<&str>, qemu_img: &Path, cache: &Cache) -> Result<Wanted, Unread> {
    let unread = |error: &dyn std::fmt::Display| Unread(error.to_string());
    let format = format.map(str::parse).transpose().map_err(|e| unread(&e))?;
    let image = disk::inspect(qemu_img, path, format, Use::Boot).map_err(|e| unread(&e))?;
    if image.layers().iter().any(|layer| layer.device) {
        // Nobody would notice its changes.
        return look(&image, qemu_img);
    }
    let hash = hash_of_image(&image, VERSION).map_err(|e| unread(&e))?;
    let answer = cache.get_or_write(&format!("firmware-{}", cache::short(&hash)), |out, _| {
        serde_json::to_writer(out, &look(&image, qemu_img)?).map_err(|e| unread(&e))
    })?;
    let json = fs_err::read(&answer.path).map_err(|e| unread(&e))?;
    serde_json::from_slice(&json).map_err(|e| unread(&e))
}

fn look(image: &DiskImage, qemu_img: &Path) -> Result<Wanted, Unread> {
    let disk = Disk::open(image, qemu_img, Limits::default()).map_err(|e| Unread(e.to_string()))?;
    inspect(&disk).map(|found| Signs::of(&found).wanted()).map_err(|e| Unread(e.to_string()))
}

/// What of a disk tells what starts it.
#[derive(Clone, Copy, Debug)]
struct Signs {
    /// Whether there is a partition from which UEFI firmware boots.
    esp: bool,
    /// Whether there is code in the first sector.
    code: bool,
    /// Whether that code has what it starts: anywhere on a disk with an MBR, on one with a GPT in a partition for a BIOS' boot loader, or by
    /// syslinux, which needs none.
    goes_on: bool,
}

impl Signs {
    fn of(found: &Description) -> Self {
        let mut partitions = found.volumes.iter().filter_map(|volume| volume.partition.as_ref());
        Self {
            esp: found.esp().is_some(),
            code: found.has_boot_code,
            goes_on: found.table != Table::Gpt
                || found.loader == Loader::Syslinux
                || partitions.any(Partition::is_bios_boot),
        }
    }

    fn wanted(self) -> Wanted {
        let (uefi, why) = match self {
            Self { esp: false, .. } => (false, "the image has no EFI system partition"),
            Self { code: false, .. } => {
                (true, "the image has an EFI system partition, and no code that a BIOS would run")
            }
            Self { goes_on: false, .. } => {
                let why =
                    "the image has an EFI system partition, and nothing that the code in its first sector would start";
                (true, why)
            }
            Self { .. } => (false, "the image has code that a BIOS runs, which is there sooner than UEFI"),
        };
        Wanted { uefi, why: why.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uefi_only_where_a_bios_would_start_nothing() {
        let wanted = |esp, code, goes_on| Signs { esp, code, goes_on }.wanted().uefi;
        assert!(wanted(true, false, false) && wanted(true, false, true));
        assert!(wanted(true, true, false), "as on a disk of Windows");
        assert!(!wanted(true, true, true));
        for (code, goes_on) in [(false, false), (false, true), (true, false), (true, true)] {
            assert!(!wanted(false, code, goes_on));
        }
    }
}
