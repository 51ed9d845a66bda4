//! The archive: POSIX tar (`ustar`) with `pax` headers, as `tar` reads it.
//!
//! What does not fit into a header, or would lose something there, comes in a `pax` header before it: long names, nanoseconds, large
//! files and numbers. Two types of entries are this program's own: `W` says that the file of that name is gone, and `H` is a file with holes, whose data are
//! its pieces: where each begins (8 bytes, little-endian), how long it is (8), and its bytes. The reader takes what the writer writes and nothing
//! else, for nobody else writes these archives.

use std::io::{self, Read, Write};

const RECORD: usize = 512;
/// Most bytes of a `pax` header: two names.
const MAX_PAX: u64 = 64 * 1024;
/// Most bytes of a name in an archive.
pub const MAX_NAME: usize = 16 * 1024;
/// Bytes before each piece of a file with holes.
pub const PIECE_HEADER: usize = 16;
/// Numbers of owners that fit into seven octal digits, and sizes that fit into eleven.
const MAX_OWNER: u64 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names, with slashes between them.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// When its content was changed last, in seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Bytes of a file that follow: those of the archive, which for a file with holes are not its size.
    pub size: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A regular file of this size with holes; its data are pieces ([`PIECE_HEADER`]).
    Sparse(u64),
    /// A directory.
    Directory,
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// The same file as that of this path in the archive's tree.
    Hardlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Nothing is there any more.
    Gone,
}

impl Kind {
    /// Whether it is a regular file with data of its own.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File | Self::Sparse(_))
    }

    fn flag(&self) -> u8 {
        match self {
            Self::File => b'0',
            Self::Sparse(_) => b'H',
            Self::Hardlink(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::Directory => b'5',
            Self::Fifo => b'6',
            Self::Gone => b'W',
        }
    }

    fn link(&self) -> &[u8] {
        match self {
            Self::Symlink(to) | Self::Hardlink(to) => to,
            _ => &[],
        }
    }
}

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Bytes of the entry that are still to come.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// An archive in which nothing is yet.
    pub fn new(out: W) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Begins an entry. The data of a file follow by [`data`](Self::data), exactly as many bytes as were said.
    ///
    /// # Errors
    /// Those of the output, and `InvalidInput` for an entry before which one was not ended.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pax = pax_of(entry);
        if !pax.is_empty() {
            self.header(b"pax", b'x', pax.len() as u64, entry, b"")?;
            self.out.write_all(&pax)?;
            self.out.write_all(&[0; RECORD][..padding(pax.len() as u64)])?;
        }
        self.header(&entry.path, entry.kind.flag(), entry.size, entry, entry.kind.link())?;
        self.left = entry.size;
        self.padding = padding(entry.size);
        Ok(())
    }

    /// Writes data of the entry that was begun last.
    ///
    /// # Errors
    /// Those of the output, and `InvalidInput` for more than was said.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.out.write_all(bytes)?;
        if self.left == 0 {
            self.out.write_all(&[0; RECORD][..std::mem::take(&mut self.padding)])?;
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of the output, and `InvalidInput` where data are missing.
    pub fn end(mut self) -> io::Result<W> {
        if self.left > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.out.write_all(&[0; 2 * RECORD])?;
        Ok(self.out)
    }

    fn header(&mut self, path: &[u8], flag: u8, size: u64, entry: &Entry, link: &[u8]) -> io::Result<()> {
        let mut header = [0; RECORD];
        let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
        header[..path.len().min(100)].copy_from_slice(&cut(path));
        put_octal(&mut header[100..108], u64::from(entry.mode & 0o7777));
        put_octal(&mut header[108..116], u64::from(entry.owner.0).min(MAX_OWNER));
        put_octal(&mut header[116..124], u64::from(entry.owner.1).min(MAX_OWNER));
        put_octal(&mut header[124..136], if size > MAX_SIZE { 0 } else { size });
        put_octal(&mut header[136..148], u64::try_from(entry.mtime.0).unwrap_or(0).min(MAX_SIZE));
        header[148..156].fill(b' ');
        header[156] = flag;
        header[157..157 + link.len().min(100)].copy_from_slice(&cut(link));
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        put_octal(&mut header[148..155], sum);
        self.out.write_all(&header)
    }
}

/// Octal digits and a NUL.
fn put_octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(text.as_bytes());
}

fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(RECORD as u64) - size).unwrap_or(0)
}

/// What the header cannot say.
fn pax_of(entry: &Entry) -> Vec<u8> {
    let mut pax = Vec::new();
    let mut add = |key: &str, value: &[u8]| {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        pax.extend_from_slice(format!("{length} {key}=").as_bytes());
        pax.extend_from_slice(value);
        pax.push(b'\n');
    };
    if entry.path.len() > 100 {
        add("path", &entry.path);
    }
    if entry.kind.link().len() > 100 {
        add("linkpath", entry.kind.link());
    }
    if let Kind::Sparse(size) = entry.kind {
        add("realsize", size.to_string().as_bytes());
    }
    if entry.size > MAX_SIZE {
        add("size", entry.size.to_string().as_bytes());
    }
    let (seconds, nanoseconds) = entry.mtime;
    if nanoseconds > 0 || u64::try_from(seconds).is_ok_and(|seconds| seconds > MAX_SIZE) || seconds < 0 {
        // A number of seconds, with a fraction that is added to it.
        let nanoseconds = nanoseconds.min(999_999_999);
        let text = match (seconds < 0, nanoseconds) {
            (true, 1..) => {
                let whole = (seconds + 1).unsigned_abs();
                format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
            }
            _ => format!("{seconds}.{nanoseconds:09}"),
        };
        add("mtime", text.as_bytes());
    }
    for (key, owner) in [("uid", entry.owner.0), ("gid", entry.owner.1)] {
        if u64::from(owner) > MAX_OWNER {
            add(key, owner.to_string().as_bytes());
        }
    }
    pax
}

/// Why an archive is none.
#[derive(Debug)]
pub enum TarError {
    /// It cannot be read.
    Io(io::Error),
    /// It is not as the writer writes it.
    Malformed(&'static str),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Malformed("it ends in the middle"),
            _ => Self::Io(error),
        }
    }
}

/// Reads an archive.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    left: u64,
    padding: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// An archive at its beginning.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, ended: false }
    }

    /// The next entry; none at the end. What of the data of the one before was not read is passed over.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut scratch = [0; 16 * 1024];
        while self.data(&mut scratch)? > 0 {}
        if self.ended {
            return Ok(None);
        }
        let mut more = Pax::default();
        let mut header = self.record()?;
        if header[156] == b'x' && header != [0; RECORD] {
            check(&header)?;
            let size = octal(&header[124..136])?;
            if size > MAX_PAX {
                return Err(TarError::Malformed("a pax header is too long"));
            }
            let mut pax = vec![0; usize::try_from(size).unwrap_or(0)];
            self.input.read_exact(&mut pax)?;
            self.input.read_exact(&mut scratch[..padding(size)])?;
            more = Pax::of(&pax)?;
            header = self.record()?;
            if header[156] == b'x' {
                return Err(TarError::Malformed("two pax headers in a row"));
            }
        }
        if header == [0; RECORD] {
            if self.record()? != [0; RECORD] {
                return Err(TarError::Malformed("it goes on after its end"));
            }
            self.ended = true;
            return Ok(None);
        }
        check(&header)?;
        let entry = entry_of(&header, more)?;
        self.left = entry.size;
        self.padding = padding(entry.size);
        Ok(Some(entry))
    }

    /// Reads data of the entry; gives how many bytes, 0 at the end.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn data(&mut self, into: &mut [u8]) -> Result<usize, TarError> {
        if self.left == 0 {
            self.input.read_exact(&mut [0; RECORD][..std::mem::take(&mut self.padding)])?;
            return Ok(0);
        }
        let wanted = usize::try_from(self.left).unwrap_or(into.len()).min(into.len());
        let read = self.input.read(&mut into[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(TarError::Malformed("it ends in the middle"));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Where the next piece of a file with holes begins, and how long it is; none after the last. Its data are to be read before.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn piece(&mut self) -> Result<Option<(u64, u64)>, TarError> {
        const CUT: TarError = TarError::Malformed("a piece of a file is cut");
        let mut header = [0; PIECE_HEADER];
        let mut filled = 0;
        while filled < PIECE_HEADER {
            match self.data(&mut header[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(CUT),
                read => filled += read,
            }
        }
        let [offset, length] =
            [0, 8].map(|at| header[at..at + 8].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)));
        if length > self.left { Err(CUT) } else { Ok(Some((offset, length))) }
    }

    /// What was read from.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn record(&mut self) -> Result<[u8; RECORD], TarError> {
        let mut record = [0; RECORD];
        self.input.read_exact(&mut record)?;
        Ok(record)
    }
}

fn check(header: &[u8; RECORD]) -> Result<(), TarError> {
    let mut counted = *header;
    counted[148..156].fill(b' ');
    let sum: u64 = counted.iter().map(|&byte| u64::from(byte)).sum();
    if octal(&header[148..155])? != sum || header[257..265] != *b"ustar\x0000" {
        return Err(TarError::Malformed("a header is damaged"));
    }
    Ok(())
}

fn octal(field: &[u8]) -> Result<u64, TarError> {
    let digits = field.strip_suffix(b"\0").ok_or(TarError::Malformed("a number is none"))?;
    digits.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'7' => Ok(value * 8 + u64::from(byte - b'0')),
        _ => Err(TarError::Malformed("a number is none")),
    })
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()
}

fn entry_of(header: &[u8; RECORD], more: Pax) -> Result<Entry, TarError> {
    let owner = |at: usize, more: Option<u32>| match more {
        Some(owner) => Ok(owner),
        None => u32::try_from(octal(&header[at..at + 8])?).map_err(|_| TarError::Malformed("a number is none")),
    };
    let link = more.link.unwrap_or_else(|| text(&header[157..257]));
    let kind = match header[156] {
        b'0' => Kind::File,
        b'H' => Kind::Sparse(more.real_size.ok_or(TarError::Malformed("a file with holes has no size"))?),
        b'1' => Kind::Hardlink(link),
        b'2' => Kind::Symlink(link),
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'W' => Kind::Gone,
        _ => return Err(TarError::Malformed("an entry is of a kind that nobody writes")),
    };
    let size = match more.size {
        Some(size) => size,
        None => octal(&header[124..136])?,
    };
    if size > 0 && !kind.is_file() {
        return Err(TarError::Malformed("something has data that is no file"));
    }
    let mtime = match more.mtime {
        Some(mtime) => mtime,
        None => (i64::try_from(octal(&header[136..148])?).unwrap_or(0), 0),
    };
    Ok(Entry {
        path: more.path.unwrap_or_else(|| text(&header[..100])),
        kind,
        mode: u32::try_from(octal(&header[100..108])?).unwrap_or(0) & 0o7777,
        owner: (owner(108, more.uid)?, owner(116, more.gid)?),
        mtime,
        size,
    })
}

/// What a `pax` header says.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    mtime: Option<(i64, u32)>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Pax {
    fn of(mut rest: &[u8]) -> Result<Self, TarError> {
        const BAD: TarError = TarError::Malformed("a pax header is damaged");
        let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        let mut pax = Self::default();
        while !rest.is_empty() {
            let space = rest.iter().take(8).position(|&byte| byte == b' ').ok_or(BAD)?;
            let length = number(&rest[..space]).and_then(|length| usize::try_from(length).ok()).ok_or(BAD)?;
            let record = rest.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or(BAD)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" | b"linkpath" if value.len() > MAX_NAME || value.contains(&0) => return Err(BAD),
                b"path" => pax.path = Some(value.to_vec()),
                b"linkpath" => pax.link = Some(value.to_vec()),
                b"size" => pax.size = Some(number(value).filter(|&size| size < 1 << 62).ok_or(BAD)?),
                b"realsize" => pax.real_size = Some(number(value).filter(|&size| size < 1 << 62).ok_or(BAD)?),
                b"mtime" => pax.mtime = Some(time(value).ok_or(BAD)?),
                b"uid" => pax.uid = Some(number(value).and_then(|n| u32::try_from(n).ok()).ok_or(BAD)?),
                b"gid" => pax.gid = Some(number(value).and_then(|n| u32::try_from(n).ok()).ok_or(BAD)?),
                _ => return Err(BAD),
            }
            rest = &rest[length..];
        }
        Ok(pax)
    }
}

/// Seconds with nine digits of a fraction.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (seconds, fraction) = std::str::from_utf8(value).ok()?.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if fraction.len() != 9 || !digits(fraction) || !digits(seconds.strip_prefix('-').unwrap_or(seconds)) {
        return None;
    }
    let nanoseconds: u32 = fraction.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    match (seconds.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((whole, nanoseconds)),
    }
}
