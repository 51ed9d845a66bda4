//! XFS by the crate `lamxfs`, btrfs by `lambutter`: a boot loader's readers, with one interface. A log of XFS that was not played back is read
//! as if it had been; a btrfs is read as of its last transaction, without what only its log has.

use lambutter::Btrfs;
use lamxfs::Xfs;

use super::{FileError, FileSystem, Kind, MAX_ENTRIES, Stat, View};
use crate::disk::{Part, ReadError};

struct Bytes(Part);

impl lamxfs::BlockRead for Bytes {
    type Error = ReadError;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_at(offset, buffer)
    }
}

impl lambutter::BlockRead for Bytes {
    type Error = ReadError;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_at(offset, buffer)
    }
}

fn stat(is_file: bool, is_dir: bool, is_link: bool, size: u64, mode: u32) -> Stat {
    let kind = match (is_file, is_dir, is_link) {
        (true, ..) => Kind::File,
        (_, true, _) => Kind::Directory,
        (.., true) => Kind::Link,
        _ => Kind::Other,
    };
    Stat { kind, size, mode: mode & 0o7777 }
}

fn names(entries: impl Iterator<Item = Vec<u8>>) -> Vec<String> {
    entries.take(MAX_ENTRIES).filter_map(|name| String::from_utf8(name).ok()).collect()
}

pub(super) struct XfsReader(Xfs<Bytes>);

impl XfsReader {
    pub(super) fn open(part: &Part) -> Result<Self, FileError> {
        Xfs::open(Bytes(part.clone()), part.size()).map(Self).map_err(of_xfs)
    }
}

fn of_xfs(error: lamxfs::Error) -> FileError {
    match error {
        lamxfs::Error::NotFound { component: "not_a_directory" } => FileError::NotADirectory,
        lamxfs::Error::NotFound { .. } => FileError::NotFound,
        lamxfs::Error::NotARegularFile => FileError::NotAFile,
        other => FileError::FileSystem { kind: "XFS", said: other.token().to_owned() },
    }
}

impl FileSystem for XfsReader {
    fn stat(&mut self, path: &str) -> Result<Stat, FileError> {
        let inode = self.0.resolve(lamxfs::Path::new(path.as_bytes())).map_err(of_xfs)?;
        let found = self.0.metadata(&inode).map_err(of_xfs)?;
        Ok(stat(found.is_file(), found.is_dir(), found.is_symlink(), found.size(), found.mode()))
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, FileError> {
        let entries = self.0.read_dir(lamxfs::Path::new(path.as_bytes())).map_err(of_xfs)?;
        Ok(names(entries.into_iter().map(|entry| entry.name)))
    }

    fn link(&mut self, path: &str) -> Result<String, FileError> {
        let target = self.0.read_link(lamxfs::Path::new(path.as_bytes())).map_err(of_xfs)?;
        String::from_utf8(target).map_err(|_| FileError::NotFound)
    }

    fn read_at(&mut self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let inode = self.0.resolve(lamxfs::Path::new(path.as_bytes())).map_err(of_xfs)?;
        self.0.read_file_at(&inode, offset, buffer).map_err(of_xfs)
    }
}

pub(super) struct BtrfsReader(Btrfs<Bytes>);

/// The subvolume that holds all others.
const TOP: u64 = 5;

impl BtrfsReader {
    pub(super) fn open(part: &Part, view: View) -> Result<Self, FileError> {
        let bytes = Bytes(part.clone());
        match view {
            View::Top => Btrfs::open_subvol_id(bytes, part.size(), TOP),
            View::Default => Btrfs::open(bytes, part.size()),
        }
        .map(Self)
        .map_err(of_btrfs)
    }

    fn inode(&mut self, path: &str) -> Result<lambutter::Inode, FileError> {
        self.0.resolve(lambutter::Path::from(path)).map_err(of_btrfs)
    }
}

fn of_btrfs(error: lambutter::Error) -> FileError {
    match error {
        lambutter::Error::NotFound => FileError::NotFound,
        lambutter::Error::NotARegularFile => FileError::NotAFile,
        other => FileError::FileSystem { kind: "btrfs", said: other.to_string() },
    }
}

impl FileSystem for BtrfsReader {
    fn stat(&mut self, path: &str) -> Result<Stat, FileError> {
        let inode = self.inode(path)?;
        let found = self.0.metadata(&inode).map_err(of_btrfs)?;
        Ok(stat(found.is_file(), found.is_dir(), found.is_symlink(), found.size, found.mode))
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, FileError> {
        let entries = self.0.read_dir(lambutter::Path::from(path)).map_err(of_btrfs)?;
        Ok(names(entries.into_iter().map(|entry| entry.name)))
    }

    fn link(&mut self, path: &str) -> Result<String, FileError> {
        let target = self.0.read_link(lambutter::Path::from(path)).map_err(of_btrfs)?;
        String::from_utf8(target).map_err(|_| FileError::NotFound)
    }

    fn read_at(&mut self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let inode = self.inode(path)?;
        self.0.read_file_at(&inode, offset, buffer).map_err(of_btrfs)
    }
}
