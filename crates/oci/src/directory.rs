//! A directory of the host's, read as the files of a root. No link in it is followed, and nothing that is mounted in it is entered.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat},
};

use crate::{
    archive::{Entry, Kind, LayerError, shown},
    limits::{Exceeded, Limits, MAX_PATH},
    sink::Sink,
    tree::{Done, Tree},
};

/// What a directory has one of if it is a root.
const OF_ROOTS: &[&str] = &["bin", "sbin", "usr", "etc"];
/// Names of files that are told of.
const MOST_TOLD: usize = 8;

/// Whose files they are in the guest: an ordinary user has nobody else's, and the files of a root are root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owners {
    user: u32,
    group: u32,
}

impl Owners {
    pub(crate) fn of_this_process() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), group: rustix::process::getegid().as_raw() }
    }

    /// Whether somebody's files become root's.
    pub(crate) fn change(self) -> bool {
        self.user != 0
    }

    fn of(self, user: u32, group: u32) -> (u32, u32) {
        if !self.change() {
            return (user, group);
        }
        (if user == self.user { 0 } else { user }, if group == self.group { 0 } else { group })
    }
}

/// Whether it looks like a root.
pub(crate) fn is_root(path: &Path) -> bool {
    OF_ROOTS.iter().any(|name| path.join(name).is_dir())
}

/// One file of it.
struct Found<'a> {
    /// The directory that it is in.
    above: BorrowedFd<'a>,
    name: &'a OsStr,
    /// From the root on.
    path: Vec<u8>,
    stat: Stat,
    /// Whether it is of another file system, which is mounted there.
    mounted: bool,
}

/// Goes through a directory, each before what is in it, in the order of their names.
fn walk(
    root: &Path,
    limits: &Limits,
    see: &mut dyn FnMut(Found<'_>) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| entry(b".", "read", errno.into()))?;
    let stat = rustix::fs::fstat(&top).map_err(|errno| entry(b".", "read", errno.into()))?;
    let device = stat.st_dev;
    let mut seen = 0_u64;
    see(Found { above: top.as_fd(), name: OsStr::new("."), path: b".".to_vec(), stat, mounted: false })?;
    let names = names(&top, b"", limits)?;
    // The directories on the way down, each with the names in it that are still to come.
    let mut way: Vec<(OwnedFd, Vec<u8>, std::vec::IntoIter<Vec<u8>>)> = vec![(top, Vec::new(), names.into_iter())];
    while let Some((above, path, left)) = way.last_mut() {
        let Some(name) = left.next() else {
            way.pop();
            continue;
        };
        seen += 1;
        if seen > limits.entries {
            return Err(Exceeded::Entries(limits.entries).into());
        }
        let mut full = path.clone();
        if !full.is_empty() {
            full.push(b'/');
        }
        full.extend_from_slice(&name);
        if full.len() > MAX_PATH {
            return Err(entry(&full, "read", rustix::io::Errno::NAMETOOLONG.into()));
        }
        let name = OsStr::from_bytes(&name);
        let failed = |errno: rustix::io::Errno| entry(&full, "read", errno.into());
        let stat = rustix::fs::statat(&*above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Of an overlay the files are of other devices than its directories.
        let mounted = kind == FileType::Directory && stat.st_dev != device;
        see(Found { above: above.as_fd(), name, path: full.clone(), stat, mounted })?;
        if kind == FileType::Directory && !mounted {
            if way.len() >= usize::from(limits.depth) {
                return Err(Exceeded::Depth(limits.depth).into());
            }
            let (above, ..) = way.last().ok_or(LayerError::Cut)?;
            let dir = rustix::fs::openat(above, name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
            let names = self::names(&dir, &full, limits)?;
            way.push((dir, full, names.into_iter()));
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd, path: &[u8], limits: &Limits) -> Result<Vec<Vec<u8>>, LayerError> {
    let failed = |errno: rustix::io::Errno| entry(path, "read", errno.into());
    let mut names = Vec::new();
    for found in Dir::read_from(dir).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = found.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
        if names.len() as u64 > limits.entries {
            return Err(Exceeded::Entries(limits.entries).into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn entry(path: &[u8], attempt: &str, error: io::Error) -> LayerError {
    let advice = if error.kind() == io::ErrorKind::PermissionDenied {
        "; pack the directory as a user who may, and give the archive (for one that podman made: podman unshare tar)"
    } else {
        ""
    };
    LayerError::Entry { name: shown(path), what: format!("cannot {attempt} it: {error}{advice}") }
}

/// By what it is noticed that a directory, or anything in it, is not what it was; and when the last change was, in nanoseconds since the epoch.
pub(crate) fn stamp(root: &Path, limits: &Limits) -> Result<(String, i128), LayerError> {
    use sha2::Digest;
    let mut hasher = sha2::Sha256::new();
    let mut last = 0;
    let owners = Owners::of_this_process();
    hasher.update([u8::from(owners.change())]);
    walk(root, limits, &mut |found| {
        let stat = &found.stat;
        hasher.update((found.path.len() as u64).to_le_bytes());
        hasher.update(&found.path);
        hasher.update([u8::from(found.mounted)]);
        let changed = i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec);
        // The device's number is another after each boot.
        let (user, group) = owners.of(stat.st_uid, stat.st_gid);
        for number in [
            stat.st_ino,
            stat.st_rdev,
            u64::from(stat.st_mode),
            stat.st_size.cast_unsigned(),
            user.into(),
            group.into(),
        ] {
            hasher.update(number.to_le_bytes());
        }
        for time in [i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec), changed] {
            hasher.update(time.to_le_bytes());
        }
        if !found.mounted {
            last = last.max(changed);
        }
        Ok(())
    })?;
    Ok((data_encoding::HEXLOWER.encode(hasher.finalize().as_slice()), last))
}

/// Puts all that is in it into the tree; gives what was passed over.
pub(crate) fn read(
    root: &Path,
    tree: &mut Tree,
    sink: &mut Sink<'_>,
    limits: &Limits,
) -> Result<Vec<String>, LayerError> {
    let mut named: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut passed = Vec::new();
    let owners = Owners::of_this_process();
    walk(root, limits, &mut |found| {
        let stat = &found.stat;
        let mut pass = |what: &str| {
            if passed.len() < MOST_TOLD {
                passed.push(format!("{} ({what})", shown(&found.path)));
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if found.mounted {
            pass("what is mounted there");
        }
        let again = (stat.st_nlink > 1 && kind != FileType::Directory).then_some((stat.st_dev, stat.st_ino));
        let first = again.and_then(|file| named.get(&file)).cloned();
        let device = || {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
        };
        let kind = match (first, kind) {
            (Some(first), _) => Kind::Hardlink(first),
            (None, FileType::RegularFile) => Kind::File,
            (None, FileType::Directory) => Kind::Directory,
            (None, FileType::Symlink) => {
                let to = rustix::fs::readlinkat(found.above, found.name, Vec::new());
                Kind::Symlink(to.map_err(|errno| entry(&found.path, "read", errno.into()))?.into_bytes())
            }
            (None, FileType::CharacterDevice) => Kind::CharDevice(device()),
            (None, FileType::BlockDevice) => Kind::BlockDevice(device()),
            (None, FileType::Fifo) => Kind::Fifo,
            (None, _) => {
                pass("a socket");
                return Ok(());
            }
        };
        if let Some(file) = again {
            named.entry(file).or_insert_with(|| found.path.clone());
        }
        let mut wanted = Entry {
            path: found.path.clone(),
            mode: (stat.st_mode & 0o7777) as u16,
            owner: owners.of(stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            size: if kind == Kind::File { stat.st_size.cast_unsigned() } else { 0 },
            kind,
            ..Entry::default()
        };
        if !matches!(wanted.kind, Kind::Hardlink(_)) && !found.mounted {
            wanted.attributes = attributes(&found)?;
        }
        let size = wanted.size;
        if let Done::File(node) = tree.apply(wanted)? {
            let mut file = open(&found)?;
            let extent = sink.take(&mut file, size).map_err(|error| match error {
                LayerError::Cut => changed(&found.path),
                LayerError::Read(error) => entry(&found.path, "read", error),
                other => other,
            })?;
            tree.put(node, extent);
        }
        Ok(())
    })?;
    Ok(passed)
}

pub(crate) fn changed(path: &[u8]) -> LayerError {
    let what = "it was changed while it was read; leave the directory alone meanwhile".to_owned();
    LayerError::Entry { name: shown(path), what }
}

fn open(found: &Found<'_>) -> Result<File, LayerError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let failed = |errno: rustix::io::Errno| entry(&found.path, "read", errno.into());
    let file = rustix::fs::openat(found.above, found.name, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let same = (stat.st_dev, stat.st_ino, stat.st_size) == (found.stat.st_dev, found.stat.st_ino, found.stat.st_size);
    if same { Ok(file.into()) } else { Err(changed(&found.path)) }
}

/// Its extended attributes, as far as this user may see them.
fn attributes(found: &Found<'_>) -> Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>, LayerError> {
    use rustix::{fd::AsRawFd, io::Errno};
    const MOST: usize = 64 << 10;
    let mut all = std::collections::BTreeMap::new();
    // By a name in a directory that is open: of a link or a device itself there is no other way.
    let path = PathBuf::from(format!("/proc/self/fd/{}", found.above.as_raw_fd())).join(found.name);
    let failed = |errno: Errno| entry(&found.path, "read the extended attributes of", errno.into());
    let mut buffer = vec![0; MOST];
    let length = match rustix::fs::llistxattr(&path, &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::NOENT) => 0,
        Err(errno) => return Err(failed(errno)),
    };
    let names = buffer[..length].to_vec();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match rustix::fs::lgetxattr(&path, name, &mut buffer[..]) {
            Ok(length) => drop(all.insert(name.to_vec(), buffer[..length].to_vec())),
            // Labels of the host's own security modules, and what went meanwhile.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(all)
}
