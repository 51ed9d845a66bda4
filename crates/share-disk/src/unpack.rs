//! From an archive to files: what the guest gets, or what it brings back.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, Uid, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, mknodat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::pack::{DIRECTORY, MAX_ENTRIES, MAX_NAMES, MAX_PATH, Manifest, Stamp, shown};
use crate::tar::{Entry, Kind, Reader, TarError};

const PIECE: usize = 256 * 1024;
/// What file systems give out at least: an entry counts for as much, and so does a name that is made on the way to one.
const BLOCK: u64 = 4096;
/// The name under which a file is written until it is whole.
const PARTIAL: &CStr = c".belljar-partial";

/// How files are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// With owners, all modes and times: of the host, in the guest.
    Whole,
    /// As plain files of whoever runs this: of the guest, on the host.
    Plain,
}

/// A directory that is unpacked to.
#[derive(Debug)]
pub struct Target<'a> {
    /// How its paths begin.
    pub name: &'a str,
    /// The directory.
    pub root: &'a OwnedFd,
    /// What is known to be in it; what is otherwise there now was changed on this side too. Kept up to date.
    pub known: Option<&'a mut Manifest>,
    /// Bytes that may still be written to it.
    pub room: u64,
    /// Where what cannot be put into it goes instead, if it is kept.
    pub aside: Option<&'a OwnedFd>,
    /// Paths that were changed on both sides, at most [`Target::MAX_CONFLICTS`], and how many there are.
    pub conflicts: (Vec<String>, u64),
    /// Of how many of them something else is there now.
    pub overridden: u64,
}

impl<'a> Target<'a> {
    /// Most paths that are told.
    pub const MAX_CONFLICTS: usize = 20;

    /// A directory in which nothing is yet.
    #[must_use]
    pub fn fresh(name: &'a str, root: &'a OwnedFd) -> Self {
        Self { name, root, known: None, room: u64::MAX, aside: None, conflicts: (Vec::new(), 0), overridden: 0 }
    }
}

/// Why an archive was not unpacked, or not to its end.
#[derive(Debug)]
pub enum UnpackError {
    /// It is none.
    Archive(TarError),
    /// It leads elsewhere than it may.
    Path(String),
    /// A file could not be made.
    Io {
        /// What was tried.
        attempt: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is more in it than may be.
    TooMuch {
        /// The target's name.
        target: String,
    },
    /// There are more than [`MAX_ENTRIES`] entries.
    TooMany,
}

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Archive(TarError::Io(error)) => write!(f, "the archive cannot be read: {error}"),
            Self::Archive(TarError::Malformed(what)) => write!(f, "the archive is damaged: {what}"),
            Self::Path(path) => write!(f, "the archive has a path that leads out of its directory: {path}"),
            Self::Io { attempt, source } => write!(f, "{attempt}: {source}"),
            Self::TooMuch { target } => write!(f, "there is more in {target} than may be"),
            Self::TooMany => write!(f, "there are more than {MAX_ENTRIES} files in the archive"),
        }
    }
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        Self::Archive(error)
    }
}

/// Makes files of an archive.
///
/// # Errors
/// See [`UnpackError`]; what came before it is there.
pub fn unpack<R: Read>(input: R, targets: &mut [Target<'_>], rules: Rules) -> Result<(), UnpackError> {
    let mut reader = Reader::new(input);
    // A directory gets its mode and its time when all is in it.
    let mut directories: BTreeMap<(usize, Vec<u8>), Entry> = BTreeMap::new();
    let mut entries = 0;
    while let Some(mut entry) = reader.entry()? {
        entries += 1;
        if entries > 2 * MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        let (at, path) = place(&entry.path, targets)?;
        let target = &mut targets[at];
        spend(target, BLOCK)?;
        if apply(&mut reader, target, &path, &entry, rules, targets_names_link(&entry, target.name)?)?
            && entry.kind == Kind::Directory
        {
            entry.path = Vec::new();
            directories.insert((at, path), entry);
        }
    }
    for ((at, path), entry) in directories.into_iter().rev() {
        let target = &mut targets[at];
        finish_directory(target, &path, &entry, rules)
            .map_err(|errno| failed("set the mode of", target.name, &path, errno))?;
    }
    Ok(())
}

fn failed(what: &str, name: &str, path: &[u8], errno: Errno) -> UnpackError {
    let path = if path.is_empty() { String::new() } else { format!("/{}", shown(path)) };
    UnpackError::Io { attempt: format!("{what} {name}{path}"), source: errno.into() }
}

/// Which target a path is in, and where.
fn place(path: &[u8], targets: &[Target<'_>]) -> Result<(usize, Vec<u8>), UnpackError> {
    let bad = || UnpackError::Path(shown(path));
    let (name, rest) = match path.iter().position(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &path[..0]),
    };
    let at = targets.iter().position(|target| target.name.as_bytes() == name).ok_or_else(bad)?;
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&0);
    if !(rest.is_empty() && path.len() == name.len() || rest.split(|&byte| byte == b'/').all(is_name)) {
        return Err(bad());
    }
    if rest.len() > MAX_PATH || rest.split(|&byte| byte == b'/').count() > MAX_NAMES {
        return Err(bad());
    }
    Ok((at, rest.to_vec()))
}

/// What a hard link is to, in the same target.
fn targets_names_link(entry: &Entry, name: &str) -> Result<Vec<u8>, UnpackError> {
    let Kind::Hardlink(to) = &entry.kind else { return Ok(Vec::new()) };
    let bad = || UnpackError::Path(shown(to));
    let rest = to.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"/")).ok_or_else(bad)?;
    let is_name = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
    if rest.split(|&byte| byte == b'/').all(is_name) { Ok(rest.to_vec()) } else { Err(bad()) }
}

fn spend(target: &mut Target<'_>, bytes: u64) -> Result<(), UnpackError> {
    target.room =
        target.room.checked_sub(bytes).ok_or_else(|| UnpackError::TooMuch { target: target.name.to_owned() })?;
    Ok(())
}

/// A directory that is reached through no link, with the name in it.
struct Spot {
    dir: OwnedFd,
    name: CString,
}

impl Spot {
    fn find(root: &OwnedFd, path: &[u8], make: bool) -> Result<Self, Errno> {
        let c = |name: &[u8]| CString::new(name).map_err(|_| Errno::INVAL);
        let mut dir = openat(root, c".", DIRECTORY, Mode::empty())?;
        let mut names = path.split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            let name = if name.is_empty() { c(b".")? } else { c(name)? };
            if names.peek().is_none() {
                return Ok(Self { dir, name });
            }
            if make {
                match mkdirat(&dir, &*name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
            }
            dir = openat(&dir, &*name, DIRECTORY, Mode::empty())?;
        }
        Err(Errno::INVAL)
    }

    fn stat(&self) -> Result<Option<Stat>, Errno> {
        match statat(&self.dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Does what one entry says; `false` where it was a conflict.
fn apply<R: Read>(
    reader: &mut Reader<R>,
    target: &mut Target<'_>,
    path: &[u8],
    entry: &Entry,
    rules: Rules,
    link: Vec<u8>,
) -> Result<bool, UnpackError> {
    let spot = match Spot::find(target.root, path, false) {
        Ok(spot) => spot,
        // Its directory was taken away, or replaced, on this side.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if target.known.is_some() => {
            if entry.kind != Kind::Gone {
                conflict(reader, target, path, entry, rules)?;
            }
            return Ok(false);
        }
        Err(errno) => return Err(failed("find", target.name, path, errno)),
    };
    let there = spot.stat().map_err(|errno| failed("look at", target.name, path, errno))?;
    let is_directory = there.as_ref().is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if is_directory && entry.kind == Kind::Directory {
        // One that the guest does not know of, or that was changed here, stays as it is here.
        let now = there.as_ref().map(Stamp::of);
        return Ok(target.known.as_ref().is_none_or(|known| path.is_empty() || known.get(path) == now.as_ref()));
    }
    if let Some(known) = &target.known {
        let before = known.get(path);
        let now = there.as_ref().map(Stamp::of);
        let as_it_was = match (before, &now) {
            (None, None) => true,
            (Some(before), Some(now)) => before == now,
            // What is gone on both sides is gone.
            (Some(_), None) => entry.kind == Kind::Gone,
            (None, Some(_)) => false,
        };
        if !as_it_was {
            target.overridden += u64::from(entry.kind != Kind::Gone && there.is_some());
            conflict(reader, target, path, entry, rules)?;
            return Ok(false);
        }
    } else if there.is_some() {
        let errno = Errno::EXIST;
        return Err(failed("make", target.name, path, errno));
    }
    if entry.kind == Kind::Gone {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(&spot.dir, &*spot.name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if target.known.is_some() => {
                target.overridden += u64::from(entry.kind != Kind::Gone && there.is_some());
                conflict(reader, target, path, entry, rules)?;
                return Ok(false);
            }
            Err(errno) => return Err(failed("remove", target.name, path, errno)),
        }
        if let Some(known) = &mut target.known {
            known.remove(path);
        }
        other_names(target, there.as_ref()).map_err(|errno| failed("look at", target.name, path, errno))?;
        return Ok(true);
    }
    if is_directory {
        target.overridden += u64::from(entry.kind != Kind::Gone && there.is_some());
        conflict(reader, target, path, entry, rules)?;
        return Ok(false);
    }
    make(reader, target, &spot, path, entry, rules, (&link, there.is_some()))?;
    let noted = note(target, path, &spot).and_then(|()| other_names(target, there.as_ref()));
    noted.map_err(|errno| failed("look at", target.name, path, errno))?;
    Ok(true)
}

/// A file that lost one of its names, or got another, is changed by that under all others.
fn other_names(target: &mut Target<'_>, file: Option<&Stat>) -> Result<(), Errno> {
    let Some(file) = file.filter(|stat| stat.st_nlink > 1) else { return Ok(()) };
    if FileType::from_raw_mode(file.st_mode) == FileType::Directory {
        return Ok(());
    }
    let inode = Stamp::of(file).inode();
    for (path, stamp) in target.known.iter_mut().flat_map(|known| known.iter_mut()) {
        if stamp.inode() == inode
            && let Ok(spot) = Spot::find(target.root, path, false)
            && let Some(now) = spot.stat()?.as_ref().map(Stamp::of)
            && now.inode() == inode
        {
            *stamp = now;
        }
    }
    Ok(())
}

/// Remembers what is there now.
fn note(target: &mut Target<'_>, path: &[u8], spot: &Spot) -> Result<(), Errno> {
    if let Some(known) = &mut target.known
        && let Some(stat) = spot.stat()?
    {
        known.insert(path.to_vec(), Stamp::of(&stat));
    }
    Ok(())
}

/// What was changed on both sides stays as it is here, and the other goes beside it.
fn conflict<R: Read>(
    reader: &mut Reader<R>,
    target: &mut Target<'_>,
    path: &[u8],
    entry: &Entry,
    rules: Rules,
) -> Result<(), UnpackError> {
    let (paths, count) = &mut target.conflicts;
    *count += 1;
    if paths.len() < Target::MAX_CONFLICTS {
        paths.push(shown(path));
    }
    let Some(aside) = target.aside.filter(|_| entry.kind.is_file() && !path.is_empty()) else { return Ok(()) };
    let names = path.split(|&byte| byte == b'/').count() as u64;
    spend(target, names.saturating_mul(BLOCK))?;
    let spot = Spot::find(aside, path, true).map_err(|errno| failed("keep aside", target.name, path, errno))?;
    make(reader, target, &spot, path, entry, rules, (b"", true))
}

fn bits(entry: &Entry, rules: Rules) -> Mode {
    Mode::from_raw_mode(match (rules, &entry.kind) {
        (Rules::Whole, _) => entry.mode & 0o7777,
        // Whoever it belongs to has to look into it, to measure and to remove it.
        (Rules::Plain, Kind::Directory) => entry.mode & 0o1777 | 0o700,
        (Rules::Plain, _) => entry.mode & 0o777,
    })
}

fn make<R: Read>(
    reader: &mut Reader<R>,
    target: &mut Target<'_>,
    spot: &Spot,
    path: &[u8],
    entry: &Entry,
    rules: Rules,
    (link, replaces): (&[u8], bool),
) -> Result<(), UnpackError> {
    let name = target.name;
    let fail = |errno| failed("make", name, path, errno);
    let (dir, at) = (&spot.dir, &*spot.name);
    if replaces && !entry.kind.is_file() {
        match unlinkat(dir, at, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(fail(errno)),
        }
    }
    match &entry.kind {
        Kind::File | Kind::Sparse(_) if replaces => {
            match unlinkat(dir, PARTIAL, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(fail(errno)),
            }
            write(reader, target, dir, PARTIAL, path, entry, rules)?;
            renameat(dir, PARTIAL, dir, at).map_err(fail)?;
        }
        Kind::File | Kind::Sparse(_) => write(reader, target, dir, at, path, entry, rules)?,
        Kind::Directory => {
            // Until all is in it.
            mkdirat(dir, at, Mode::RWXU).map_err(fail)?;
        }
        Kind::Symlink(text) => {
            symlinkat(text.as_slice(), dir, at).map_err(fail)?;
            finish_special(spot, entry, rules).map_err(fail)?;
        }
        Kind::Hardlink(_) => {
            let to = Spot::find(target.root, link, false).map_err(fail)?;
            let stat = to.stat().map_err(fail)?.ok_or(Errno::NOENT).map_err(fail)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(UnpackError::Path(shown(link)));
            }
            linkat(&to.dir, &*to.name, dir, at, AtFlags::empty()).map_err(fail)?;
            other_names(target, to.stat().map_err(fail)?.as_ref()).map_err(fail)?;
        }
        Kind::Fifo => {
            mknodat(dir, at, FileType::Fifo, bits(entry, rules), 0).map_err(fail)?;
            finish_special(spot, entry, rules).map_err(fail)?;
        }
        Kind::Gone => {}
    }
    Ok(())
}

/// Writes a file of its own.
fn write<R: Read>(
    reader: &mut Reader<R>,
    target: &mut Target<'_>,
    dir: &OwnedFd,
    at: &CStr,
    path: &[u8],
    entry: &Entry,
    rules: Rules,
) -> Result<(), UnpackError> {
    let name = target.name;
    let fail = |errno| failed("write", name, path, errno);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, at, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
    let mut buffer = vec![0; PIECE];
    let size = match entry.kind {
        Kind::Sparse(size) => {
            let mut end = 0;
            while let Some((offset, length)) = reader.piece()? {
                let after = offset.checked_add(length).filter(|after| offset >= end && *after <= size);
                end = after.ok_or(TarError::Malformed("a piece of a file is where it cannot be"))?;
                write_piece(reader, target, &file, (offset, length), &mut buffer, &fail)?;
            }
            size
        }
        _ => {
            write_piece(reader, target, &file, (0, entry.size), &mut buffer, &fail)?;
            entry.size
        }
    };
    rustix::fs::ftruncate(&file, size).map_err(fail)?;
    if rules == Rules::Whole {
        let (uid, gid) = entry.owner;
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(fail)?;
    }
    fchmod(&file, bits(entry, rules)).map_err(fail)?;
    futimens(&file, &times(entry)).map_err(fail)
}

/// Writes so many of an entry's data from an offset on; what is nothing but zeros becomes a hole.
fn write_piece<R: Read>(
    reader: &mut Reader<R>,
    target: &mut Target<'_>,
    file: &OwnedFd,
    (mut offset, mut left): (u64, u64),
    buffer: &mut [u8],
    fail: &impl Fn(Errno) -> UnpackError,
) -> Result<(), UnpackError> {
    while left > 0 {
        // Whole pieces, so that holes are found.
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let mut filled = 0;
        while filled < wanted {
            match reader.data(&mut buffer[filled..wanted])? {
                0 => return Err(TarError::Malformed("a piece of a file is cut").into()),
                read => filled += read,
            }
        }
        if buffer[..filled].iter().any(|&byte| byte != 0) {
            spend(target, (filled as u64).next_multiple_of(BLOCK))?;
            let mut done = 0;
            while done < filled {
                match rustix::io::pwrite(file, &buffer[done..filled], offset + done as u64) {
                    Ok(written) => done += written,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(fail(errno)),
                }
            }
        }
        offset += filled as u64;
        left -= filled as u64;
    }
    Ok(())
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.min(999_999_999).into() },
    }
}

/// Owner and time of what is neither file nor directory.
fn finish_special(spot: &Spot, entry: &Entry, rules: Rules) -> Result<(), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if rules == Rules::Whole {
        let (uid, gid) = entry.owner;
        chownat(&spot.dir, &*spot.name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
    }
    utimensat(&spot.dir, &*spot.name, &times(entry), flags)
}

fn finish_directory(target: &mut Target<'_>, path: &[u8], entry: &Entry, rules: Rules) -> Result<(), Errno> {
    // The top of what is brought back is the host's own.
    if rules == Rules::Plain && path.is_empty() {
        return Ok(());
    }
    let spot = match Spot::find(target.root, path, false) {
        Ok(spot) => spot,
        // It went away again on this side.
        Err(Errno::NOENT) if target.known.is_some() => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let dir = match openat(&spot.dir, &*spot.name, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) if target.known.is_some() => return Ok(()),
        Err(errno) => return Err(errno),
    };
    if rules == Rules::Whole {
        let (uid, gid) = entry.owner;
        fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // The bit by which files in it get its group is the host's to set.
    let kept = if rules == Rules::Plain { fstat(&dir)?.st_mode & 0o2000 } else { 0 };
    fchmod(&dir, bits(entry, rules) | Mode::from_raw_mode(kept))?;
    if rules == Rules::Whole {
        futimens(&dir, &times(entry))?;
    }
    if let Some(known) = &mut target.known {
        known.insert(path.to_vec(), Stamp::of(&fstat(&dir)?));
    }
    Ok(())
}

/// Opens a directory to be packed or unpacked to.
///
/// # Errors
/// Where it cannot be.
pub fn open_root(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}
