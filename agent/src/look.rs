//! Looks which files there are, and reads them: by system calls alone, for a test may have replaced every program of the guest.
//!
//! Symbolic links are followed here, in the guest, where they mean what the test meant, as far as they stay below the root of the
//! look; the host follows none of them. Nothing is left out in silence: what cannot be looked into, or is no regular file where one is wanted, is told as that, and so is a limit.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_proto::files::{FileQuery, FileRecord, Found, FoundKind, Part, Stamp};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, StatFs, fstat, fstatfs, openat, openat2, statat,
};
use rustix::io::Errno;

/// Most names that are looked at.
const MAX_NAMES: u64 = 1_000_000;
/// Most files that are told of.
const MAX_FOUND: u64 = 100_000;
/// Directories below the root; a chain of links ends here, too.
const MAX_DEPTH: usize = 64;
/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes in one record.
const CHUNK: usize = 32 * 1024;

/// File systems that the kernel makes up; nobody keeps results there, and some of their files have no end.
/// proc, sysfs, cgroup, cgroup2, debugfs, tracefs, devpts, securityfs, bpf, selinuxfs, binfmt_misc
const MADE_UP: &[u64] = &[
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x1cd1,
    0x7363_6673,
    0xcafe_4a11,
    0xf97c_ff8c,
    0x4249_4e4d,
];

/// Places in the wanted paths up to which a directory's path has come: which of them, and at which part.
type Places = Vec<(usize, usize)>;

/// Answers.
///
/// # Errors
/// If the answer cannot be written.
pub(crate) fn answer(query: &FileQuery, clock_set: bool, out: &mut impl Write) -> io::Result<()> {
    let cut = match query {
        FileQuery::Look { root, wanted } => {
            let opened = open_dir(CWD, root.as_slice()).and_then(|dir| Ok((fstat(&dir)?, dir)));
            match opened {
                Ok((stat, dir)) => {
                    let mut look = Look {
                        wanted,
                        out,
                        top: where_is(&dir),
                        names: 0,
                        found: 0,
                        visited: HashSet::new(),
                        began: Instant::now(),
                        cut: None,
                    };
                    look.root(&stat, dir)?;
                    look.cut
                }
                Err(errno) => Some(format!("{} cannot be looked into: {}", text(root), words(errno))),
            }
        }
        FileQuery::Read { root, paths, most, most_in_all } => {
            read_all(root, paths, *most, *most_in_all, out)?;
            None
        }
    };
    out.write_all(&FileRecord::End { cut, clock_set }.encode())
}

struct Look<'a, W> {
    wanted: &'a [Vec<Part>],
    out: &'a mut W,
    /// Where the root is.
    top: Option<Vec<u8>>,
    names: u64,
    found: u64,
    /// Directories with what was looked for in them: links can lead there more than once.
    visited: HashSet<((u64, u64), Places)>,
    began: Instant,
    /// Why the look was given up.
    cut: Option<String>,
}

/// A directory to be looked into.
struct Todo {
    path: Vec<u8>,
    dir: OwnedFd,
    device: u64,
    places: Places,
    depth: usize,
}

impl<W: Write> Look<'_, W> {
    fn root(&mut self, stat: &Stat, dir: OwnedFd) -> io::Result<()> {
        let places = self.closed((0..self.wanted.len()).map(|n| (n, 0)).collect());
        // What is mounted over it would hide what was written before.
        self.tell(Vec::new(), FoundKind::Mount, identity(stat), None)?;
        self.visited.insert((inode(stat), places.clone()));
        let mut todo = vec![Todo { path: Vec::new(), dir, device: stat.st_dev, places, depth: 0 }];
        while let Some(next) = todo.pop() {
            self.directory(next, &mut todo)?;
            if self.cut.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Adds the places that are reached without another name.
    fn closed(&self, mut places: Places) -> Places {
        let mut at = 0;
        while let Some(&(n, part)) = places.get(at) {
            let next = (n, part + 1);
            if matches!(self.wanted[n].get(part), Some(Part::Any))
                && next.1 < self.wanted[n].len()
                && !places.contains(&next)
            {
                places.push(next);
            }
            at += 1;
        }
        places.sort_unstable();
        places
    }

    /// Whether a file of this name is wanted, and what is looked for in a directory of this name.
    fn step(&self, places: &Places, name: &[u8]) -> (bool, Places) {
        let mut wanted = false;
        let mut inner = Places::new();
        for &(n, part) in places {
            let is_last = part + 1 == self.wanted[n].len();
            match &self.wanted[n][part] {
                Part::Any => {
                    wanted |= is_last;
                    inner.push((n, part));
                }
                Part::Name(pattern) if matches(pattern, name) => {
                    if is_last {
                        wanted = true;
                    } else {
                        inner.push((n, part + 1));
                    }
                }
                Part::Name(_) => {}
            }
        }
        inner.dedup();
        (wanted, self.closed(inner))
    }

    fn directory(&mut self, at: Todo, todo: &mut Vec<Todo>) -> io::Result<()> {
        let Todo { path, dir, device, places, depth } = at;
        let mut entries = match Dir::read_from(&dir) {
            Ok(entries) => entries,
            Err(errno) => return self.closed_directory(path, &dir, errno),
        };
        let mut failed = None;
        while let Some(entry) = entries.read() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.names += 1;
            if self.names > MAX_NAMES {
                self.cut = Some(format!("there are more than {MAX_NAMES} names"));
                return Ok(());
            }
            if self.names.is_multiple_of(256) && self.began.elapsed() > LIMIT {
                self.cut = Some(format!("it was not done after {} s and {} names", LIMIT.as_secs(), self.names));
                return Ok(());
            }
            let (wanted, inner) = self.step(&places, name.to_bytes());
            if !wanted && inner.is_empty() {
                continue;
            }
            let mut inside = path.clone();
            if !inside.is_empty() {
                inside.push(b'/');
            }
            inside.extend_from_slice(name.to_bytes());
            // Without a look at each: most names are neither.
            let kind = entry.file_type();
            if kind == FileType::RegularFile && !wanted {
                continue;
            }
            let of = Entry { dir: &dir, name, path: inside, device, depth, wanted };
            if let Some(next) = self.entry(of, inner)? {
                todo.push(next);
            }
            if self.cut.is_some() {
                return Ok(());
            }
        }
        match failed {
            Some(errno) => self.closed_directory(path, &dir, errno),
            None => Ok(()),
        }
    }

    fn closed_directory(&mut self, path: Vec<u8>, dir: &OwnedFd, errno: Errno) -> io::Result<()> {
        let stamp = fstat(dir).map(|stat| stamp(&stat)).unwrap_or_default();
        self.tell(path, FoundKind::Closed(words(errno)), stamp, None)
    }

    /// Tells of what matters, and gives the directory that is to be looked into.
    fn entry(&mut self, of: Entry<'_>, inner: Places) -> io::Result<Option<Todo>> {
        let Entry { dir, name, path, device, depth, wanted } = of;
        let own = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It went away meanwhile.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => {
                let kind = FoundKind::Other(format!("something that cannot be looked at: {}", words(errno)));
                self.tell(path, kind, Stamp::default(), None)?;
                return Ok(None);
            }
        };
        let is_link = FileType::from_raw_mode(own.st_mode) == FileType::Symlink;
        let seen = if is_link {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let followed = openat(dir, name, flags, Mode::empty()).and_then(|target| Ok((fstat(&target)?, target)));
            match followed {
                Ok((stat, target)) if self.top.as_deref().is_some_and(|top| is_below(&target, top)) => stat,
                Ok((stat, _)) => {
                    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                    let kind = if is_dir && !inner.is_empty() {
                        FoundKind::Closed("a symbolic link that leads elsewhere".to_owned())
                    } else {
                        FoundKind::Other("a symbolic link that leads elsewhere".to_owned())
                    };
                    if !is_dir && !wanted {
                        return Ok(None);
                    }
                    // With what is there, so that a change is noticed.
                    self.tell(path, kind, stamp(&own), Some(stamp(&stat)))?;
                    return Ok(None);
                }
                Err(errno) => {
                    if wanted {
                        let kind = FoundKind::Other(format!("a symbolic link that leads nowhere: {}", words(errno)));
                        self.tell(path, kind, stamp(&own), None)?;
                    }
                    return Ok(None);
                }
            }
        } else {
            own
        };
        let behind = is_link.then(|| stamp(&seen));
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::RegularFile if wanted => self.tell(path, FoundKind::File, stamp(&own), behind)?,
            FileType::Directory if !inner.is_empty() => {
                let identity = (inode(&seen), inner.clone());
                if !self.visited.insert(identity) {
                    return Ok(None);
                }
                let opened = if depth + 1 < MAX_DEPTH { open_dir(dir, name) } else { Err(Errno::NAMETOOLONG) };
                let opened = match opened {
                    Ok(opened) => opened,
                    Err(Errno::NOENT) => return Ok(None),
                    Err(errno) => {
                        self.tell(path, FoundKind::Closed(words(errno)), stamp(&own), behind)?;
                        return Ok(None);
                    }
                };
                if seen.st_dev != device {
                    self.tell(path.clone(), FoundKind::Mount, identity_of(&own, is_link), None)?;
                    if fstatfs(&opened).is_ok_and(|fs| MADE_UP.contains(&kind_of(&fs))) {
                        return Ok(None);
                    }
                }
                return Ok(Some(Todo { path, dir: opened, device: seen.st_dev, places: inner, depth: depth + 1 }));
            }
            // A directory whose name is one of a file is nobody's result.
            FileType::RegularFile | FileType::Directory => {}
            other if wanted => {
                let what = match other {
                    FileType::Fifo => "a FIFO",
                    FileType::Socket => "a socket",
                    FileType::CharacterDevice | FileType::BlockDevice => "a device",
                    _ => "no regular file",
                };
                self.tell(path, FoundKind::Other(what.to_owned()), stamp(&own), behind)?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn tell(&mut self, path: Vec<u8>, kind: FoundKind, stamp: Stamp, target: Option<Stamp>) -> io::Result<()> {
        self.found += 1;
        if self.found > MAX_FOUND {
            self.cut = Some(format!("there are more than {MAX_FOUND} files of such names"));
            return Ok(());
        }
        self.out.write_all(&FileRecord::Found(Found { path, kind, stamp, target }).encode())
    }
}

/// A name in a directory.
struct Entry<'a> {
    dir: &'a OwnedFd,
    name: &'a CStr,
    path: Vec<u8>,
    device: u64,
    depth: usize,
    wanted: bool,
}

/// The path of what is open.
fn where_is(fd: &OwnedFd) -> Option<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).ok().map(std::ffi::CString::into_bytes)
}

fn is_below(fd: &OwnedFd, top: &[u8]) -> bool {
    let rest = where_is(fd).and_then(|path| path.strip_prefix(top).map(<[u8]>::to_vec));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || top == b"/")
}

fn open_dir(at: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn read_all(root: &[u8], paths: &[Vec<u8>], most: u64, most_in_all: u64, out: &mut impl Write) -> io::Result<()> {
    let top = open_dir(CWD, root).map_err(|errno| format!("{}: {}", text(root), words(errno)));
    let mut left = most_in_all;
    for path in paths {
        let read = match &top {
            Ok(top) => read(top, path, most, &mut left, out)?,
            Err(why) => Err(why.clone()),
        };
        out.write_all(&FileRecord::Read(read).encode())?;
    }
    Ok(())
}

fn read(top: &OwnedFd, path: &[u8], most: u64, left: &mut u64, out: &mut impl Write) -> io::Result<Result<(), String>> {
    let failed = |errno| Ok(Err(words(errno)));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = match openat2(top, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Through a link, or a kernel from before 5.6.
        Err(Errno::LOOP | Errno::NOSYS) => {
            let target = openat(top, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            match (target, where_is(top)) {
                (Ok(target), Some(top)) if !is_below(&target, &top) => {
                    return Ok(Err("a symbolic link that leads elsewhere".into()));
                }
                (Ok(_), Some(_)) => openat(top, path, flags, Mode::empty()),
                (Ok(_), None) => return Ok(Err("without /proc nobody knows where a symbolic link leads".into())),
                (Err(errno), _) => Err(errno),
            }
        }
        opened => opened,
    };
    let file = match opened {
        Ok(file) => file,
        Err(errno) => return failed(errno),
    };
    match fstat(&file) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        Ok(_) => return Ok(Err("no regular file".into())),
        Err(errno) => return failed(errno),
    }
    let mut chunk = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let count = match rustix::io::read(&file, &mut chunk) {
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return failed(errno),
        };
        if count == 0 {
            return Ok(Ok(()));
        }
        size += count as u64;
        if size > most {
            return Ok(Err(format!("longer than {} MiB", most >> 20)));
        }
        if count as u64 > *left {
            return Ok(Err("the files before it are as long as all may be together".into()));
        }
        *left -= count as u64;
        out.write_all(&FileRecord::Bytes(chunk[..count].to_vec()).encode())?;
    }
}

/// `*` stands for any bytes.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut pieces = pattern.split(|b| *b == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = (0..=rest.len()).find(|at| rest[*at..].starts_with(piece)) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

fn inode(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[expect(clippy::unnecessary_cast, reason = "the fields are of other types on other platforms")]
fn stamp(stat: &Stat) -> Stamp {
    Stamp {
        inode: inode(stat),
        size: stat.st_size as u64,
        mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
        ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
    }
}

/// Of a directory: its times and size change with what is put there.
fn identity(stat: &Stat) -> Stamp {
    Stamp { inode: inode(stat), ..Stamp::default() }
}

/// Of a directory, or of the link that leads to it.
fn identity_of(own: &Stat, is_link: bool) -> Stamp {
    if is_link { stamp(own) } else { identity(own) }
}

fn kind_of(fs: &StatFs) -> u64 {
    fs.f_type as u64
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn words(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}
