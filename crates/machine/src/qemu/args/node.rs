//! The block graph behind a disk.
//!
//! The graph is given whole (`-blockdev`), formats included: QEMU never guesses a format from an image's contents, which the guest of an
//! earlier run may have written.

use std::ffi::OsString;
use std::path::PathBuf;

use super::keyval::{KeyVal, on_off};
use crate::qemu::descriptors::{Fd, FdSet};

/// Bytes that a device of the machine gives to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where they are.
    pub source: DiskSource,
    /// QEMU's name of their format: `raw`, `qcow2`, `vmdk`, `vdi`, `vhdx`, `vpc`; or `nbd`, where a server has them.
    pub format: String,
    /// What `source` is an overlay of, if it is to be other than what its own header says.
    pub backing: Option<Box<Backing>>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the guest's writes are refused, though the file may be written to: it was opened for that.
    pub write_protected: bool,
    /// Whether zeros that are written to it take no room.
    pub drops_zeros: bool,
    /// Whether it ends with the machine: then the guest's flushes need not reach the host's disk.
    pub throw_away: bool,
    /// Where they are for each further path to them, if a server has them.
    pub further_paths: Vec<DiskSource>,
}

impl Node {
    /// Whether a server of Belljar's has them.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.format == SERVED
    }

    /// Whether the guest cannot write to it.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        self.read_only || self.write_protected
    }

    /// Writable bytes that end with the machine.
    #[must_use]
    pub fn new(source: DiskSource, format: &str) -> Self {
        Self {
            source,
            format: format.to_owned(),
            backing: None,
            read_only: false,
            write_protected: false,
            drops_zeros: false,
            throw_away: true,
            further_paths: Vec::new(),
        }
    }

    /// Bytes that nobody writes to.
    #[must_use]
    pub fn fixed(source: DiskSource, format: &str) -> Self {
        Self { read_only: true, throw_away: false, ..Self::new(source, format) }
    }

    /// What a server of Belljar's has, at the other end of `source`, and of one more for each further path. Whoever cares for what is durable there has to
    /// hear of each flush.
    #[must_use]
    pub fn served(source: DiskSource, further_paths: Vec<DiskSource>, read_only: bool) -> Self {
        Self { read_only, throw_away: false, further_paths, ..Self::new(source, SERVED) }
    }

    /// The same by each of its further paths.
    pub(super) fn by_further_paths(&self) -> impl Iterator<Item = Self> {
        self.further_paths.iter().map(|source| Self::served(source.clone(), Vec::new(), self.refuses_writes()))
    }

    /// The same as an overlay.
    #[must_use]
    pub fn layer(source: DiskSource) -> Self {
        Self::new(source, "qcow2")
    }

    /// For `-blockdev`, under this name.
    pub(super) fn options(&self, name: &str) -> KeyVal {
        if self.format == SERVED {
            return KeyVal::empty()
                .set("driver", SERVED)
                .set("node-name", name)
                .set("read-only", on_off(self.refuses_writes()))
                // Else discards come no further than this.
                .set("discard", "unmap")
                .set("server.type", "fd")
                .set("server.str", self.source.file_name());
        }
        let mut options = KeyVal::empty()
            .set("driver", &self.format)
            .set("node-name", name)
            .set("read-only", on_off(self.refuses_writes()));
        if !self.read_only {
            options = options.set("discard", "unmap");
            if self.drops_zeros {
                options = options.set("detect-zeroes", "unmap");
            }
            if self.throw_away {
                options = options.set("cache.no-flush", "on");
            }
        }
        options = options
            .set("file.driver", "file")
            .set("file.filename", self.source.file_name())
            .set("file.read-only", on_off(self.read_only));
        if !self.read_only {
            options = options.set("file.discard", "unmap");
            if self.throw_away {
                options = options.set("file.cache.no-flush", "on");
            }
        }
        let mut prefix = String::new();
        let mut next = self.backing.as_deref();
        while let Some(backing) = next {
            prefix.push_str("backing.");
            options = options
                .set(&format!("{prefix}driver"), &backing.format)
                .set(&format!("{prefix}read-only"), "on")
                .set(&format!("{prefix}file.driver"), if backing.device { "host_device" } else { "file" })
                .set(&format!("{prefix}file.filename"), backing.source.file_name())
                .set(&format!("{prefix}file.read-only"), "on")
                // Nobody else may be writing to it.
                .set(&format!("{prefix}file.locking"), "on");
            next = backing.backing.as_deref();
        }
        options
    }
}

/// Where bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// A file.
    Path(PathBuf),
    /// A set of descriptors: a file that may have no name any more.
    FdSet(FdSet),
    /// A descriptor of its own: a socket.
    Fd(Fd),
}

/// The driver of bytes that come over a socket.
const SERVED: &str = "nbd";

impl DiskSource {
    fn file_name(&self) -> OsString {
        match self {
            Self::Path(path) => path.clone().into_os_string(),
            Self::FdSet(set) => set.path().into(),
            Self::Fd(fd) => fd.to_string().into(),
        }
    }
}

/// What an overlay lies over. Always opened read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Where its bytes are.
    pub source: DiskSource,
    /// Its format, as in [`Node::format`].
    pub format: String,
    /// Whether it is a block device instead of a file.
    pub device: bool,
    /// What this one is an overlay of in turn, if it is to be other than what its own header says.
    pub backing: Option<Box<Self>>,
}
