//! What the guest's kernel asks and what it is answered, as bytes (`include/uapi/linux/fuse.h`, up to version 7.41).
//!
//! A request is a header of 40 bytes and a body; its first 32 bits are its length, so requests frame themselves on a stream. Nothing here
//! trusts the guest: a body that is too short, or a name without an end, is [`Malformed`].

use std::ffi::CStr;

/// The version that is spoken: the kernel speaks the older of both.
pub(crate) const MAJOR: u32 = 7;
/// The same, after the point.
pub(crate) const MINOR: u32 = 41;
/// The oldest version that is served: Linux 2.6.29's. Since then a reply's sizes have changed in one place, [`Reply::init`].
pub(crate) const OLDEST_MINOR: u32 = 9;

/// Bytes of a request's header.
pub(crate) const HEADER: usize = 40;
/// Bytes of a reply's header.
pub(crate) const REPLY_HEADER: usize = 16;
/// Most bytes that are read or written by one request.
pub(crate) const MAX_DATA: usize = 1 << 20;
/// Most bytes of a request: data, and a header and a body before them. An extended attribute and two names are less.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;
/// Bytes of a page of the guest's, by which it counts the most that goes into a request.
const PAGE: usize = 4096;

/// The node that is the shared directory itself.
pub(crate) const ROOT: u64 = 1;

/// A body that no kernel sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What is before every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
}

/// The flags of INIT that are used here.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub(crate) const ABORT_ERROR: u64 = 1 << 21;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
}

/// Which attributes SETATTR sets.
pub(crate) mod set {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const HANDLE: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// Flags of an open file that are the same on every processor that a guest may have.
pub(crate) mod open {
    pub(crate) const ACCESS: u32 = 0o3;
    pub(crate) const WRITE_ONLY: u32 = 0o1;
    pub(crate) const READ_WRITE: u32 = 0o2;
    pub(crate) const EXCLUSIVE: u32 = 0o200;
    pub(crate) const TRUNCATE: u32 = 0o1000;
    pub(crate) const APPEND: u32 = 0o2000;
    pub(crate) const DATA_SYNC: u32 = 0o10000;
    pub(crate) const SYNC: u32 = 0o4_010_000;
}

/// What an opened file is allowed to be cached like.
pub(crate) mod opened {
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const CACHE_DIR: u32 = 1 << 3;
    pub(crate) const NO_FLUSH: u32 = 1 << 5;
}

/// WRITE comes from the guest's cache and goes where it says, however the file was opened.
pub(crate) const WRITE_CACHE: u32 = 1;
/// FSYNC of the data alone.
pub(crate) const FSYNC_DATA: u32 = 1;
/// GETATTR of an open file.
pub(crate) const GETATTR_HANDLE: u32 = 1;

/// One time of a SETATTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    Leave,
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

/// What is asked, by the kernel's names.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Destroy,
    Forget(u64),
    BatchForget(Forgets<'a>),
    Lookup(&'a CStr),
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr {
        handle: Option<u64>,
        size: Option<u64>,
        mode: Option<u32>,
        atime: Time,
        mtime: Time,
    },
    ReadLink,
    Symlink {
        name: &'a CStr,
        target: &'a CStr,
    },
    MkNod {
        name: &'a CStr,
        mode: u32,
    },
    MkDir {
        name: &'a CStr,
        mode: u32,
    },
    Unlink(&'a CStr),
    RmDir(&'a CStr),
    Rename {
        name: &'a CStr,
        to: u64,
        new_name: &'a CStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a CStr,
    },
    Open {
        flags: u32,
    },
    Create {
        name: &'a CStr,
        flags: u32,
        mode: u32,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        cached: bool,
        flags: u32,
        data: &'a [u8],
    },
    StatFs,
    Release {
        handle: u64,
    },
    Flush,
    FSync {
        handle: u64,
        data_only: bool,
    },
    SetXAttr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXAttr {
        name: &'a CStr,
        size: u32,
    },
    ListXAttr {
        size: u32,
    },
    RemoveXAttr(&'a CStr),
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    FSyncDir {
        handle: u64,
        data_only: bool,
    },
    FAllocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    LSeek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        length: u64,
        flags: u64,
    },
    /// Wants no answer.
    NotifyReply,
    /// Not served.
    Other,
}

impl Header {
    /// Splits a whole request into its header and its body.
    pub(crate) fn split(request: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut reader = Reader(request);
        let length = reader.u32()?;
        let opcode = reader.u32()?;
        let unique = reader.u64()?;
        let node = reader.u64()?;
        // User, group, process: nothing on the host goes by them.
        reader.skip(12)?;
        let extensions = usize::from(reader.u16()?) * 8;
        reader.skip(2)?;
        if usize::try_from(length) != Ok(request.len()) || extensions > reader.0.len() {
            return Err(Malformed);
        }
        // They come last, and none is asked for.
        Ok((Self { opcode, unique, node }, &reader.0[..reader.0.len() - extensions]))
    }
}

impl<'a> Request<'a> {
    /// Reads the body of a request.
    pub(crate) fn parse(header: &Header, body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader(body);
        Ok(match header.opcode {
            1 => Self::Lookup(r.name()?),
            2 => Self::Forget(r.u64()?),
            3 => {
                let flags = r.u32()?;
                r.skip(4)?;
                let handle = r.u64()?;
                Self::GetAttr { handle: (flags & GETATTR_HANDLE != 0).then_some(handle) }
            }
            4 => Self::set_attr(r)?,
            5 => Self::ReadLink,
            6 => Self::Symlink { name: r.name()?, target: r.name()? },
            8 => {
                let mode = r.u32()?;
                r.skip(12)?;
                Self::MkNod { name: r.name()?, mode }
            }
            9 => {
                let mode = r.u32()?;
                r.skip(4)?;
                Self::MkDir { name: r.name()?, mode }
            }
            10 => Self::Unlink(r.name()?),
            11 => Self::RmDir(r.name()?),
            12 => {
                let to = r.u64()?;
                Self::Rename { name: r.name()?, to, new_name: r.name()?, flags: 0 }
            }
            45 => {
                let (to, flags) = (r.u64()?, r.u32()?);
                r.skip(4)?;
                Self::Rename { name: r.name()?, to, new_name: r.name()?, flags }
            }
            13 => Self::Link { node: r.u64()?, name: r.name()? },
            14 => Self::Open { flags: r.u32()? },
            15 | 28 | 44 => {
                let (handle, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
                r.skip(20)?;
                if header.opcode == 15 {
                    Self::Read { handle, offset, size }
                } else {
                    Self::ReadDir { handle, offset, size, plus: header.opcode == 44 }
                }
            }
            16 => {
                let (handle, offset, size, write_flags) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
                r.skip(8)?;
                let flags = r.u32()?;
                r.skip(4)?;
                let data = r.exactly(size)?;
                Self::Write { handle, offset, cached: write_flags & WRITE_CACHE != 0, flags, data }
            }
            17 => Self::StatFs,
            18 => Self::Release { handle: r.u64()? },
            29 => Self::ReleaseDir { handle: r.u64()? },
            20 | 30 => {
                let (handle, flags) = (r.u64()?, r.u32()?);
                let data_only = flags & FSYNC_DATA != 0;
                if header.opcode == 20 {
                    Self::FSync { handle, data_only }
                } else {
                    Self::FSyncDir { handle, data_only }
                }
            }
            21 => {
                let (size, flags) = (r.u32()?, r.u32()?);
                Self::SetXAttr { name: r.name()?, value: r.exactly(size)?, flags }
            }
            22 => {
                let size = r.u32()?;
                r.skip(4)?;
                Self::GetXAttr { name: r.name()?, size }
            }
            23 => Self::ListXAttr { size: r.u32()? },
            24 => Self::RemoveXAttr(r.name()?),
            25 => Self::Flush,
            26 => {
                let (major, minor, max_readahead) = (r.u32()?, r.u32()?, r.u32()?);
                let flags = u64::from(r.u32()?);
                let more = if flags & init::INIT_EXT == 0 { 0 } else { r.u32()? };
                Self::Init { major, minor, max_readahead, flags: flags | u64::from(more) << 32 }
            }
            27 => Self::OpenDir,
            35 => {
                let (flags, mode) = (r.u32()?, r.u32()?);
                r.skip(8)?;
                Self::Create { name: r.name()?, flags, mode }
            }
            38 => Self::Destroy,
            41 => Self::NotifyReply,
            42 => {
                let count = r.u32()?;
                r.skip(4)?;
                let length = usize::try_from(count).ok().and_then(|n| n.checked_mul(16)).ok_or(Malformed)?;
                Self::BatchForget(Forgets(r.take(length)?))
            }
            43 => {
                let (handle, offset, length, mode) = (r.u64()?, r.u64()?, r.u64()?, r.u32()?);
                Self::FAllocate { handle, offset, length, mode }
            }
            46 => Self::LSeek { handle: r.u64()?, offset: r.u64()?, whence: r.u32()? },
            47 => {
                let (from, from_offset) = (r.u64()?, r.u64()?);
                r.skip(8)?;
                let (to, to_offset, length, flags) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
                Self::CopyFileRange { from, from_offset, to, to_offset, length, flags }
            }
            51 => Self::TmpFile { flags: r.u32()?, mode: r.u32()? },
            _ => Self::Other,
        })
    }

    fn set_attr(mut r: Reader<'a>) -> Result<Self, Malformed> {
        let valid = r.u32()?;
        r.skip(4)?;
        let (handle, size) = (r.u64()?, r.u64()?);
        r.skip(8)?;
        let (atime, mtime) = (r.u64()?, r.u64()?);
        r.skip(8)?;
        let (atime_ns, mtime_ns) = (r.u32()?, r.u32()?);
        r.skip(4)?;
        let mode = r.u32()?;
        r.skip(16)?;
        let time = |at, now, seconds: u64, nanoseconds| match (valid & at != 0, valid & now != 0) {
            (false, _) => Time::Leave,
            (true, true) => Time::Now,
            (true, false) => Time::At { seconds: seconds.cast_signed(), nanoseconds },
        };
        Ok(Self::SetAttr {
            handle: (valid & set::HANDLE != 0).then_some(handle),
            size: (valid & set::SIZE != 0).then_some(size),
            mode: (valid & set::MODE != 0).then_some(mode),
            atime: time(set::ATIME, set::ATIME_NOW, atime, atime_ns),
            mtime: time(set::MTIME, set::MTIME_NOW, mtime, mtime_ns),
        })
    }
}

/// Nodes that the guest has forgotten, each with how often it had looked it up.
#[derive(Debug)]
pub(crate) struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader(self.0);
        let one = (reader.u64().ok()?, reader.u64().ok()?);
        self.0 = reader.0;
        Some(one)
    }
}

/// Takes numbers and names off the beginning of some bytes.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.take(length).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// All that is left, which is to be so much.
    fn exactly(&mut self, size: u32) -> Result<&'a [u8], Malformed> {
        if usize::try_from(size) != Ok(self.0.len()) {
            return Err(Malformed);
        }
        self.take(self.0.len())
    }

    fn name(&mut self) -> Result<&'a CStr, Malformed> {
        let name = CStr::from_bytes_until_nul(self.0).map_err(|_| Malformed)?;
        self.0 = &self.0[name.count_bytes() + 1..];
        Ok(name)
    }
}

/// A file's attributes, as the guest sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    /// Access, modification and change: seconds and nanoseconds.
    pub(crate) times: [(i64, u32); 3],
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) device: u32,
    pub(crate) block_size: u32,
}

/// A reply in the making.
#[derive(Debug)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    /// An empty one in the place of another, whose memory it takes.
    pub(crate) fn new(mut memory: Vec<u8>) -> Self {
        memory.clear();
        memory.resize(REPLY_HEADER, 0);
        Self(memory)
    }

    /// Forgets what was written into it.
    pub(crate) fn clear(&mut self) {
        self.0.truncate(REPLY_HEADER);
    }

    /// Bytes of its body.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - REPLY_HEADER
    }

    /// The reply as it goes to the guest; an error's has no body.
    pub(crate) fn finish(mut self, unique: u64, error: i32) -> Vec<u8> {
        if error != 0 {
            self.clear();
        }
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[4..8].copy_from_slice(&(-error).to_le_bytes());
        self.0[8..REPLY_HEADER].copy_from_slice(&unique.to_le_bytes());
        self.0
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The memory behind what is there, of which as much is taken as `fill` says.
    pub(crate) fn fill<E>(&mut self, most: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let before = self.0.len();
        self.0.resize(before + most, 0);
        let filled = fill(&mut self.0[before..]);
        self.0.truncate(before + filled.as_ref().map_or(0, |filled| *filled));
        filled.map(drop)
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// The answer to INIT: `flags` are those that both sides have.
    pub(crate) fn init(&mut self, minor: u32, max_readahead: u32, flags: u64) {
        let halves = |flags: u64| (flags as u32, (flags >> 32) as u32);
        let (low, high) = halves(flags);
        for number in [MAJOR, MINOR.min(minor), max_readahead, low] {
            self.u32(number);
        }
        // How many requests the kernel may have under way that nobody waits for, and from which number on it holds back.
        self.bytes(&64_u16.to_le_bytes());
        self.bytes(&48_u16.to_le_bytes());
        self.u32(MAX_DATA as u32);
        if minor < 23 {
            return;
        }
        // Times are told to the nanosecond.
        self.u32(1);
        self.bytes(&((MAX_DATA / PAGE) as u16).to_le_bytes());
        self.bytes(&[0; 2]);
        self.u32(high);
        self.bytes(&[0; 28]);
    }

    /// What a name leads to; node 0 means nothing. Both are believed for so many seconds.
    pub(crate) fn entry(&mut self, node: u64, seconds: u64, attr: &Attr) {
        self.u64(node);
        self.u64(0);
        self.u64(seconds);
        self.u64(seconds);
        self.u64(0);
        self.attributes(attr);
    }

    /// A file's attributes, to be believed for so many seconds.
    pub(crate) fn attr(&mut self, seconds: u64, attr: &Attr) {
        self.u64(seconds);
        self.u64(0);
        self.attributes(attr);
    }

    fn attributes(&mut self, attr: &Attr) {
        for number in [attr.ino, attr.size, attr.blocks] {
            self.u64(number);
        }
        for (seconds, _) in attr.times {
            self.u64(seconds.cast_unsigned());
        }
        for (_, nanoseconds) in attr.times {
            self.u32(nanoseconds);
        }
        for number in [attr.mode, attr.links, attr.user, attr.group, attr.device, attr.block_size, 0] {
            self.u32(number);
        }
    }

    pub(crate) fn open(&mut self, handle: u64, flags: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(0);
    }

    /// One name of a directory, with padding behind it.
    pub(crate) fn name(&mut self, ino: u64, offset: u64, kind: u32, name: &[u8]) {
        self.u64(ino);
        self.u64(offset);
        self.u32(u32::try_from(name.len()).unwrap_or(0));
        self.u32(kind);
        self.bytes(name);
        self.bytes(&[0; 8][..name.len().next_multiple_of(8) - name.len()]);
    }

    /// Bytes of one name of a directory, with what it leads to or without.
    pub(crate) fn size_of_name(name: &[u8], plus: bool) -> usize {
        24 + name.len().next_multiple_of(8) + if plus { SIZE_OF_ENTRY } else { 0 }
    }
}

/// Bytes of what a name leads to.
const SIZE_OF_ENTRY: usize = 128;
