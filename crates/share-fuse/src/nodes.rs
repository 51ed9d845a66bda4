//! The files that the guest's kernel knows, each held open by its place alone (`O_PATH`), so that nobody who moves or replaces names on
//! the host leads the guest elsewhere.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use crate::wire::{Attr, ROOT};

/// What a name is opened with: nothing but its place, and no link is followed.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One file.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: OwnedFd,
    pub(crate) kind: FileType,
    key: (u64, u64),
    /// How often the guest's kernel was told of it and has not forgotten it.
    lookups: u64,
}

/// All that the guest's kernel knows.
#[derive(Debug)]
pub(crate) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_key: HashMap<(u64, u64), u64>,
    next: u64,
    /// File systems that are mounted below the directory, whose inode numbers may be the same as others'.
    devices: Vec<u64>,
    /// `/proc/self/fd`, by which a place is opened for more than being one.
    descriptors: OwnedFd,
}

impl Nodes {
    /// Knows nothing but the directory.
    pub(crate) fn new(directory: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let root = openat(&directory, c".", flags, Mode::empty())?;
        let stat = fstat(&root)?;
        let key = key(&stat);
        let node = Node { place: root, kind: FileType::Directory, key, lookups: 1 };
        Ok(Self {
            by_number: HashMap::from([(ROOT, node)]),
            by_key: HashMap::from([(key, ROOT)]),
            next: ROOT + 1,
            devices: vec![key.0],
            descriptors,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    /// The file of this number. Only a guest's kernel that is none asks for others.
    pub(crate) fn get(&self, number: u64) -> Result<&Node, Errno> {
        self.by_number.get(&number).ok_or(Errno::STALE)
    }

    /// The place of a directory in which a name is.
    pub(crate) fn directory(&self, number: u64) -> Result<&OwnedFd, Errno> {
        let node = self.get(number)?;
        if node.kind == FileType::Directory { Ok(&node.place) } else { Err(Errno::NOTDIR) }
    }

    /// Looks a name up, once more for the guest's kernel to forget.
    pub(crate) fn look_up(&mut self, parent: u64, name: &CStr) -> Result<(u64, Attr), Errno> {
        let place = openat(self.directory(parent)?, name, PLACE, Mode::empty())?;
        self.enter(place)
    }

    /// The same for a file that is open.
    pub(crate) fn enter_file(&mut self, file: &OwnedFd) -> Result<(u64, Attr), Errno> {
        let place = openat(&self.descriptors, name_of(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.enter(place)
    }

    fn enter(&mut self, place: OwnedFd) -> Result<(u64, Attr), Errno> {
        let stat = fstat(&place)?;
        let key = key(&stat);
        let attr = self.attr(&stat);
        if let Some(&number) = self.by_key.get(&key)
            && let Some(node) = self.by_number.get_mut(&number)
        {
            node.lookups = node.lookups.saturating_add(1);
            return Ok((number, attr));
        }
        let number = self.next;
        self.next += 1;
        let node = Node { place, kind: FileType::from_raw_mode(stat.st_mode), key, lookups: 1 };
        self.by_number.insert(number, node);
        self.by_key.insert(key, number);
        Ok((number, attr))
    }

    /// The guest's kernel has forgotten so many of the times at which it was told of a file.
    pub(crate) fn forget(&mut self, number: u64, count: u64) {
        if number == ROOT {
            return;
        }
        let Some(node) = self.by_number.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 {
            self.by_key.remove(&node.key);
            self.by_number.remove(&number);
        }
    }

    /// Attributes of a file.
    pub(crate) fn attr_of(&mut self, number: u64) -> Result<Attr, Errno> {
        let stat = fstat(&self.get(number)?.place)?;
        Ok(self.attr(&stat))
    }

    /// The same of one that is open.
    pub(crate) fn attr_of_file(&mut self, file: &OwnedFd) -> Result<Attr, Errno> {
        let stat = fstat(file)?;
        Ok(self.attr(&stat))
    }

    #[expect(clippy::unnecessary_cast, reason = "the types differ between processors")]
    fn attr(&mut self, stat: &Stat) -> Attr {
        let device = key(stat).0;
        let at = self.devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        Attr {
            // Two files with one number are one file to `tar` and its like.
            ino: (stat.st_ino as u64) ^ (at as u64) << 48,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            times: [
                (stat.st_atime as i64, stat.st_atime_nsec as u32),
                (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
                (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
            ],
            mode: stat.st_mode,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            user: stat.st_uid,
            group: stat.st_gid,
            // Of 32 bits in the protocol, as the kernel packs it there: 12 bits of major and 20 of minor number.
            device: (rustix::fs::minor(stat.st_rdev) & 0xff)
                | rustix::fs::major(stat.st_rdev) << 8
                | (rustix::fs::minor(stat.st_rdev) & !0xff) << 12,
            block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
        }
    }

    /// Opens a file that is known, for more than its place. Of what is no plain file or directory nothing is opened: the guest has its own
    /// FIFOs and sockets under these names, and devices of the host's are not for it.
    pub(crate) fn open(&self, number: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let node = self.get(number)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        match node.kind {
            FileType::RegularFile => openat(&self.descriptors, name_of(&node.place), flags, Mode::empty()),
            FileType::Directory => openat(&node.place, c".", flags | OFlags::DIRECTORY, Mode::empty()),
            _ => Err(Errno::NXIO),
        }
    }

    /// Where a file that is known is found by system calls that take nothing but a path: the directory for such a path, and the name
    /// there, which is to be followed.
    pub(crate) fn path(&self, number: u64) -> Result<(&OwnedFd, String), Errno> {
        Ok((&self.descriptors, name_of(&self.get(number)?.place)))
    }
}

/// What tells a file from all others.
#[expect(clippy::unnecessary_cast, reason = "the types differ between processors")]
fn key(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn name_of(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}

/// How a link itself is meant, and not what it leads to.
pub(crate) const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
