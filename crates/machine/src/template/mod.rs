//! Templates: guests that were booted once and frozen, to be copied.
//!
//! - [`TemplateKey`]: what decides how a guest that has booted looks.
//! - [`TemplateStore`]: where templates are kept, found, made by one and dropped.
//! - `freeze`: from a guest that booted to a template.
//! - `thaw`: from a template to a guest of its own.

mod blame;
mod freeze;
mod key;
mod manifest;
mod sparse;
mod store;
#[cfg(test)]
mod tests;
mod thaw;

use std::{fs::File, io, os::fd::AsRawFd};

use manifest::{Flaw, Manifest, Part};
use rustix::fs::MemfdFlags;

use crate::{Lost, lost};

pub use key::TemplateKey;
pub use store::{BeingMade, Kept, TemplateStore};

pub(crate) use blame::Blame;
pub(crate) use freeze::{Freezing, Rest, Unfrozen, freeze, save_whole};
pub(crate) use key::{KeyMaker, Unkeyable};
pub(crate) use manifest::Frozen;
pub(crate) use sparse::copy_unchecked as copy_sparse;
pub(crate) use store::{Claim, Making};
pub(crate) use thaw::{
    CopyToKeep, FailedCopy, Unthawed, go_back, thaw, thaw_to_plug, thaw_to_set_up, unchanged as unchanged_identity,
};

/// A template, its parts open and as they were made. What happens to its directory from now on does not matter.
#[derive(Debug)]
pub(crate) struct Template {
    ram: File,
    state: File,
    volumes: Vec<File>,
    manifest: Manifest,
}

impl Template {
    /// How it is talked to.
    pub(crate) fn session(&self) -> &Frozen {
        &self.manifest.session
    }

    /// Seconds since the epoch at which it was made.
    pub(crate) fn made(&self) -> u64 {
        self.manifest.made
    }

    /// The memory, for a machine that writes nothing to it. QEMU opens it for writing all the same, which cannot be done
    /// where the file system is read-only: there it is a copy.
    pub(crate) fn ram(&self) -> io::Result<File> {
        let file = reopen(&self.ram)?;
        match File::options().read(true).write(true).open(name_of(&file)) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                let size = file.metadata()?.len();
                let copy = memory(size)?;
                self.copy_ram(&copy, size)?;
                Ok(copy)
            }
            _ => Ok(file),
        }
    }

    /// The devices' state, to be read from its beginning.
    pub(crate) fn state(&self) -> io::Result<File> {
        reopen(&self.state)
    }

    /// The volumes, opened anew for reading.
    pub(crate) fn volumes(&self) -> io::Result<Vec<File>> {
        self.volumes.iter().map(reopen).collect()
    }

    /// Copies the memory, `size` bytes, into an empty file.
    pub(crate) fn copy_ram(&self, to: &File, size: u64) -> io::Result<()> {
        sparse::copy_unchecked(&self.ram, to, size)
    }

    /// Copies the volumes into files of another template.
    pub(crate) fn copy_volumes(&self, making: &Making) -> io::Result<Vec<File>> {
        let copy = |(number, volume): (usize, &File)| {
            let to = making.create_volume(number)?;
            sparse::copy(volume, &to, volume.metadata()?.len())?;
            Ok(to)
        };
        self.volumes.iter().enumerate().map(copy).collect()
    }

    /// Whether nobody has written to any part since it was opened.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.manifest.parts.iter().all(|part| self.file_of(part).is_some_and(|file| part.is_unchanged(file)))
    }

    /// Reads all of it, and compares it with what was made.
    pub(crate) fn verify(&self) -> Result<(), Flaw> {
        for part in &self.manifest.parts {
            let missing = || Flaw::Manifest(format!("it names {}, which is no part of a template", part.name));
            part.verify(self.file_of(part).ok_or_else(missing)?, true)?;
        }
        Ok(())
    }

    fn file_of(&self, part: &Part) -> Option<&File> {
        match part.name.as_str() {
            store::RAM => Some(&self.ram),
            store::STATE => Some(&self.state),
            name => name.strip_prefix(store::VOLUME).and_then(|n| self.volumes.get(n.parse::<usize>().ok()?)),
        }
    }
}

/// Another descriptor with a position of its own, of a file that may have no name any more.
pub(crate) fn reopen(file: &File) -> io::Result<File> {
    File::open(name_of(file))
}

fn name_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A guest's memory, in a file without a name.
pub(crate) fn memory(size: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("belljar-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

/// Works on templates where nothing else waits for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
    lost::blocking("work on a template", work).await
}
