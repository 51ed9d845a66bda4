//! File systems, read-only.
//!
//! Each is read by a [`FileSystem`], which knows only paths without links in them. Links are resolved here, within the file system, and so with one
//! limit for all. Three of the four are crates of others: they get bytes only through the metered disk, and a panic in one of them is an error
//! ([`FileError::Panicked`]) after which it is not used again. Names that are not UTF-8 are not found.

mod ext;
mod fat;
mod lam;

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use crate::boot::FileRef;
use crate::content::ContentKind;
use crate::disk::{Part, ReadError};

/// As many links as Linux follows in one path.
pub(crate) const MAX_LINKS: usize = 40;
/// Longest path, and longest target of a link.
pub(crate) const MAX_PATH: usize = 4096;
/// Entries of a directory that are looked at.
pub(crate) const MAX_ENTRIES: usize = 4096;
/// Read at once where a file is copied.
const CHUNK: usize = 256 << 10;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("it is not there")]
    NotFound,
    /// It is a directory, a device, …
    #[error("it is not a file")]
    NotAFile,
    /// What should be a directory is none.
    #[error("it is not a directory")]
    NotADirectory,
    /// Its links lead in a circle, or nearly.
    #[error("more than {MAX_LINKS} symbolic links lead to it")]
    Links,
    /// Its name is too long.
    #[error("its path has more than {MAX_PATH} bytes")]
    LongPath,
    /// It is larger than what was asked for.
    #[error("it has {size} bytes, and at most {max} are taken")]
    TooLarge {
        /// Its size.
        size: u64,
        /// What was asked for.
        max: u64,
    },
    /// It ends before its end.
    #[error("only {found} of its {size} bytes are there")]
    Short {
        /// Bytes that were there.
        found: u64,
        /// Its size.
        size: u64,
    },
    /// The disk's bytes cannot be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file system is not as it should be, or has something that cannot be read.
    #[error("{kind}: {said}")]
    FileSystem {
        /// Which one.
        kind: &'static str,
        /// What its reader says.
        said: String,
    },
    /// The reader of the file system panicked, which is a bug of it.
    #[error("{kind}: its reader failed (a bug): {said}")]
    Panicked {
        /// Which one.
        kind: &'static str,
        /// What it said.
        said: String,
    },
    /// What was read cannot be written.
    #[error("cannot write what was read: {0}")]
    Write(std::io::Error),
}

impl FileError {
    /// Whether the file is not there, as far as can be told.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound | Self::NotADirectory)
    }
}

/// What something in a file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Permission bits; zero where there are none.
    pub(crate) mode: u32,
}

/// A file system as its reader sees it. Paths begin with a slash, and no part of them but the last is a link.
pub(crate) trait FileSystem {
    fn stat(&mut self, path: &str) -> Result<Stat, FileError>;
    /// The names in a directory, at most [`MAX_ENTRIES`].
    fn list(&mut self, path: &str) -> Result<Vec<String>, FileError>;
    fn link(&mut self, path: &str) -> Result<String, FileError>;
    /// Bytes of a file from `offset` on; fewer than asked for at its end.
    fn read_at(&mut self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError>;
}

/// From where paths count in a file system that has roots within.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// From the topmost directory.
    #[default]
    Top,
    /// From the subvolume of a btrfs that is mounted where no other is named.
    Default,
}

/// The file systems of a disk, each opened when it is first asked.
pub(crate) struct FileSystems<'a> {
    volumes: Vec<(&'a Part, ContentKind)>,
    open: HashMap<(usize, View), Opened>,
}

enum Opened {
    Good(Box<dyn FileSystem>),
    /// Why it cannot be used.
    Bad(String),
}

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a reader whose panic is caught and told as an error, so that a panic hook need not tell of it.
#[must_use]
pub fn is_reading() -> bool {
    READING.get()
}

/// A reader's answer, or that it panicked.
fn guarded<T>(kind: &'static str, read: impl FnOnce() -> Result<T, FileError>) -> Result<T, FileError> {
    let before = READING.replace(true);
    let answer = catch_unwind(AssertUnwindSafe(read));
    READING.set(before);
    answer.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(FileError::Panicked { kind, said })
    })
}

impl<'a> FileSystems<'a> {
    pub(crate) fn new(volumes: Vec<(&'a Part, ContentKind)>) -> Self {
        Self { volumes, open: HashMap::new() }
    }

    /// Whether the file system can be used at all.
    pub(crate) fn check(&mut self, volume: usize) -> Result<(), FileError> {
        self.with(volume, View::Top, |fs| fs.stat("/").map(drop))
    }

    fn with<T>(
        &mut self,
        volume: usize,
        view: View,
        ask: impl FnOnce(&mut dyn FileSystem) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        let Some(&(part, kind)) = self.volumes.get(volume) else { return Err(FileError::NotFound) };
        let name = kind.name();
        let opened =
            self.open.entry((volume, view)).or_insert_with(|| match guarded(name, || open(part, kind, view)) {
                Ok(fs) => Opened::Good(fs),
                Err(error) => Opened::Bad(error.to_string()),
            });
        let answer = match opened {
            Opened::Good(fs) => guarded(name, || ask(fs.as_mut())),
            Opened::Bad(said) => Err(FileError::FileSystem {
                kind: name,
                said: said.trim_start_matches(name).trim_start_matches(": ").to_owned(),
            }),
        };
        if let Err(error @ FileError::Panicked { .. }) = &answer {
            *opened = Opened::Bad(error.to_string());
        }
        // Whatever the reader makes of it: it was the limit.
        match part.disk().limit_met() {
            Some(limit) => Err(limit.into()),
            None => answer,
        }
    }

    /// Path and properties of what a path leads to, links resolved within the file system.
    pub(crate) fn resolve(&mut self, volume: usize, view: View, path: &str) -> Result<(String, Stat), FileError> {
        let mut links = MAX_LINKS;
        let mut done: Vec<String> = Vec::new();
        let mut rest: Vec<String> = components(path)?;
        let mut stat = self.with(volume, view, |fs| fs.stat("/"))?;
        while let Some(name) = rest.pop() {
            if name == ".." {
                done.pop();
                stat = Stat { kind: Kind::Directory, ..stat };
                continue;
            }
            if stat.kind != Kind::Directory {
                return Err(FileError::NotADirectory);
            }
            done.push(name);
            let here = joined(&done);
            if here.len() > MAX_PATH {
                return Err(FileError::LongPath);
            }
            stat = self.with(volume, view, |fs| fs.stat(&here))?;
            if stat.kind == Kind::Link {
                links = links.checked_sub(1).ok_or(FileError::Links)?;
                let target = self.with(volume, view, |fs| fs.link(&here))?;
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                rest.extend(components(&target)?);
                if rest.len() > MAX_PATH {
                    return Err(FileError::LongPath);
                }
                stat = Stat { kind: Kind::Directory, ..stat };
            }
        }
        if done.is_empty() {
            stat = self.with(volume, view, |fs| fs.stat("/"))?;
        }
        Ok((joined(&done), stat))
    }

    /// What is known of what a path is, in which there is no link but at its end.
    pub(crate) fn stat(&mut self, volume: usize, view: View, path: &str) -> Result<Stat, FileError> {
        self.with(volume, view, |fs| fs.stat(path))
    }

    /// Where a link leads.
    pub(crate) fn link(&mut self, volume: usize, view: View, path: &str) -> Result<String, FileError> {
        self.with(volume, view, |fs| fs.link(path))
    }

    /// Whether a path, whose directory has no link in it, is a link.
    pub(crate) fn is_link(&mut self, volume: usize, view: View, path: &str) -> bool {
        self.with(volume, view, |fs| fs.stat(path)).is_ok_and(|stat| stat.kind == Kind::Link)
    }

    /// Names in a directory, sorted.
    pub(crate) fn list(&mut self, volume: usize, view: View, path: &str) -> Result<Vec<String>, FileError> {
        let (path, stat) = self.resolve(volume, view, path)?;
        if stat.kind != Kind::Directory {
            return Err(FileError::NotADirectory);
        }
        let mut names = self.with(volume, view, |fs| fs.list(&path))?;
        names.retain(|name| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    /// The contents of a file of at most `max` bytes.
    pub(crate) fn read(&mut self, volume: usize, view: View, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        self.copy(volume, view, path, max, &mut bytes)?;
        Ok(bytes)
    }

    /// The beginning of a file, of at most `max` bytes.
    pub(crate) fn head(&mut self, volume: usize, view: View, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        let (path, stat) = self.resolve(volume, view, path)?;
        if stat.kind != Kind::File {
            return Err(FileError::NotAFile);
        }
        self.piece(&FileRef { volume, view, path, offset: 0, size: stat.size.min(max) }, max)
    }

    /// The bytes of a piece of a file whose path has no link in it.
    pub(crate) fn piece(&mut self, file: &FileRef, max: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        self.copy_range(file, max, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies a file of at most `max` bytes; how many it had.
    pub(crate) fn copy(
        &mut self,
        volume: usize,
        view: View,
        path: &str,
        max: u64,
        out: &mut dyn Write,
    ) -> Result<u64, FileError> {
        let (path, stat) = self.resolve(volume, view, path)?;
        if stat.kind != Kind::File {
            return Err(FileError::NotAFile);
        }
        self.copy_range(&FileRef { volume, view, path, offset: 0, size: stat.size }, max, out)
    }

    /// Copies a piece of a file whose path has no link in it.
    pub(crate) fn copy_range(&mut self, file: &FileRef, max: u64, out: &mut dyn Write) -> Result<u64, FileError> {
        if file.size > max {
            return Err(FileError::TooLarge { size: file.size, max });
        }
        let mut chunk = vec![0; usize::try_from(file.size).unwrap_or(CHUNK).min(CHUNK)];
        let mut at = 0;
        while at < file.size {
            let wanted = usize::try_from(file.size - at).unwrap_or(CHUNK).min(chunk.len());
            let from = file.offset.saturating_add(at);
            let n = self.with(file.volume, file.view, |fs| fs.read_at(&file.path, from, &mut chunk[..wanted]))?;
            let Some(read) = chunk.get(..n).filter(|read| !read.is_empty()) else {
                return Err(FileError::Short { found: at, size: file.size });
            };
            out.write_all(read).map_err(FileError::Write)?;
            at += n as u64;
        }
        Ok(at)
    }
}

/// The names of a path, the last one first.
pub(crate) fn components(path: &str) -> Result<Vec<String>, FileError> {
    if path.len() > MAX_PATH {
        return Err(FileError::LongPath);
    }
    Ok(path.split('/').rev().filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect())
}

pub(crate) fn joined(names: &[String]) -> String {
    if names.is_empty() { "/".into() } else { names.iter().flat_map(|name| ["/", name]).collect() }
}

fn open(part: &Part, kind: ContentKind, view: View) -> Result<Box<dyn FileSystem>, FileError> {
    match kind {
        ContentKind::Ext2 | ContentKind::Ext3 | ContentKind::Ext4 => Ok(Box::new(ext::Ext::open(part, kind.name())?)),
        ContentKind::Xfs => Ok(Box::new(lam::XfsReader::open(part)?)),
        ContentKind::Btrfs => Ok(Box::new(lam::BtrfsReader::open(part, view)?)),
        ContentKind::Fat => Ok(Box::new(fat::Fat::open(part)?)),
        other => Err(FileError::FileSystem { kind: other.name(), said: "it cannot be read here".into() }),
    }
}
