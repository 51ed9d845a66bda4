//! The files that the guest's kernel knows, each held open by its place alone (`O_PATH`), so that nobody who moves or replaces names on
//! the host leads the guest elsewhere.
//!
//! A guest's kernel may know more files than a process may have open. Then those that were not used for longest are let go of, and are found
//! again where the guest last saw them: by one name in a directory that is known, and only if it is the same file. What has no name any more is not let go of.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, fstat, openat, statat, statx};
use rustix::io::Errno;

use crate::wire::{Attr, ROOT};

/// What a name is opened with: nothing but its place, and no link is followed.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Most files of which something is known.
const MOST: usize = 1 << 20;
/// Most directories on the way to one.
const DEEPEST: usize = 4096;

/// One file.
#[derive(Debug)]
pub(crate) struct Node {
    /// None while it is let go of.
    place: Option<OwnedFd>,
    pub(crate) kind: FileType,
    key: (u64, u64),
    /// When it was made, if the file system knows: the number of a file that is gone may be another's.
    born: Option<(i64, u32)>,
    /// How often the guest's kernel was told of it and has not forgotten it.
    lookups: u64,
    home: Option<Home>,
    /// When it was last used, by [`Nodes::clock`].
    used: u64,
}

impl Node {
    /// Whether it may be a file of this kind that was made then, whose key it has.
    fn may_be(&self, kind: FileType, born: Option<(i64, u32)>) -> bool {
        self.kind == kind && self.born == born
    }
}

/// Where a file is found again.
#[derive(Debug, PartialEq, Eq)]
struct Home {
    directory: u64,
    name: CString,
}

/// All that the guest's kernel knows.
#[derive(Debug)]
pub(crate) struct Nodes {
    by_number: HashMap<u64, Node>,
    by_key: HashMap<(u64, u64), u64>,
    next: u64,
    /// Most descriptors, those of files that are open included.
    most: usize,
    /// How many files are held.
    held: usize,
    /// Requests that used a file.
    clock: u64,
    /// File systems that are mounted below the directory, whose inode numbers may be the same as others'.
    devices: Vec<u64>,
    /// `/proc/self/fd`, by which a place is opened for more than being one.
    descriptors: OwnedFd,
}

impl Nodes {
    /// Knows nothing but the directory, and will have so many descriptors at most.
    pub(crate) fn new(directory: OwnedFd, most: usize) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let root = openat(&directory, c".", flags, Mode::empty())?;
        let stat = fstat(&root)?;
        let key = key(&stat);
        let (kind, born) = (FileType::Directory, None);
        let node = Node { place: Some(root), kind, key, born, lookups: 1, home: None, used: 0 };
        Ok(Self {
            by_number: HashMap::from([(ROOT, node)]),
            by_key: HashMap::from([(key, ROOT)]),
            next: ROOT + 1,
            most,
            held: 1,
            clock: 0,
            devices: vec![key.0],
            descriptors,
        })
    }

    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Sees to it that one more descriptor can be had beside those of `open` files, and one more file be known.
    ///
    /// # Errors
    /// `ENFILE`, where it cannot.
    pub(crate) fn have_room(&mut self, open: usize) -> Result<(), Errno> {
        if self.by_number.len() >= MOST {
            return Err(Errno::NFILE);
        }
        if self.held + open >= self.most {
            self.let_go();
        }
        if self.held + open < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// What an error of [`Nodes::have_room`] is about: so many files are known, or so many may be open.
    pub(crate) fn limit(&self) -> usize {
        self.most.min(MOST)
    }

    /// Lets go of half of what can be found again: that which was not used for longest.
    fn let_go(&mut self) {
        let can = |node: &Node| node.place.is_some() && node.home.is_some();
        let mut old: Vec<_> =
            self.by_number.iter().filter(|(_, node)| can(node)).map(|(n, node)| (node.used, *n)).collect();
        old.sort_unstable();
        old.truncate(old.len() / 2);
        for (_, number) in old {
            if let Some(node) = self.by_number.get_mut(&number) {
                node.place = None;
                self.held -= 1;
            }
        }
    }

    /// Sees to it that a file is held, for what is to be done with it.
    ///
    /// # Errors
    /// `ESTALE` if it is not where it was, and what [`Nodes::have_room`] says.
    pub(crate) fn hold(&mut self, number: u64, open: usize) -> Result<(), Errno> {
        self.clock += 1;
        let mut missing = Vec::new();
        let mut at = number;
        loop {
            let node = self.by_number.get_mut(&at).ok_or(Errno::STALE)?;
            node.used = self.clock;
            if node.place.is_some() {
                break;
            }
            if missing.len() == DEEPEST {
                return Err(Errno::STALE);
            }
            missing.push(at);
            at = node.home.as_ref().ok_or(Errno::STALE)?.directory;
        }
        let mut place: Option<OwnedFd> = None;
        for number in missing.into_iter().rev() {
            let node = self.get(number)?;
            let name = &node.home.as_ref().ok_or(Errno::STALE)?.name;
            let directory = place.as_ref().map_or_else(|| self.place(at), Ok)?;
            let found = openat(directory, name, PLACE, Mode::empty()).map_err(gone)?;
            let stat = fstat(&found)?;
            if key(&stat) != node.key || !node.may_be(FileType::from_raw_mode(stat.st_mode), born(&found)) {
                return Err(Errno::STALE);
            }
            place = Some(found);
        }
        if place.is_some() {
            self.have_room(open)?;
            self.by_number.get_mut(&number).ok_or(Errno::STALE)?.place = place;
            self.held += 1;
        }
        Ok(())
    }

    /// Before a name is taken away: holds the file that is found again by it, which is not let go of until it has another.
    ///
    /// # Errors
    /// What [`Nodes::have_room`] says.
    pub(crate) fn hold_named(&mut self, directory: u64, name: &CStr, open: usize) -> Result<Option<u64>, Errno> {
        let Ok(stat) = statat(self.place(directory)?, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        let Some(&number) = self.by_key.get(&key(&stat)) else { return Ok(None) };
        let is_home = |home: &Home| home.directory == directory && *home.name == *name;
        if !self.get(number)?.home.as_ref().is_some_and(is_home) {
            return Ok(None);
        }
        match self.hold(number, open) {
            Err(Errno::STALE) => Ok(None),
            held => held.map(|()| Some(number)),
        }
    }

    /// A file that is held is found under another name from now on, or under none.
    pub(crate) fn rename(&mut self, number: u64, to: Option<(u64, &CStr)>) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.home = to.map(|(directory, name)| Home { directory, name: name.to_owned() });
        }
    }

    /// The file of this number. Only a guest's kernel that is none asks for others.
    pub(crate) fn get(&self, number: u64) -> Result<&Node, Errno> {
        self.by_number.get(&number).ok_or(Errno::STALE)
    }

    /// The place of a file that is held.
    pub(crate) fn place(&self, number: u64) -> Result<&OwnedFd, Errno> {
        self.get(number)?.place.as_ref().ok_or(Errno::STALE)
    }

    /// The place of a directory in which a name is.
    pub(crate) fn directory(&self, number: u64) -> Result<&OwnedFd, Errno> {
        if self.get(number)?.kind == FileType::Directory { self.place(number) } else { Err(Errno::NOTDIR) }
    }

    /// Looks a name up, once more for the guest's kernel to forget. There must be room.
    pub(crate) fn look_up(&mut self, parent: u64, name: &CStr, open: usize) -> Result<(u64, Attr), Errno> {
        self.hold(parent, open)?;
        let place = openat(self.directory(parent)?, name, PLACE, Mode::empty())?;
        self.enter(place, Some(Home { directory: parent, name: name.to_owned() }), open)
    }

    /// The same for a file that was made under this name, or under none, and is open.
    pub(crate) fn enter_file(
        &mut self,
        file: &OwnedFd,
        named: Option<(u64, &CStr)>,
        open: usize,
    ) -> Result<(u64, Attr), Errno> {
        let place = openat(&self.descriptors, name_of(file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let home = named.map(|(directory, name)| Home { directory, name: name.to_owned() });
        self.enter(place, home, open)
    }

    fn enter(&mut self, place: OwnedFd, home: Option<Home>, open: usize) -> Result<(u64, Attr), Errno> {
        let stat = fstat(&place)?;
        let key = key(&stat);
        let (kind, born) = (FileType::from_raw_mode(stat.st_mode), born(&place));
        let attr = self.attr(&stat);
        if let Some(&number) = self.by_key.get(&key)
            && self.is_same(number, (kind, born), home.as_ref(), open)?
            && let Some(node) = self.by_number.get_mut(&number)
        {
            node.lookups = node.lookups.saturating_add(1);
            node.used = self.clock;
            if number != ROOT && home.is_some() {
                node.home = home;
            }
            if node.place.is_none() {
                node.place = Some(place);
                self.held += 1;
            }
            return Ok((number, attr));
        }
        let number = self.next;
        self.next += 1;
        let node = Node { place: Some(place), kind, key, born, lookups: 1, home, used: self.clock };
        self.by_number.insert(number, node);
        self.by_key.insert(key, number);
        self.held += 1;
        Ok((number, attr))
    }

    /// Whether a file that was found is the one of this number, whose key it has: while that is held nobody else has the key.
    fn is_same(
        &mut self,
        number: u64,
        (kind, born): (FileType, Option<(i64, u32)>),
        home: Option<&Home>,
        open: usize,
    ) -> Result<bool, Errno> {
        let node = self.get(number)?;
        if node.place.is_some() {
            return Ok(true);
        }
        if !node.may_be(kind, born) {
            return Ok(false);
        }
        if node.home.as_ref() == home {
            return Ok(true);
        }
        match self.hold(number, open) {
            Err(Errno::STALE) => Ok(false),
            held => held.map(|()| true),
        }
    }

    /// The guest's kernel has forgotten so many of the times at which it was told of a file.
    pub(crate) fn forget(&mut self, number: u64, count: u64) {
        if number == ROOT {
            return;
        }
        let Some(node) = self.by_number.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups == 0 {
            self.held -= usize::from(node.place.is_some());
            if self.by_key.get(&node.key) == Some(&number) {
                self.by_key.remove(&node.key);
            }
            self.by_number.remove(&number);
        }
    }

    /// Attributes of a file.
    pub(crate) fn attr_of(&mut self, number: u64) -> Result<Attr, Errno> {
        let stat = fstat(self.place(number)?)?;
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
            FileType::RegularFile => openat(&self.descriptors, name_of(self.place(number)?), flags, Mode::empty()),
            FileType::Directory => openat(self.place(number)?, c".", flags | OFlags::DIRECTORY, Mode::empty()),
            _ => Err(Errno::NXIO),
        }
    }

    /// Where a file that is known is found by system calls that take nothing but a path: the directory for such a path, and the name
    /// there, which is to be followed.
    pub(crate) fn path(&self, number: u64) -> Result<(&OwnedFd, String), Errno> {
        Ok((&self.descriptors, name_of(self.place(number)?)))
    }
}

/// What it means that a file is not found again; what this process lacks is another matter.
fn gone(errno: Errno) -> Errno {
    if matches!(errno, Errno::NFILE | Errno::MFILE | Errno::NOMEM) { errno } else { Errno::STALE }
}

/// What tells a file from all others.
#[expect(clippy::unnecessary_cast, reason = "the types differ between processors")]
fn key(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// When a file was made, if its file system and the kernel can say.
fn born(place: &OwnedFd) -> Option<(i64, u32)> {
    let stat = statx(place, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

fn name_of(fd: &OwnedFd) -> String {
    fd.as_raw_fd().to_string()
}

/// How a link itself is meant, and not what it leads to.
pub(crate) const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
