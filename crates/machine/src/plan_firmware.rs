//! What starts an image's boot loader: as it was asked for, or what the image itself tells.

use std::path::{Path, PathBuf};

use belljar_disk_reader::{Description, Loader, Partition, Table};
use belljar_guest_spec::{Firmware, GuestSpec};
use serde::{Deserialize, Serialize};

use crate::{
    plan::PlanError,
    plan_choices::Choices,
    plan_image::{ImageQuestion, ImageReader},
    qemu::{
        firmware::{self, Uefi},
        platform::Platform,
        probe::QemuInfo,
    },
};

/// What is to start an image.
enum Starter {
    /// What the machine has of its own, or nothing; with what there is to tell of it: which, and why.
    Own(Option<(&'static str, String)>),
    /// UEFI firmware, with what there is to tell of the reason.
    Uefi(String),
}

impl Starter {
    /// `directly`: the image's kernel is started without its boot loader.
    ///
    /// # Errors
    /// Where what was asked for cannot be.
    fn of(
        asked: Firmware,
        platform: &'static Platform,
        directly: bool,
        wanted: impl FnOnce() -> Wanted,
    ) -> Result<Self, PlanError> {
        Ok(match (asked, platform.own_firmware) {
            (Firmware::Bios, None) => return Err(PlanError::NoBios { platform }),
            (Firmware::Bios, Some(_)) => Self::Own(None),
            (Firmware::Uefi, _) => Self::Uefi(String::new()),
            (Firmware::Auto, None) if directly => {
                Self::Own(Some(("none", "its kernel is started directly".to_owned())))
            }
            (Firmware::Auto, None) => {
                Self::Uefi(format!("; nothing else starts a disk on {}", platform.processor.arch))
            }
            (Firmware::Auto, Some(own)) if platform.uefi_packages.is_none() => {
                Self::Own(Some(("the machine's own", own.to_owned())))
            }
            (Firmware::Auto, Some(_)) => match wanted() {
                Wanted { uefi: true, why, .. } => Self::Uefi(format!("; {why}")),
                Wanted { uefi: false, why, .. } => Self::Own(Some(("bios", why))),
            },
        })
    }

    /// The same of an image that may be unreadable, which is left to what the machine has of its own.
    fn of_image(reader: &ImageReader<'_>, question: &ImageQuestion<'_>, directly: bool) -> Result<Self, PlanError> {
        let wanted = || {
            reader.facts().map(|facts| facts.firmware.clone()).unwrap_or_else(|why| {
                let why = format!("the image does not say what it wants, for it cannot be read: {why}");
                Wanted { uefi: false, why, finds_nothing: false }
            })
        };
        Self::of(question.spec.firmware, question.platform, directly, wanted)
    }
}

/// The UEFI firmware that starts this image, if it is to be started by one. What was found out is told. `directly`: its kernel is started without any.
///
/// # Errors
/// Where there is none for the guest's machine, or nothing but UEFI.
pub(crate) fn uefi_for(
    reader: &ImageReader<'_>,
    question: &ImageQuestion<'_>,
    qemu: &QemuInfo,
    directly: bool,
    choices: &mut Choices,
) -> Result<Option<Uefi>, PlanError> {
    let ImageQuestion { spec, platform, host, .. } = question;
    let told = match Starter::of_image(reader, question, directly)? {
        Starter::Own(told) => {
            if let Some((which, why)) = told {
                choices.add("firmware", which, why);
            }
            return Ok(None);
        }
        Starter::Uefi(told) => told,
    };
    let found = firmware::find(platform, machine(platform, spec), &qemu.path, &host.firmware_dirs)?;
    let why = format!("UEFI, as {} says{told}", found.described_in.display());
    choices.add("firmware", found.code.path.display().to_string(), why);
    Ok(Some(found))
}

/// Whether UEFI firmware starts the kernel of this image, where that is started directly.
pub(crate) fn is_by_uefi(reader: &ImageReader<'_>, question: &ImageQuestion<'_>) -> bool {
    matches!(Starter::of_image(reader, question, true), Ok(Starter::Uefi(_)))
}

/// What would start this disk where nobody says what: nothing where that is the machine's own firmware or its kernel alone, else the UEFI firmware.
///
/// # Errors
/// Where the UEFI firmware is missing on this host, for a person.
pub fn uefi_of(
    found: &Description,
    platform: &'static Platform,
    qemu: &Path,
    dirs: &[PathBuf],
) -> Option<Result<PathBuf, String>> {
    let wanted = Wanted::of(found);
    let directly = wanted.finds_nothing;
    let starter = Starter::of(Firmware::Auto, platform, directly, || wanted);
    let Ok(Starter::Uefi(_)) = starter else { return None };
    let uefi = firmware::find(platform, platform.machine, qemu, dirs);
    Some(uefi.map(|uefi| uefi.code.path).map_err(|error| error.to_string()))
}

/// The type of the guest's machine, with its properties.
pub(crate) fn machine<'a>(platform: &Platform, spec: &'a GuestSpec) -> &'a str {
    spec.machine.as_deref().unwrap_or(platform.machine)
}

/// What an image wants, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) uefi: bool,
    pub(crate) why: String,
    /// Whether no firmware finds anything to start.
    pub(crate) finds_nothing: bool,
}

impl Wanted {
    pub(crate) fn of(found: &Description) -> Self {
        Signs::of(found).wanted()
    }
}

/// What of a disk tells what starts it.
#[derive(Clone, Copy, Debug)]
struct Signs {
    /// Whether there is a partition from which UEFI firmware boots, by its type or by the program in it.
    esp: bool,
    /// Whether there is code in the first sector.
    code: bool,
    /// Whether that code has what it starts: anywhere on a disk with an MBR, on one with a GPT in a partition for a BIOS' boot loader, or by
    /// syslinux, which needs none, or on a CD, whose own boot loader's place is written into that code.
    goes_on: bool,
}

impl Signs {
    fn of(found: &Description) -> Self {
        let mut partitions = found.volumes.iter().filter_map(|volume| volume.partition.as_ref());
        Self {
            esp: found.esp().is_some() || !found.efi_programs().is_empty(),
            code: found.has_boot_code,
            goes_on: found.table != Table::Gpt
                || found.loader == Loader::Syslinux
                || found.is_cd
                || partitions.any(Partition::is_bios_boot),
        }
    }

    fn wanted(self) -> Wanted {
        let (uefi, why) = match self {
            Self { esp: false, .. } => (false, "the image has nothing that UEFI would start"),
            Self { code: false, .. } => (true, "the image has what UEFI starts, and no code that a BIOS would run"),
            Self { goes_on: false, .. } => {
                let why = "the image has what UEFI starts, and nothing that the code in its first sector would start";
                (true, why)
            }
            Self { .. } => (false, "the image has code that a BIOS runs, which is there sooner than UEFI"),
        };
        Wanted { uefi, why: why.to_owned(), finds_nothing: !self.esp && !self.code }
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
            let of_all = [true, false].map(|esp| Signs { esp, code, goes_on }.wanted().finds_nothing);
            assert_eq!(of_all, [false, !code], "an EFI system partition, or code for a BIOS, is something");
        }
    }
}
