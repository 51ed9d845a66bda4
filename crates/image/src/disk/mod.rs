//! Disk images: what a file is, and a throw-away layer over it.
//!
//! `qemu-img` says what an image is, one file at a time: a chain of backing files is walked here, so that no name
//! inside an image (`nbd:…`, `json:…`, a file elsewhere) is followed before it was looked at. QEMU is to be told
//! every file and format of the chain ([`DiskImage::layers`]), and not to read them out of an image again.

mod error;
mod format;
mod inspect;
mod iso;
mod locks;
mod overlay;
mod qcow2;
mod qemu_img;
mod sniff;
mod vmdk;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bounded;

pub use error::DiskError;
pub use format::{Format, UnknownFormat};
pub use inspect::{Use, inspect};
pub use locks::has_writer;
pub use overlay::{Overlay, create_empty, create_overlay, empty_in, overlay_in, unnamed};

/// A disk image that was looked at and may be booted from or attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskImage {
    /// The image itself, then its backing files, down to the one that has none. Never empty.
    layers: Vec<Layer>,
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// Whether nobody said the format, so that `qemu-img` looked at the contents.
    pub probed: bool,
}

/// One file of an image's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Absolute; symbolic links are left as they are, for names inside an image are relative to where it was found.
    pub path: PathBuf,
    /// What is in it.
    pub format: Format,
    /// Whether it is a block device instead of a file.
    pub device: bool,
}

impl DiskImage {
    /// The image's own file, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.layers[0].path
    }

    /// The image's own format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.layers[0].format
    }

    /// The image itself, then its backing files.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Whether some of it is on a block device, whose changes nobody would notice.
    #[must_use]
    pub fn has_device(&self) -> bool {
        self.layers.iter().any(|layer| layer.device)
    }

    /// Whether its bytes are those of its only file.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(self.layers[..], [Layer { format: Format::Raw, .. }])
    }

    /// The chain for QEMU's programs, as it was looked at: read-only, and locked against who writes to it. `json:` before it makes a file name of it.
    #[must_use]
    pub fn node(&self) -> Value {
        self.layers.iter().rev().fold(Value::Null, |below, layer| {
            let driver = if layer.device { "host_device" } else { "file" };
            let file = json!({ "driver": driver, "filename": layer.path, "read-only": true, "locking": "on" });
            let mut node = json!({ "driver": layer.format.driver(), "read-only": true, "file": file });
            if matches!(layer.format, Format::Qcow2 | Format::Vmdk | Format::Qcow | Format::Qed) {
                node["backing"] = below;
            }
            node
        })
    }

    /// Whether firmware finds something to boot in the first sector: BIOS and UEFI alike look for the signature 55 AA at its end (of a
    /// boot loader, or of the table that protects a GPT).
    ///
    /// # Errors
    /// When the sector cannot be read.
    pub fn has_boot_sector(&self, qemu_img: &Path) -> io::Result<bool> {
        let Some(top) = self.layers.first() else { return Ok(false) };
        Ok(qemu_img::first_sector(qemu_img, &top.path, top.format)?.get(0x1fe..0x200) == Some(&[0x55, 0xaa]))
    }

    /// Every file that the image's bytes are in.
    ///
    /// # Errors
    /// When a file that lists others cannot be read.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for layer in &self.layers {
            files.push(layer.path.clone());
            if layer.format == Format::Vmdk {
                let head = bounded::head(&bounded::open(&layer.path)?, vmdk::HEAD)?;
                files.extend(vmdk::files(&layer.path, &head));
            }
        }
        Ok(files)
    }
}
