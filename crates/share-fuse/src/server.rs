//! What is done for each request.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
    chmodat, copy_file_range, fallocate, fdatasync, fstatvfs, fsync, ftruncate, linkat, mkdirat, mknodat, openat,
    readlinkat, renameat_with, seek, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, IoSlice, ReadWriteFlags, pread, pwrite, pwritev2};

use crate::nodes::{ITSELF, Nodes};
use crate::requests::{needs, writes};
use crate::wire::{Header, MAJOR, MAX_DATA, Malformed, OLDEST_MINOR, Reply, Request, Time, init, open, opened};

/// What a share is for; it decides what the guest may keep of what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The guest writes to it, and sees what the host writes, after a second at most.
    Exchange,
    /// The guest reads what nobody changes meanwhile. What it has seen it need not ask for again.
    Reading,
}

impl Use {
    /// For how many seconds the guest may believe names and attributes.
    fn seconds(self) -> u64 {
        match self {
            Self::Exchange => 1,
            Self::Reading => 24 * 60 * 60,
        }
    }

    /// For how many seconds it may believe that a name is not there. What the host makes is to be seen at once.
    fn seconds_of_nothing(self) -> u64 {
        match self {
            Self::Exchange => 0,
            Self::Reading => self.seconds(),
        }
    }

    /// The ways of the protocol that are used.
    fn flags(self) -> u64 {
        let common = init::ASYNC_READ
            | init::BIG_WRITES
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::HANDLE_KILLPRIV
            | init::HANDLE_KILLPRIV_V2
            | init::ABORT_ERROR
            | init::MAX_PAGES
            | init::INIT_EXT;
        common
            | match self {
                Self::Exchange => init::ATOMIC_O_TRUNC | init::AUTO_INVAL_DATA,
                Self::Reading => init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT | init::CACHE_SYMLINKS,
            }
    }
}

/// Descriptors that are left for what is opened on the way.
const SPARE: usize = 64;
/// Files that stay open where the guest's kernel does not say what it opens.
const KEPT_OPEN: usize = 64;
/// Most bytes of an extended attribute, or of the list of their names (the kernel's `XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 1 << 16;
/// The attributes that a guest sees and may set.
const XATTRS: &[u8] = b"user.";
/// Most bytes that are reserved in one step, with a rest after each: whoever measures what a guest writes is to see it come.
const RESERVED_AT_ONCE: u64 = 32 << 20;
/// The rest.
const REST: Duration = Duration::from_millis(16);
/// Most bytes that are copied by one request.
const COPIED_AT_ONCE: usize = 32 << 20;
const DIRECTORY_BUFFER: usize = 8 << 10;

/// Serves one directory.
#[derive(Debug)]
pub struct Server {
    using: Use,
    nodes: Nodes,
    handles: HashMap<u64, Handle>,
    next_handle: u64,
    /// Files opened for reading where the guest's kernel tells of no opening.
    kept_open: VecDeque<(u64, OwnedFd)>,
    /// Whether the guest has said which protocol it speaks.
    greeted: bool,
    /// What it could do.
    offered: u64,
    memory: Vec<u8>,
    entries: Vec<u8>,
}

/// A file that the guest has open.
#[derive(Debug)]
struct Handle {
    fd: OwnedFd,
    /// Where the next name of a directory is, if that is where the descriptor stands.
    at: Option<u64>,
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// These bytes go to the guest.
    Reply(Vec<u8>),
    /// The kernel waits for nothing.
    Nothing,
    /// The guest is through with the share.
    End,
    /// The guest knows of as many files, or has as many open, as this process may hold. It would be told of no more, and take them for not there.
    Full(usize),
}

/// What a request comes to beside the bytes of its reply.
enum Outcome {
    Replied,
    Silent,
    End,
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Replied
    }
}

impl Server {
    /// Serves `directory`, at most with so many descriptors at a time. The process should have no `umask(2)`: the guest's kernel has
    /// applied that of whoever makes a file.
    ///
    /// # Errors
    /// When it is no directory, or `/proc` is not there.
    pub fn new(directory: OwnedFd, using: Use, descriptors: usize) -> Result<Self, Errno> {
        Ok(Self {
            using,
            nodes: Nodes::new(directory, descriptors.saturating_sub(SPARE + KEPT_OPEN))?,
            handles: HashMap::new(),
            next_handle: 1,
            kept_open: VecDeque::new(),
            greeted: false,
            offered: 0,
            memory: Vec::new(),
            entries: Vec::with_capacity(DIRECTORY_BUFFER),
        })
    }

    /// How many files are held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.nodes.held()
    }

    /// Gives the memory of a reply that was sent back for the next one.
    pub fn reuse(&mut self, memory: Vec<u8>) {
        self.memory = memory;
    }

    /// Does what a whole request asks for.
    ///
    /// # Errors
    /// When no kernel sends such bytes: then nothing that comes later can be believed.
    pub fn answer(&mut self, request: &[u8]) -> Result<Answer, Malformed> {
        let (header, body) = Header::split(request)?;
        let request = Request::parse(&header, body)?;
        if !self.greeted && !matches!(request, Request::Init { .. }) {
            return Err(Malformed);
        }
        let mut reply = Reply::new(std::mem::take(&mut self.memory));
        let error = match self.perform(header.node, request, &mut reply) {
            Ok(Outcome::Replied) => 0,
            Ok(Outcome::Silent) => return Ok(Answer::Nothing),
            Ok(Outcome::End) => return Ok(Answer::End),
            Err(Errno::NFILE | Errno::MFILE) => return Ok(Answer::Full(self.nodes.limit())),
            Err(errno) => errno.raw_os_error(),
        };
        Ok(Answer::Reply(reply.finish(header.unique, error)))
    }

    fn perform(&mut self, node: u64, request: Request<'_>, reply: &mut Reply) -> Result<Outcome, Errno> {
        if self.using == Use::Reading && writes(&request) {
            return Err(Errno::ROFS);
        }
        let open = self.handles.len();
        for number in needs(node, &request) {
            match self.nodes.hold(number, open) {
                // What is done with it says so, unless it is done with a file that is open.
                Ok(()) | Err(Errno::STALE) => {}
                Err(errno) => return Err(errno),
            }
        }
        match request {
            Request::Init { major, minor, max_readahead, flags } => {
                self.init(major, minor, max_readahead, flags, reply)
            }
            Request::Destroy => return Ok(Outcome::End),
            Request::Forget(count) => {
                self.forget(node, count);
                return Ok(Outcome::Silent);
            }
            Request::BatchForget(forgets) => {
                for (node, count) in forgets {
                    self.forget(node, count);
                }
                return Ok(Outcome::Silent);
            }
            Request::NotifyReply => return Ok(Outcome::Silent),
            Request::Lookup(name) => match self.look_up(node, name, reply) {
                Err(Errno::NOENT) if self.using.seconds_of_nothing() > 0 => {
                    reply.entry(0, self.using.seconds_of_nothing(), &Default::default());
                    Ok(())
                }
                other => other,
            },
            Request::GetAttr { handle } => {
                let attr = match handle.and_then(|handle| self.handles.get(&handle)) {
                    Some(open) => self.nodes.attr_of_file(&open.fd)?,
                    None => self.nodes.attr_of(node)?,
                };
                reply.attr(self.using.seconds(), &attr);
                Ok(())
            }
            Request::SetAttr { handle, size, mode, atime, mtime } => {
                if let Some(size) = size {
                    self.cut(node, handle, size)?;
                }
                if let Some(mode) = mode {
                    self.change_mode(node, mode)?;
                }
                self.change_times(node, atime, mtime)?;
                reply.attr(self.using.seconds(), &self.nodes.attr_of(node)?);
                Ok(())
            }
            Request::ReadLink => {
                let target = readlinkat(self.nodes.place(node)?, c"", Vec::new())?;
                reply.bytes(target.as_bytes());
                Ok(())
            }
            Request::Symlink { name, target } => {
                symlinkat(target, self.parent(node, name)?, name)?;
                self.look_up(node, name, reply)
            }
            Request::MkNod { name, mode } => {
                self.make_node(node, name, mode)?;
                self.look_up(node, name, reply)
            }
            Request::MkDir { name, mode } => {
                if mode & SET_USER != 0 {
                    return Err(Errno::PERM);
                }
                // A directory takes the other bit from the one that it is in.
                mkdirat(self.parent(node, name)?, name, Mode::from_raw_mode(mode & PERMISSIONS))?;
                self.look_up(node, name, reply)
            }
            Request::Unlink(name) => self.remove(node, name, AtFlags::empty()),
            Request::RmDir(name) => self.remove(node, name, AtFlags::REMOVEDIR),
            Request::Rename { name, to, new_name, flags } => {
                let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
                let flags = RenameFlags::from_bits(flags).filter(|f| known.contains(*f)).ok_or(Errno::INVAL)?;
                self.rename((node, name), (to, new_name), flags)
            }
            Request::Link { node: of, name } => {
                let (descriptors, path) = self.nodes.path(of)?;
                linkat(descriptors, path, self.parent(node, name)?, name, AtFlags::SYMLINK_FOLLOW)?;
                self.look_up(node, name, reply)
            }
            Request::Open { flags } => self.open(node, flags, reply),
            Request::Create { name, flags, mode } => self.create(node, name, flags, mode, reply),
            Request::TmpFile { flags, mode } => self.create_nameless(node, flags, mode, reply),
            Request::Read { handle, offset, size } => {
                let most = usize::try_from(size).unwrap_or(MAX_DATA).min(MAX_DATA);
                let file = self.file(node, handle)?;
                reply.fill(most, |into| read_whole(file, into, offset))
            }
            Request::Write { handle, offset, cached, flags, data } => {
                let file = &self.handle(handle)?.fd;
                let append = flags & open::APPEND != 0 && !cached;
                let written = write_whole(file, data, offset, append)?;
                reply.u32(u32::try_from(written).unwrap_or(u32::MAX));
                reply.u32(0);
                Ok(())
            }
            Request::StatFs => self.statfs(node, reply),
            Request::Release { handle } | Request::ReleaseDir { handle } => {
                self.handles.remove(&handle);
                Ok(())
            }
            Request::Flush if self.using == Use::Reading => Err(Errno::NOSYS),
            Request::Flush => Ok(()),
            Request::FSync { handle, data_only } | Request::FSyncDir { handle, data_only } => {
                let file = self.file(node, handle)?;
                if data_only { fdatasync(file) } else { fsync(file) }
            }
            Request::SetXAttr { name, value, flags } => {
                let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
                rustix::fs::setxattr(self.with_xattrs(node, name)?, name, value, flags)
            }
            Request::GetXAttr { name, size } => self.get_xattr(node, name, size, reply),
            Request::ListXAttr { size } => self.list_xattrs(node, size, reply),
            Request::RemoveXAttr(name) => rustix::fs::removexattr(self.with_xattrs(node, name)?, name),
            Request::OpenDir => {
                let seen = OFlags::RDONLY | OFlags::DIRECTORY;
                if self.using == Use::Reading && self.offered & init::NO_OPENDIR_SUPPORT != 0 {
                    return Err(Errno::NOSYS);
                }
                let fd = self.nodes.open(node, seen)?;
                let flags = match self.using {
                    Use::Exchange => 0,
                    Use::Reading => opened::KEEP_CACHE | opened::CACHE_DIR,
                };
                let handle = self.add_handle(Handle { fd, at: Some(0) })?;
                reply.open(handle, flags);
                Ok(())
            }
            Request::ReadDir { handle, offset, size, plus } => {
                self.read_directory(node, handle, offset, size, plus, reply)
            }
            Request::FAllocate { handle, offset, length, mode } => {
                let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
                reserve(&self.handle(handle)?.fd, mode, offset, length)
            }
            Request::LSeek { handle, offset, whence } => {
                let to = match whence {
                    3 => SeekFrom::Data(offset),
                    4 => SeekFrom::Hole(offset),
                    _ => return Err(Errno::INVAL),
                };
                let at = seek(self.file(node, handle)?, to)?;
                reply.u64(at);
                Ok(())
            }
            Request::CopyFileRange { from, from_offset, to, to_offset, length, flags } => {
                if flags != 0 {
                    return Err(Errno::INVAL);
                }
                let (mut from_offset, mut to_offset) = (from_offset, to_offset);
                let most = usize::try_from(length).unwrap_or(usize::MAX).min(COPIED_AT_ONCE);
                let (source, target) = (&self.handle(from)?.fd, &self.handle(to)?.fd);
                let copied = copy_file_range(source, Some(&mut from_offset), target, Some(&mut to_offset), most)?;
                reply.u32(u32::try_from(copied).unwrap_or(u32::MAX));
                reply.u32(0);
                Ok(())
            }
            Request::Other => Err(Errno::NOSYS),
        }
        .map(Outcome::from)
    }

    fn init(
        &mut self,
        major: u32,
        minor: u32,
        max_readahead: u32,
        offered: u64,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        if major != MAJOR || minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        self.greeted = true;
        self.offered = offered;
        reply.init(minor, max_readahead, offered & self.using.flags());
        Ok(())
    }

    fn forget(&mut self, node: u64, count: u64) {
        self.nodes.forget(node, count);
        if self.nodes.get(node).is_err() {
            self.kept_open.retain(|(kept, _)| *kept != node);
        }
    }

    /// The directory in which a name is to be looked for, if it is a name.
    fn parent(&self, node: u64, name: &CStr) -> Result<&OwnedFd, Errno> {
        check_name(name)?;
        self.nodes.directory(node)
    }

    fn look_up(&mut self, parent: u64, name: &CStr, reply: &mut Reply) -> Result<(), Errno> {
        check_name(name)?;
        self.have_room()?;
        let (node, attr) = self.nodes.look_up(parent, name, self.handles.len())?;
        reply.entry(node, self.using.seconds(), &attr);
        Ok(())
    }

    fn have_room(&mut self) -> Result<(), Errno> {
        self.nodes.have_room(self.handles.len())
    }

    fn remove(&mut self, node: u64, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
        check_name(name)?;
        let known = self.nodes.hold_named(node, name, self.handles.len())?;
        unlinkat(self.nodes.directory(node)?, name, flags)?;
        known.into_iter().for_each(|number| self.nodes.rename(number, None));
        Ok(())
    }

    fn rename(&mut self, from: (u64, &CStr), to: (u64, &CStr), flags: RenameFlags) -> Result<(), Errno> {
        let mut known = [None; 2];
        for (known, (node, name)) in known.iter_mut().zip([from, to]) {
            check_name(name)?;
            *known = self.nodes.hold_named(node, name, self.handles.len())?;
        }
        renameat_with(self.nodes.directory(from.0)?, from.1, self.nodes.directory(to.0)?, to.1, flags)?;
        let [moved, replaced] = known;
        if moved != replaced {
            let exchanged = flags.contains(RenameFlags::EXCHANGE).then_some(from);
            replaced.into_iter().for_each(|number| self.nodes.rename(number, exchanged));
            moved.into_iter().for_each(|number| self.nodes.rename(number, Some(to)));
        }
        Ok(())
    }

    fn add_handle(&mut self, handle: Handle) -> Result<u64, Errno> {
        self.have_room()?;
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, handle);
        Ok(number)
    }

    fn handle(&self, number: u64) -> Result<&Handle, Errno> {
        self.handles.get(&number).ok_or(Errno::BADF)
    }

    /// An open file: that of the handle, else one that is opened for reading.
    fn file(&mut self, node: u64, handle: u64) -> Result<&OwnedFd, Errno> {
        if handle != 0 || self.using == Use::Exchange {
            return Ok(&self.handle(handle)?.fd);
        }
        let at = match self.kept_open.iter().position(|(kept, _)| *kept == node) {
            Some(at) => at,
            None => {
                let fd = self.nodes.open(node, OFlags::RDONLY)?;
                if self.kept_open.len() >= KEPT_OPEN {
                    self.kept_open.pop_front();
                }
                self.kept_open.push_back((node, fd));
                self.kept_open.len() - 1
            }
        };
        Ok(&self.kept_open[at].1)
    }

    fn open(&mut self, node: u64, flags: u32, reply: &mut Reply) -> Result<(), Errno> {
        if self.using == Use::Reading && self.offered & init::NO_OPEN_SUPPORT != 0 {
            // Nothing more is told of opening, which saves two ways there and back for each file.
            return Err(Errno::NOSYS);
        }
        let fd = self.nodes.open(node, host_flags(flags, open::TRUNCATE))?;
        self.reply_open(fd, flags, reply)
    }

    fn reply_open(&mut self, fd: OwnedFd, flags: u32, reply: &mut Reply) -> Result<(), Errno> {
        // Nothing waits to be written where nothing is written.
        let read_only = if flags & open::ACCESS == 0 { opened::NO_FLUSH } else { 0 };
        let kept = if self.using == Use::Reading { opened::KEEP_CACHE } else { 0 };
        let handle = self.add_handle(Handle { fd, at: None })?;
        reply.open(handle, read_only | kept);
        Ok(())
    }

    fn create(&mut self, node: u64, name: &CStr, flags: u32, mode: u32, reply: &mut Reply) -> Result<(), Errno> {
        let mode = mode_of_new(mode)?;
        self.have_room()?;
        let wanted = host_flags(flags, 0) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(self.parent(node, name)?, name, wanted, mode) {
            Ok(fd) => {
                let (number, attr) = self.nodes.enter_file(&fd, Some((node, name)), self.handles.len())?;
                reply.entry(number, self.using.seconds(), &attr);
                self.reply_open(fd, flags, reply)
            }
            // Somebody on the host was first, perhaps with a link or a FIFO.
            Err(Errno::EXIST) if flags & open::EXCLUSIVE == 0 => {
                let (number, _) = self.nodes.look_up(node, name, self.handles.len())?;
                let opened = self.nodes.open(number, host_flags(flags, open::TRUNCATE));
                let attr = self.nodes.attr_of(number)?;
                match opened {
                    Ok(fd) => {
                        reply.entry(number, self.using.seconds(), &attr);
                        self.reply_open(fd, flags, reply)
                    }
                    Err(errno) => {
                        self.nodes.forget(number, 1);
                        Err(errno)
                    }
                }
            }
            Err(errno) => Err(errno),
        }
    }

    fn create_nameless(&mut self, node: u64, flags: u32, mode: u32, reply: &mut Reply) -> Result<(), Errno> {
        let mode = mode_of_new(mode)?;
        self.have_room()?;
        let exclusive = if flags & open::EXCLUSIVE != 0 { OFlags::EXCL } else { OFlags::empty() };
        let wanted = host_flags(flags, 0) | OFlags::TMPFILE | OFlags::CLOEXEC | exclusive;
        let fd = openat(self.nodes.directory(node)?, c".", wanted, mode)?;
        let (number, attr) = self.nodes.enter_file(&fd, None, self.handles.len())?;
        reply.entry(number, self.using.seconds(), &attr);
        self.reply_open(fd, flags, reply)
    }

    fn make_node(&mut self, node: u64, name: &CStr, mode: u32) -> Result<(), Errno> {
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => {}
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        }
        mknodat(self.parent(node, name)?, name, kind, mode_of_new(mode & !FORMAT)?, 0)
    }

    fn cut(&mut self, node: u64, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        match handle.and_then(|handle| self.handles.get(&handle)) {
            Some(open) => ftruncate(&open.fd, size),
            None => ftruncate(self.nodes.open(node, OFlags::WRONLY)?, size),
        }
    }

    fn change_mode(&mut self, node: u64, mode: u32) -> Result<(), Errno> {
        if mode & SET_USER != 0 {
            return Err(Errno::PERM);
        }
        if self.nodes.get(node)?.kind == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        // Tools set this bit on directories in passing. It stays where it is, and comes nowhere.
        let group = mode & self.nodes.attr_of(node)?.mode & SET_GROUP;
        let (descriptors, path) = self.nodes.path(node)?;
        chmodat(descriptors, path, Mode::from_raw_mode(mode & PERMISSIONS | group), AtFlags::empty())
    }

    fn change_times(&mut self, node: u64, atime: Time, mtime: Time) -> Result<(), Errno> {
        if (atime, mtime) == (Time::Leave, Time::Leave) {
            return Ok(());
        }
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        let found = self.nodes.get(node)?;
        if found.kind == FileType::Symlink {
            return utimensat(self.nodes.place(node)?, c"", &times, ITSELF);
        }
        let (descriptors, path) = self.nodes.path(node)?;
        utimensat(descriptors, path, &times, AtFlags::empty())
    }

    fn statfs(&mut self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let stat = fstatvfs(self.nodes.place(node)?)?;
        for number in [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree] {
            reply.u64(number);
        }
        for number in [stat.f_bsize, stat.f_namemax, stat.f_frsize] {
            reply.u32(u32::try_from(number).unwrap_or(u32::MAX));
        }
        reply.bytes(&[0; 28]);
        Ok(())
    }

    /// The path of a file with extended attributes, of which the guest may have this one.
    fn with_xattrs(&self, node: u64, name: &CStr) -> Result<String, Errno> {
        if !name.to_bytes().starts_with(XATTRS) {
            return Err(Errno::OPNOTSUPP);
        }
        match self.nodes.get(node)?.kind {
            FileType::RegularFile | FileType::Directory => Ok(format!("/proc/self/fd/{}", self.nodes.path(node)?.1)),
            // Other files have none of these (xattr(7)).
            _ => Err(Errno::PERM),
        }
    }

    fn get_xattr(&mut self, node: u64, name: &CStr, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        let path = self.with_xattrs(node, name).map_err(|e| if e == Errno::PERM { Errno::NODATA } else { e })?;
        let mut value = vec![0; MAX_XATTR];
        let length = rustix::fs::getxattr(path, name, &mut value[..])?;
        give(&value[..length], size, reply)
    }

    fn list_xattrs(&mut self, node: u64, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        if !matches!(self.nodes.get(node)?.kind, FileType::RegularFile | FileType::Directory) {
            return give(&[], size, reply);
        }
        let path = format!("/proc/self/fd/{}", self.nodes.path(node)?.1);
        let mut names = vec![0; MAX_XATTR];
        let length = rustix::fs::listxattr(path, &mut names[..])?;
        let ours = names[..length].split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(XATTRS));
        give(&ours.collect::<Vec<_>>().concat(), size, reply)
    }

    fn read_directory(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let most = usize::try_from(size).unwrap_or(MAX_DATA).min(MAX_DATA);
        let fd = self.file(node, handle)?.as_fd().try_clone_to_owned().map_err(|_| Errno::NFILE)?;
        let stands_there = self.handles.get_mut(&handle).is_some_and(|open| open.at.take() == Some(offset));
        if !stands_there {
            seek(&fd, SeekFrom::Start(offset))?;
        }
        let mut entries = std::mem::take(&mut self.entries);
        let filled = self.fill_directory(node, &fd, &mut entries, most, plus, reply);
        self.entries = entries;
        let next = filled?;
        if let Some(open) = self.handles.get_mut(&handle) {
            open.at = next;
        }
        Ok(())
    }

    /// Writes as many names as there is room for; gives where the descriptor stands, if the next one is there.
    fn fill_directory(
        &mut self,
        node: u64,
        fd: &OwnedFd,
        entries: &mut Vec<u8>,
        most: usize,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<Option<u64>, Errno> {
        entries.clear();
        let mut directory = RawDir::new(fd, entries.spare_capacity_mut());
        let mut next = None;
        while let Some(entry) = directory.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What was found before is told first; the error comes again.
                Err(_) if reply.len() > 0 => return Ok(None),
                Err(errno) => return Err(errno),
            };
            let name = entry.file_name();
            if reply.len() + Reply::size_of_name(name.to_bytes(), plus) > most {
                return Ok(None);
            }
            let kind = entry.file_type().as_raw_mode() >> 12;
            let mut ino = entry.ino();
            if plus {
                let is_itself = matches!(name.to_bytes(), b"." | b"..");
                let found = if is_itself || self.have_room().is_err() {
                    None
                } else {
                    // It may be gone by now: then the guest asks for itself.
                    self.nodes.look_up(node, name, self.handles.len()).ok()
                };
                let (number, attr) = found.unwrap_or_default();
                if number != 0 {
                    ino = attr.ino;
                }
                reply.entry(number, self.using.seconds(), &attr);
            }
            reply.name(ino, entry.next_entry_cookie(), kind, name.to_bytes());
            next = Some(entry.next_entry_cookie());
        }
        Ok(next)
    }
}

const SET_USER: u32 = 0o4000;
const SET_GROUP: u32 = 0o2000;
/// Permissions, and the bit by which only owners remove names.
const PERMISSIONS: u32 = 0o1777;
/// The bits of a mode that say what kind of file it is.
const FORMAT: u32 = 0o170_000;

/// A name is one of a directory's: nothing that leads elsewhere.
fn check_name(name: &CStr) -> Result<(), Errno> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// The mode of a file that is made, which gets nobody's rights but its user's.
fn mode_of_new(mode: u32) -> Result<Mode, Errno> {
    if mode & (SET_USER | SET_GROUP) != 0 {
        return Err(Errno::PERM);
    }
    Ok(Mode::from_raw_mode(mode & PERMISSIONS))
}

/// The flags with which a file is opened here: how it is used, when writes are on the disk, and those of `more` that are asked for. Where
/// writes are to be appended, each says so itself; the guest's cache writes to the same file and appends nothing.
fn host_flags(flags: u32, more: u32) -> OFlags {
    let mut host = match flags & open::ACCESS {
        open::WRITE_ONLY => OFlags::WRONLY,
        open::READ_WRITE => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    if flags & more & open::TRUNCATE != 0 {
        host |= OFlags::TRUNC;
    }
    if flags & open::SYNC == open::SYNC {
        host |= OFlags::SYNC;
    } else if flags & open::DATA_SYNC != 0 {
        host |= OFlags::DSYNC;
    }
    host
}

fn timespec(time: Time) -> Timespec {
    match time {
        Time::Leave => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Time::Now => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Time::At { seconds, nanoseconds } => Timespec { tv_sec: seconds, tv_nsec: nanoseconds.min(999_999_999).into() },
    }
}

/// Answers a question after bytes whose size may be asked for first.
fn give(bytes: &[u8], size: u32, reply: &mut Reply) -> Result<(), Errno> {
    if size == 0 {
        reply.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        reply.u32(0);
    } else if bytes.len() > usize::try_from(size).unwrap_or(usize::MAX) {
        return Err(Errno::RANGE);
    } else {
        reply.bytes(bytes);
    }
    Ok(())
}

/// Reads until there is as much as was asked for, or the file ends.
fn read_whole(file: &OwnedFd, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        match pread(file, &mut into[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Writes all of it, or as much as goes before an error.
fn write_whole(file: &OwnedFd, data: &[u8], offset: u64, append: bool) -> Result<usize, Errno> {
    let mut done = 0;
    while done < data.len() {
        let at = offset.saturating_add(done as u64);
        let written = if append {
            pwritev2(file, &[IoSlice::new(&data[done..])], at, ReadWriteFlags::APPEND)
        } else {
            pwrite(file, &data[done..], at)
        };
        match written {
            Ok(0) => break,
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// Reserves room, or gives it back.
fn reserve(file: &OwnedFd, mode: FallocateFlags, offset: u64, length: u64) -> Result<(), Errno> {
    let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
    if !known.contains(mode) {
        return Err(Errno::OPNOTSUPP);
    }
    if mode.contains(FallocateFlags::PUNCH_HOLE) || length <= RESERVED_AT_ONCE {
        return fallocate(file, mode, offset, length);
    }
    let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
    let mut at = offset;
    while at < end {
        let step = RESERVED_AT_ONCE.min(end - at);
        fallocate(file, mode, at, step)?;
        at += step;
        std::thread::sleep(REST);
    }
    Ok(())
}
