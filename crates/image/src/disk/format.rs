//! The image formats that are taken.

use std::fmt;
use std::str::FromStr;

/// A disk image format that QEMU can read while it is locked against writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// QEMU's own.
    Qcow2,
    /// The bytes of the disk.
    Raw,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// Virtual PC's and Azure's, `.vhd`.
    Vpc,
    /// QEMU's before qcow2.
    Qcow,
    /// QEMU's, between qcow and a better qcow2.
    Qed,
    /// Parallels'.
    Parallels,
}

/// Not the name of a [`Format`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown image format {0:?}; known are {names}", names = Format::names())]
pub struct UnknownFormat(pub String);

impl Format {
    /// Every format.
    pub const ALL: &[Format] = &[
        Format::Qcow2,
        Format::Raw,
        Format::Vmdk,
        Format::Vdi,
        Format::Vhdx,
        Format::Vpc,
        Format::Qcow,
        Format::Qed,
        Format::Parallels,
    ];

    /// The name of QEMU's driver.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhdx => "vhdx",
            Format::Vpc => "vpc",
            Format::Qcow => "qcow",
            Format::Qed => "qed",
            Format::Parallels => "parallels",
        }
    }

    /// All names in a row, for people.
    #[must_use]
    pub fn names() -> String {
        Format::ALL.iter().map(|f| f.driver()).collect::<Vec<_>>().join(", ")
    }

    /// Whether files of this format are called so.
    pub(super) fn has_extension(self, extension: &str) -> bool {
        let extension = extension.to_ascii_lowercase();
        match self {
            Format::Vpc => matches!(extension.as_str(), "vpc" | "vhd"),
            Format::Parallels => matches!(extension.as_str(), "parallels" | "hdd" | "hds"),
            _ => extension == self.driver(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.driver())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let found = Format::ALL.iter().find(|f| f.driver() == name);
        match (found, name) {
            (Some(&format), _) => Ok(format),
            (None, "vhd") => Ok(Format::Vpc),
            (None, _) => Err(UnknownFormat(name.to_owned())),
        }
    }
}
