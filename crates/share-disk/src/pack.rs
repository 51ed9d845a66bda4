//! From directories to an archive: all of them, or what has changed since.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::holes::{self, Extent};
use crate::tar::{Entry, Kind, PIECE_HEADER, Writer};

/// Most directories in one another.
const MAX_DEPTH: usize = 200;
/// Longest path below a directory, and most names in one.
pub(crate) const MAX_PATH: usize = 4096;
pub(crate) const MAX_NAMES: usize = MAX_DEPTH + 2;
/// Most entries of all directories.
pub const MAX_ENTRIES: usize = 500_000;
/// Most names that are told of each thing that was left out.
const MAX_TOLD: usize = 5;
const PIECE: usize = 256 * 1024;
/// What an entry takes besides its content, mostly: a header of tar's, and another for its times.
const HEADERS: u64 = 1024;

/// How a directory is opened, of which it is not known who put it there.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What tells whether a file is still as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    mode: u32,
    inode: u64,
    /// Of what is no directory: a directory's are those of what is in it.
    rest: Option<OfContent>,
}

/// Size, and when content and attributes were changed last.
type OfContent = (u64, Time, Time);
/// Seconds and nanoseconds since the epoch.
type Time = (i64, u32);

impl Stamp {
    /// That of a file that was looked at.
    #[expect(clippy::unnecessary_cast, reason = "the types differ between processors")]
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        let time = |seconds, nanoseconds| (seconds as i64, u32::try_from(nanoseconds).unwrap_or(0));
        let rest = (kind_of(stat) != FileType::Directory).then(|| {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            (size, time(stat.st_mtime, stat.st_mtime_nsec), time(stat.st_ctime, stat.st_ctime_nsec))
        });
        Self { mode: stat.st_mode as u32, inode: stat.st_ino as u64, rest }
    }

    /// The file's number in its file system.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether it is a directory's.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.rest.is_none()
    }
}

/// What was in a directory: each path below it, and its own, which is empty.
pub type Manifest = BTreeMap<Vec<u8>, Stamp>;

/// What was in each file, as its CRC-32: a store to mapped memory need not change any time. tmpfs sees only the first store to a page, and not that where it was read before.
pub type Contents = BTreeMap<Vec<u8>, u32>;

/// What kind of thing, how many, and names of the first.
type OneKind = (&'static str, u64, Vec<String>);

/// What was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    what: Vec<OneKind>,
}

impl LeftOut {
    fn add(&mut self, what: &'static str, path: &[u8]) {
        let at = self.what.iter().position(|(known, ..)| *known == what).unwrap_or_else(|| {
            self.what.push((what, 0, Vec::new()));
            self.what.len() - 1
        });
        let (_, count, names) = &mut self.what[at];
        *count += 1;
        if names.len() < MAX_TOLD {
            names.push(shown(path));
        }
    }

    /// A line for each kind of thing, for a person.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |(what, count, names): &OneKind| {
            let more = count.saturating_sub(names.len() as u64);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{what}: {}{more}", names.join(", "))
        };
        self.what.iter().map(line).collect()
    }
}

/// A path for a person.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What came of packing.
#[derive(Debug, Default)]
pub struct Packed {
    /// What is in the directory now.
    pub manifest: Manifest,
    /// Bytes of files that were put into the archive, without holes.
    pub bytes: u64,
    /// What could not be put into the archive.
    pub left_out: LeftOut,
}

/// Puts a directory into an archive, below `name`. With `since` only what is not as it was then, and what is gone. What is mounted in it is left out.
///
/// # Errors
/// Those of the archive, and where there is too much or a directory cannot be read.
pub fn pack<W: Write>(
    archive: &mut Writer<W>,
    name: &str,
    root: impl AsFd,
    since: Option<&Manifest>,
) -> io::Result<Packed> {
    pack_what_changed(archive, name, root, since, None)
}

/// Puts into an archive what is not as it was, by times and by content, as [`pack`] does. `contents` are kept up to date.
///
/// # Errors
/// As for [`pack`].
pub fn pack_changes<W: Write>(
    archive: &mut Writer<W>,
    name: &str,
    root: impl AsFd,
    since: &Manifest,
    contents: &mut Contents,
) -> io::Result<Packed> {
    pack_what_changed(archive, name, root, Some(since), Some(contents))
}

/// What is in the regular files of a directory.
///
/// # Errors
/// Where one cannot be read.
pub fn contents(root: impl AsFd, manifest: &Manifest) -> io::Result<Contents> {
    let root = openat(root, c".", DIRECTORY, Mode::empty())?;
    let mut contents = Contents::new();
    for (path, stamp) in manifest {
        if FileType::from_raw_mode(stamp.mode) == FileType::RegularFile {
            contents.extend(checksum(&root, path)?.map(|crc| (path.clone(), crc)));
        }
    }
    Ok(contents)
}

/// Opens a file to be read, whatever it is: a FIFO is not waited for.
fn open_file(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    with_parent(root, path, |dir, name| openat(dir, name, flags, Mode::empty()))
}

/// Of what is in a regular file; nothing if it is none, or may not be read.
fn checksum(root: &OwnedFd, path: &[u8]) -> io::Result<Option<u32>> {
    let Ok(file) = open_file(root, path) else { return Ok(None) };
    if kind_of(&fstat(&file)?) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some(holes::checksum(&file)?))
}

fn pack_what_changed<W: Write>(
    archive: &mut Writer<W>,
    name: &str,
    root: impl AsFd,
    since: Option<&Manifest>,
    mut contents: Option<&mut Contents>,
) -> io::Result<Packed> {
    let root = openat(root, c".", DIRECTORY, Mode::empty())?;
    let stat = fstat(&root)?;
    let walk = walk(&root, &stat)?;
    let mut packed = Packed { left_out: walk.left_out, ..Packed::default() };
    if let Some(since) = since {
        for (path, before) in since.iter().rev() {
            let kind = |mode: u32| mode & 0o170_000;
            if is_hidden(path, &walk.hidden) {
                // Nobody knows what has become of it, so it has not changed.
                packed.manifest.insert(path.clone(), *before);
                continue;
            }
            if walk.found.get(path).is_none_or(|now| kind(now.stamp.mode) != kind(before.mode)) {
                archive.entry(&Entry {
                    path: join(name, path),
                    kind: Kind::Gone,
                    mode: 0,
                    owner: (0, 0),
                    mtime: (0, 0),
                    size: 0,
                })?;
            }
        }
    }
    let mut linked: HashMap<u64, Vec<u8>> = HashMap::new();
    // A path comes before those below it: so the tree is made from its top.
    for (path, found) in walk.found {
        let mut is_same = since.and_then(|since| since.get(&path)) == Some(&found.stamp);
        if let Some(contents) = contents.as_mut().filter(|_| found.kind == FileType::RegularFile) {
            let now = checksum(&root, &path)?;
            let before = match now {
                Some(crc) => contents.insert(path.clone(), crc),
                None => contents.remove(&path),
            };
            is_same &= before == now;
        }
        if is_same || put(archive, name, (&root, &path), &found, &mut linked, &mut packed)? {
            packed.manifest.insert(path, found.stamp);
        }
    }
    Ok(packed)
}

/// Whether a path, or a directory that it is in, was there and could not be looked at.
fn is_hidden(path: &[u8], hidden: &BTreeSet<Vec<u8>>) -> bool {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    !hidden.is_empty() && ends.chain([path.len()]).any(|end| hidden.contains(&path[..end]))
}

/// What is in a directory.
///
/// # Errors
/// Where there is too much, or a directory cannot be read.
pub fn look(root: impl AsFd) -> io::Result<Manifest> {
    let root = openat(root, c".", DIRECTORY, Mode::empty())?;
    let stat = fstat(&root)?;
    Ok(walk(&root, &stat)?.found.into_iter().map(|(path, found)| (path, found.stamp)).collect())
}

/// What a directory would take in an archive.
#[derive(Debug, Default)]
pub struct Weight {
    /// Bytes of the archive, about.
    pub bytes: u64,
    /// The largest files: bytes without holes, and the path for a person.
    pub largest: Vec<(u64, String)>,
}

/// Weighs what [`pack`] would put into an archive, without reading any file; `awaited` fails when nobody wants to know any more.
///
/// # Errors
/// As for [`pack`].
pub fn weigh(root: impl AsFd, mut awaited: impl FnMut() -> io::Result<()>) -> io::Result<Weight> {
    let root = openat(root, c".", DIRECTORY, Mode::empty())?;
    let stat = fstat(&root)?;
    let mut weight = Weight::default();
    let mut seen = BTreeSet::new();
    for (path, found) in walk(&root, &stat)?.found {
        awaited()?;
        weight.bytes += HEADERS;
        if found.kind != FileType::RegularFile || (found.links > 1 && !seen.insert(found.stamp.inode)) {
            continue;
        }
        let mut bytes = found.size;
        if found.blocks < found.size
            && let Ok(file) = open_file(&root, &path)
            && kind_of(&fstat(&file)?) == FileType::RegularFile
        {
            bytes = holes::extents(&file, found.size)?.iter().map(|(_, length)| length).sum();
        }
        weight.bytes = weight.bytes.saturating_add(bytes);
        let at = weight.largest.partition_point(|(more, _)| *more >= bytes);
        if at < MAX_TOLD {
            weight.largest.insert(at, (bytes, shown(&path)));
            weight.largest.truncate(MAX_TOLD);
        }
    }
    Ok(weight)
}

/// A file that was found.
struct Found {
    stamp: Stamp,
    kind: FileType,
    size: u64,
    /// Bytes of the blocks that it has.
    blocks: u64,
    links: u64,
    owner: (u32, u32),
    mtime: (i64, u32),
}

struct Walk {
    found: BTreeMap<Vec<u8>, Found>,
    left_out: LeftOut,
    /// What is there and was not looked at, so that nothing is known of what is below or under it.
    hidden: BTreeSet<Vec<u8>>,
}

impl Walk {
    fn hide(&mut self, what: &'static str, path: Vec<u8>) {
        self.left_out.add(what, &path);
        self.hidden.insert(path);
    }
}

#[expect(clippy::unnecessary_cast, reason = "the types differ between processors")]
fn found(stat: &Stat) -> Found {
    Found {
        stamp: Stamp::of(stat),
        kind: kind_of(stat),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        links: stat.st_nlink as u64,
        owner: (stat.st_uid, stat.st_gid),
        mtime: (stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    }
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Looks at all below a directory, through no link.
fn walk(root: &OwnedFd, of_root: &Stat) -> io::Result<Walk> {
    let mut walk = Walk {
        found: BTreeMap::from([(Vec::new(), found(of_root))]),
        left_out: LeftOut::default(),
        hidden: BTreeSet::new(),
    };
    let mut open: Vec<(OwnedFd, Vec<u8>, Vec<std::ffi::CString>)> = Vec::new();
    let mut next = Some((openat(root, c".", DIRECTORY, Mode::empty())?, Vec::new()));
    loop {
        if let Some((dir, path)) = next.take() {
            let mut inner = Vec::new();
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let below = beneath(&path, name.to_bytes());
                let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(errno.into()),
                };
                if below.len() > MAX_PATH {
                    walk.left_out.add("paths that are too long", &below[..200]);
                    continue;
                }
                match kind_of(&stat) {
                    FileType::Directory if stat.st_dev != of_root.st_dev => {
                        walk.hide("directories on which something else is mounted", below);
                        continue;
                    }
                    FileType::Directory => inner.push(name.to_owned()),
                    FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
                    _ => {
                        walk.hide("sockets and device nodes", below);
                        continue;
                    }
                }
                walk.found.insert(below, found(&stat));
                if walk.found.len() > MAX_ENTRIES {
                    return Err(io::Error::other(format!("there are more than {MAX_ENTRIES} files in it")));
                }
            }
            if !inner.is_empty() {
                if open.len() >= MAX_DEPTH {
                    return Err(io::Error::other(format!(
                        "directories are in one another to a depth of more than {MAX_DEPTH}"
                    )));
                }
                open.push((dir, path, inner));
            }
        }
        let Some((dir, path, names)) = open.last_mut() else { return Ok(walk) };
        let Some(name) = names.pop() else {
            open.pop();
            continue;
        };
        let below = beneath(path, name.to_bytes());
        next = match openat(&*dir, &*name, DIRECTORY, Mode::empty()) {
            Ok(dir) => Some((dir, below)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(Errno::ACCESS) => {
                walk.hide("directories that may not be read", below);
                None
            }
            Err(errno) => return Err(errno.into()),
        };
    }
}

/// Puts one file into the archive; `false` if it was left out.
fn put<W: Write>(
    archive: &mut Writer<W>,
    name: &str,
    (root, path): (&OwnedFd, &[u8]),
    found: &Found,
    linked: &mut HashMap<u64, Vec<u8>>,
    Packed { left_out, bytes, .. }: &mut Packed,
) -> io::Result<bool> {
    let Found { stamp, kind, size, links, owner, mtime, blocks: _ } = found;
    let whole = join(name, path);
    let mut entry =
        Entry { path: whole, kind: Kind::Fifo, mode: stamp.mode & 0o7777, owner: *owner, mtime: *mtime, size: 0 };
    match kind {
        FileType::Directory => entry.kind = Kind::Directory,
        FileType::Symlink => match with_parent(root, path, |dir, name| readlinkat(dir, name, Vec::new())) {
            Ok(text) => entry.kind = Kind::Symlink(text.into_bytes()),
            Err(errno) => return gone(errno, path, left_out),
        },
        FileType::RegularFile => {
            if *links > 1
                && let Some(first) = linked.get(&stamp.inode)
            {
                entry.kind = Kind::Hardlink(first.clone());
                archive.entry(&entry)?;
                return Ok(true);
            }
            let file = match open_file(root, path) {
                Ok(file) => file,
                Err(errno) => return gone(errno, path, left_out),
            };
            if kind_of(&fstat(&file)?) != FileType::RegularFile {
                left_out.add("files that were replaced meanwhile", path);
                return Ok(false);
            }
            let extents = holes::extents(&file, *size)?;
            let is_whole = *size == 0 || extents == [(0, *size)];
            let data: u64 = extents.iter().map(|(_, length)| length).sum();
            *bytes += data;
            (entry.kind, entry.size) = match is_whole {
                true => (Kind::File, *size),
                false => (Kind::Sparse(*size), data + (PIECE_HEADER * extents.len()) as u64),
            };
            archive.entry(&entry)?;
            if copy(&file, *size, (&extents, is_whole), archive)? {
                left_out.add("files that changed while they were read, so that they may be cut or mixed", path);
            }
            if *links > 1 {
                linked.insert(stamp.inode, entry.path);
            }
            return Ok(true);
        }
        _ => {}
    }
    archive.entry(&entry)?;
    Ok(true)
}

/// What cannot be read is left out, and what is gone was never there.
fn gone(errno: Errno, path: &[u8], left_out: &mut LeftOut) -> io::Result<bool> {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL => {
            left_out.add("files that went away meanwhile", path);
        }
        Errno::ACCESS | Errno::PERM => left_out.add("files that may not be read", path),
        errno => return Err(io::Error::other(format!("read {}: {}", shown(path), io::Error::from(errno)))),
    }
    Ok(false)
}

/// Copies what is in a file of this size, with a header before each piece of one that has holes; tells whether its size was another by the end.
fn copy<W: Write>(
    file: &OwnedFd,
    size: u64,
    (extents, is_whole): (&[Extent], bool),
    archive: &mut Writer<W>,
) -> io::Result<bool> {
    let mut buffer = vec![0; PIECE];
    let mut is_short = false;
    for &(mut offset, mut left) in extents {
        if !is_whole {
            archive.data(&offset.to_le_bytes())?;
            archive.data(&left.to_le_bytes())?;
        }
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = match rustix::io::pread(file, &mut buffer[..wanted], offset) {
                Ok(0) => {
                    is_short = true;
                    buffer.fill(0);
                    wanted
                }
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            archive.data(&buffer[..read])?;
            offset += read as u64;
            left -= read as u64;
        }
    }
    Ok(is_short || u64::try_from(fstat(file)?.st_size).ok() != Some(size))
}

/// Does something with a file, its directory being found through no link.
pub(crate) fn with_parent<T>(
    root: &OwnedFd,
    path: &[u8],
    work: impl FnOnce(&OwnedFd, &CStr) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let c = |name: &[u8]| std::ffi::CString::new(name).map_err(|_| Errno::INVAL);
    let (parents, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    let mut dir: Option<OwnedFd> = None;
    for parent in parents.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        dir = Some(openat(dir.as_ref().unwrap_or(root), &*c(parent)?, DIRECTORY, Mode::empty())?);
    }
    let name = if name.is_empty() { c(b".")? } else { c(name)? };
    work(dir.as_ref().unwrap_or(root), &name)
}

fn join(name: &str, path: &[u8]) -> Vec<u8> {
    beneath(name.as_bytes(), path)
}

fn beneath(path: &[u8], name: &[u8]) -> Vec<u8> {
    match (path.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => path.to_vec(),
        _ => [path, name].join(&b'/'),
    }
}
