//! ext2, ext3 and ext4, by the crate `ext4-view`. A journal that was not played back is read as if it had been.

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType};

use super::{FileError, FileSystem, Kind, MAX_ENTRIES, Stat};
use crate::disk::Part;

pub(super) struct Ext {
    fs: Ext4,
    kind: &'static str,
    /// The file that was read last: it is read piece by piece.
    last: Option<(String, File)>,
}

struct Bytes(Part);

impl Ext4Read for Bytes {
    fn read(&mut self, start: u64, into: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_at(start, into)?)
    }
}

impl Ext {
    pub(super) fn open(part: &Part, kind: &'static str) -> Result<Self, FileError> {
        let fs = Ext4::load(Box::new(Bytes(part.clone()))).map_err(|error| failed(kind, &error))?;
        Ok(Self { fs, kind, last: None })
    }
}

fn failed(kind: &'static str, error: &Ext4Error) -> FileError {
    match error {
        Ext4Error::NotFound => FileError::NotFound,
        Ext4Error::NotADirectory => FileError::NotADirectory,
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => FileError::NotAFile,
        other => FileError::FileSystem { kind, said: other.to_string() },
    }
}

impl FileSystem for Ext {
    fn stat(&mut self, path: &str) -> Result<Stat, FileError> {
        let metadata = self.fs.symlink_metadata(path).map_err(|error| failed(self.kind, &error))?;
        let kind = match metadata.file_type() {
            FileType::Regular => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        Ok(Stat { kind, size: metadata.len(), mode: u32::from(metadata.mode()) & 0o7777 })
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, FileError> {
        let mut names = Vec::new();
        for entry in self.fs.read_dir(path).map_err(|error| failed(self.kind, &error))?.take(MAX_ENTRIES) {
            let entry = entry.map_err(|error| failed(self.kind, &error))?;
            names.extend(entry.file_name().as_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    fn link(&mut self, path: &str) -> Result<String, FileError> {
        let target = self.fs.read_link(path).map_err(|error| failed(self.kind, &error))?;
        target.to_str().map(str::to_owned).map_err(|_| FileError::NotFound)
    }

    fn read_at(&mut self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let kind = self.kind;
        let mut file = match self.last.take() {
            Some((last, file)) if last == path => file,
            _ => self.fs.open(path).map_err(|error| failed(kind, &error))?,
        };
        if file.position() != offset {
            file.seek_to(offset).map_err(|error| failed(kind, &error))?;
        }
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_bytes(rest).map_err(|error| failed(kind, &error))? {
                0 => break,
                n => done += n,
            }
        }
        self.last = Some((path.to_owned(), file));
        Ok(done)
    }
}
