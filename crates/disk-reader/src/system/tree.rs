//! The files of a system as it sees them itself: the root file system with what `/etc/fstab` mounts where boot files and programs are.

use crate::boot::FileRef;
use crate::description::Volume;
use crate::fs::{FileError, FileSystems, Kind, MAX_LINKS, MAX_PATH, Stat, View, components, joined};

use super::root::{Root, volume_of};

/// Bytes of `/etc/fstab`.
const MAX_FSTAB: u64 = 64 << 10;
/// Where something may be mounted that matters.
const PLACES: &[&str] = &["/boot", "/boot/efi", "/efi", "/usr", "/etc", "/var"];

pub(super) struct Tree<'t, 'f> {
    fs: &'t mut FileSystems<'f>,
    /// What is mounted where, the root at the empty path.
    mounts: Vec<(String, Root)>,
}

impl<'t, 'f> Tree<'t, 'f> {
    pub(super) fn new(volumes: &[Volume], fs: &'t mut FileSystems<'f>, root: Root) -> Self {
        let mut tree = Self { fs, mounts: vec![(String::new(), root.clone())] };
        let fstab = tree.text("/etc/fstab", MAX_FSTAB).unwrap_or_default();
        for line in fstab.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [device, place, _kind, options, ..] = fields.as_slice() else { continue };
            let place = if *place == "/" { *place } else { place.trim_end_matches('/') };
            if !PLACES.contains(&place) {
                continue;
            }
            let Some(volume) =
                volume_of(volumes, device.trim_matches('"')).filter(|&index| volumes[index].is_readable())
            else {
                continue;
            };
            let top = options
                .split(',')
                .find_map(|option| option.strip_prefix("subvol="))
                .map(|name| format!("/{}", name.trim_matches('/')));
            let view = if top.is_some() { View::Top } else { View::Default };
            let top = top.unwrap_or_default().trim_end_matches('/').to_owned();
            tree.mounts.push((place.to_owned(), Root { volume, view, top }));
        }
        tree
    }

    /// Volume, view and path of what is at a path without links.
    fn locate(&self, path: &str) -> Option<(usize, View, String)> {
        let within = |mount: &str| path.strip_prefix(mount).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let (rest, root) = self
            .mounts
            .iter()
            .filter_map(|(mount, root)| Some((within(mount)?, root)))
            .min_by_key(|(rest, _)| rest.len())?;
        let path = format!("{}{}", root.top, rest.trim_end_matches('/'));
        Some((root.volume, root.view, if path.is_empty() { "/".into() } else { path }))
    }

    fn stat(&mut self, path: &str) -> Result<Stat, FileError> {
        let (volume, view, path) = self.locate(path).ok_or(FileError::NotFound)?;
        self.fs.stat(volume, view, &path)
    }

    /// The path without links that a path leads to, and what is there.
    pub(super) fn resolve(&mut self, path: &str) -> Result<(String, Stat), FileError> {
        let mut links = MAX_LINKS;
        let mut done: Vec<String> = Vec::new();
        let mut rest = components(path)?;
        while let Some(name) = rest.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            let here = joined(&done);
            if here.len() > MAX_PATH || rest.len() > MAX_PATH {
                return Err(FileError::LongPath);
            }
            let stat = self.stat(&here)?;
            match stat.kind {
                Kind::Link => {
                    links = links.checked_sub(1).ok_or(FileError::Links)?;
                    let (volume, view, path) = self.locate(&here).ok_or(FileError::NotFound)?;
                    let target = self.fs.link(volume, view, &path)?;
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    rest.extend(components(&target)?);
                }
                Kind::Directory => {}
                Kind::File | Kind::Other if rest.is_empty() => {}
                Kind::File | Kind::Other => return Err(FileError::NotADirectory),
            }
        }
        let here = joined(&done);
        let stat = self.stat(&here)?;
        Ok((here, stat))
    }

    pub(super) fn is_there(&mut self, path: &str) -> bool {
        // A link that leads to what only a running system has is there as well.
        self.resolve(path).is_ok() || self.stat(path).is_ok_and(|stat| stat.kind == Kind::Link)
    }

    pub(super) fn file(&mut self, path: &str) -> Result<FileRef, FileError> {
        let (path, stat) = self.resolve(path)?;
        if stat.kind != Kind::File {
            return Err(FileError::NotAFile);
        }
        let (volume, view, path) = self.locate(&path).ok_or(FileError::NotFound)?;
        Ok(FileRef { volume, view, path, offset: 0, size: stat.size })
    }

    /// The first `max` bytes of a file.
    pub(super) fn head(&mut self, path: &str, max: u64) -> Result<Vec<u8>, FileError> {
        let file = self.file(path)?;
        self.fs.piece(&FileRef { size: file.size.min(max), ..file }, max)
    }

    /// The text of a file of at most `max` bytes.
    pub(super) fn text(&mut self, path: &str, max: u64) -> Result<String, FileError> {
        let file = self.file(path)?;
        Ok(String::from_utf8_lossy(&self.fs.piece(&file, max)?).into_owned())
    }

    /// Names in a directory, sorted.
    pub(super) fn list(&mut self, path: &str) -> Result<Vec<String>, FileError> {
        let (path, _) = self.resolve(path)?;
        let (volume, view, path) = self.locate(&path).ok_or(FileError::NotFound)?;
        self.fs.list(volume, view, &path)
    }
}
