//! A tar archive, read entry by entry, as a layer of an image or a whole root.
//!
//! What a header says is read by the `tar` crate. How entries follow one another is read here, so that what an archive says of one file is bounded
//! before it is in memory, and that a `pax` header decides where the next entry is.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use data_encoding::BASE64;
use tar::{EntryType, Header};

use crate::{
    limits::{Exceeded, MAX_HEADERS},
    sparse,
};

const RECORD: usize = 512;

/// Why an archive, or a layer, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its bytes cannot be read, or are no compressed bytes of their kind.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// It ends before its end.
    #[error("it is cut short")]
    Cut,
    /// It is no archive.
    #[error("at byte {at} of the archive: {what}")]
    Header {
        /// Where, unpacked.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// What one entry asks for cannot be.
    #[error("{name:?}: {what}")]
    Entry {
        /// Its name, as it is written.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// It passes a bound.
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    /// What comes of it cannot be written.
    #[error("{0}")]
    Write(#[source] io::Error),
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permissions, with set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    /// Bytes of data that follow, those of the holes of a sparse file included.
    pub(crate) size: u64,
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
}

/// What is told before an entry.
#[derive(Default)]
struct Told {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u64>, Option<u64>),
    mtime: Option<(i64, u32)>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: sparse::Told,
}

/// Reads an archive.
pub(crate) struct Reader<R> {
    inner: R,
    /// Bytes of it that were read.
    at: u64,
    /// Bytes of the entry's data that were not, and of its padding.
    left: u64,
    padding: u64,
    /// Whether it came to its end mark.
    ended: bool,
    /// Where the entry's data belong, if it is a sparse file.
    map: Option<sparse::Map>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, at: 0, left: 0, padding: 0, ended: false, map: None }
    }

    /// Whether the archive says that it has ended; it was cut, perhaps, if it does not.
    pub(crate) fn has_end_mark(&self) -> bool {
        self.ended
    }

    /// Whether the entry's data have holes that are not in the archive.
    pub(crate) fn is_sparse(&self) -> bool {
        self.map.is_some()
    }

    /// Bytes that were read: behind a header it is where the entry's data begin.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Reads what follows the archive's end.
    pub(crate) fn drain(&mut self) -> Result<(), LayerError> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop).map_err(broken)
    }

    /// The next entry; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut told = Told::default();
        let mut headers = 0;
        loop {
            self.skip()?;
            let at = self.at;
            let Some(header) = self.header()? else { return Ok(None) };
            let wrong = |what: String| LayerError::Header { at, what };
            let number = |number: io::Result<u64>| number.map_err(|error| wrong(error.to_string()));
            let kind = header.entry_type();
            let size = number(header.entry_size())?;
            let is_extension = matches!(
                kind,
                EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
            );
            if is_extension {
                headers += size;
                if headers > MAX_HEADERS {
                    return Err(Exceeded::Headers.into());
                }
                self.begin(size);
                let mut text = Vec::new();
                Read::by_ref(self).take(size).read_to_end(&mut text).map_err(broken)?;
                if text.len() as u64 != size {
                    return Err(LayerError::Cut);
                }
                match kind {
                    EntryType::GNULongName => told.name = Some(until_nul(text)),
                    EntryType::GNULongLink => told.link = Some(until_nul(text)),
                    EntryType::XHeader => told.hear(&text).map_err(wrong)?,
                    // Of the archive as a whole: engines pass it over, too.
                    _ => {}
                }
                continue;
            }
            let of_pax = std::mem::take(&mut told.sparse);
            told.name = of_pax.name.clone().or(told.name);
            // Some archives give a hard link the size of its file, and no data.
            let has_data = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
            let stored = if has_data { told.size.unwrap_or(size) } else { 0 };
            let mut entry = told.entry(&header, stored).map_err(|(name, what)| LayerError::Entry { name, what })?;
            self.begin(stored);
            if entry.kind == Kind::File && (of_pax.any || kind == EntryType::GNUSparse) {
                self.find_map(&header, of_pax, &mut entry)?;
            }
            return Ok(Some(entry));
        }
    }

    /// Reads where the bytes of a sparse file belong.
    fn find_map(&mut self, header: &Header, of_pax: sparse::Told, entry: &mut Entry) -> Result<(), LayerError> {
        let mut block = || {
            let mut block = [0; RECORD];
            self.inner.read_exact(&mut block)?;
            self.at += RECORD as u64;
            Ok(block)
        };
        let map = if of_pax.any {
            let map = of_pax.map(entry.size, block);
            // What was read of the data was the map.
            map.inspect(|map| self.left = map.stored)
        } else {
            sparse::of_gnu(header, entry.size, &mut block)
        };
        let map = map.map_err(|error| match broken(error) {
            LayerError::Read(error) => LayerError::Entry { name: shown(&entry.path), what: error.to_string() },
            other => other,
        })?;
        entry.size = map.size;
        self.map = Some(map);
        Ok(())
    }

    fn begin(&mut self, size: u64) {
        self.map = None;
        self.left = size;
        self.padding = (RECORD as u64 - size % RECORD as u64) % RECORD as u64;
    }

    /// Goes to the end of what the entry before has.
    fn skip(&mut self) -> Result<(), LayerError> {
        let rest = self.left.checked_add(self.padding).ok_or(LayerError::Cut)?;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink()).map_err(broken)?;
        self.at += skipped;
        if skipped == rest { Ok(()) } else { Err(LayerError::Cut) }
    }

    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut block = [0; RECORD];
        let mut have = 0;
        while have < RECORD {
            match self.inner.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(LayerError::Cut),
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        let at = self.at;
        self.at += RECORD as u64;
        if block.iter().all(|&byte| byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 =
            block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
        match header.cksum() {
            Ok(said) if said == sum => Ok(Some(header)),
            _ => Err(LayerError::Header { at, what: "it is no header of a tar archive".to_owned() }),
        }
    }
}

impl<R: Read + io::Seek> Reader<io::BufReader<R>> {
    /// Goes to the next entry without reading what is between. Where that is not there, the next entry is not, either.
    pub(crate) fn jump(&mut self) -> Result<(), LayerError> {
        let rest = self.left.checked_add(self.padding).ok_or(LayerError::Cut)?;
        (self.left, self.padding) = (0, 0);
        self.at = self.at.checked_add(rest).ok_or(LayerError::Cut)?;
        let rest = i64::try_from(rest).map_err(|_| LayerError::Cut)?;
        self.inner.seek_relative(rest).map_err(broken)
    }
}

/// The data of the entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some(mut map) = self.map.take() else { return self.stored(out) };
        let read = map.read(out, Stored(self));
        self.map = Some(map);
        read
    }
}

/// The data of an entry as they are in the archive.
struct Stored<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Stored<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.stored(out)
    }
}

impl<R: Read> Reader<R> {
    fn stored(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut out[..most])?;
        self.left -= read as u64;
        self.at += read as u64;
        Ok(read)
    }
}

/// A cut stream is told as such, whoever noticed.
pub(crate) fn broken(error: io::Error) -> LayerError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Cut,
        // What counts the bytes says so by an error of its own.
        _ => match error.get_ref().and_then(|inner| inner.downcast_ref::<Exceeded>()) {
            Some(exceeded) => exceeded.clone().into(),
            None => LayerError::Read(error),
        },
    }
}

/// A name for a person.
pub(crate) fn shown(name: &[u8]) -> String {
    const MOST: usize = 300;
    let text = String::from_utf8_lossy(&name[..name.len().min(MOST)]).into_owned();
    if name.len() > MOST { format!("{text}…") } else { text }
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    text.truncate(end);
    text
}

/// The records of a `pax` header, `LENGTH KEY=VALUE` and a newline each (pax(1)). A value may be of any bytes, newlines among them: those of a
/// capability or an ACL are.
struct PaxRecords<'a>(&'a [u8]);

impl<'a> PaxRecords<'a> {
    fn record(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().take(20).position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&self.0[..space]).ok()?.parse().ok()?;
        let (record, rest) = self.0.split_at_checked(length)?;
        let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = body.iter().position(|&byte| byte == b'=')?;
        self.0 = rest;
        Some((&body[..equals], &body[equals + 1..]))
    }
}

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.record().ok_or_else(|| "its pax header is malformed".to_owned());
        if record.is_err() {
            self.0 = &[];
        }
        Some(record)
    }
}

impl Told {
    /// Hears a `pax` header.
    fn hear(&mut self, text: &[u8]) -> Result<(), String> {
        for record in PaxRecords(text) {
            let (key, value) = record?;
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            let wanted = |number: Option<u64>| {
                number.map(Some).ok_or_else(|| format!("{:?} is no number: {:?}", shown(key), shown(value)))
            };
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = wanted(number())?,
                b"uid" => self.owner.0 = wanted(number())?,
                b"gid" => self.owner.1 = wanted(number())?,
                b"mtime" => self.mtime = Some(time(value).ok_or_else(|| format!("{:?} is no time", shown(value)))?),
                _ => {
                    if let Some(word) = key.strip_prefix(b"GNU.sparse.") {
                        self.sparse.hear(word, value)?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.attributes.insert(name.to_vec(), value.to_vec());
                    } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                        // bsdtar writes both, and this one in base 64.
                        let value = BASE64.decode(value).or_else(|_| data_encoding::BASE64_NOPAD.decode(value));
                        let value = value.map_err(|_| format!("{:?} is not in base 64", shown(key)))?;
                        self.attributes.entry(name.to_vec()).or_insert(value);
                    }
                }
            }
        }
        Ok(())
    }

    /// The entry of which all this was told.
    fn entry(self, header: &Header, stored: u64) -> Result<Entry, (String, String)> {
        let path = self.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = shown(&path);
        let wrong = |what: &str| (name.clone(), what.to_owned());
        let old = header.as_old();
        // A field that nobody filled in is a zero, as it is for others who read archives.
        let filled = |field: &[u8], number: io::Result<u64>| {
            if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(0) } else { number }
        };
        let number = |told: Option<u64>, own: io::Result<u64>, what| match told.map_or(own, Ok) {
            Ok(number) => u32::try_from(number).map_err(|_| wrong(&format!("its {what} {number} is too large"))),
            Err(_) => Err(wrong(&format!("its {what} is no number"))),
        };
        let link = || {
            self.link.clone().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default()
        };
        let device = || -> Result<u32, (String, String)> {
            let part =
                |part: io::Result<Option<u32>>| part.ok().flatten().ok_or_else(|| wrong("its device has no number"));
            let (major, minor) = (part(header.device_major())?, part(header.device_minor())?);
            if major >= 1 << 12 || minor >= 1 << 20 {
                return Err(wrong("the number of its device is too large"));
            }
            Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::Hardlink(link()),
            EntryType::Char => Kind::CharDevice(device()?),
            EntryType::Block => Kind::BlockDevice(device()?),
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(wrong(&format!("its kind {:?} is not known", char::from(other.as_byte()))));
            }
        };
        let mode =
            filled(&old.mode, header.mode().map(u64::from)).map_err(|_| wrong("its mode is no number"))? & 0o7777;
        let (user, group) = (filled(&old.uid, header.uid()), filled(&old.gid, header.gid()));
        let owner = (number(self.owner.0, user, "owner")?, number(self.owner.1, group, "group")?);
        let mtime =
            self.mtime.unwrap_or_else(|| (header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0));
        // What is a file by its kind and a directory by its name has nothing of what may follow.
        let size = if kind == Kind::File { stored } else { 0 };
        Ok(Entry { path, kind, mode: mode as u16, owner, mtime, size, attributes: self.attributes })
    }
}

/// `pax`'s time: seconds with a fraction, before 1970 too.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.1234567891"), Some((1, 123_456_789)));
        for wrong in [&b""[..], b"x", b"1.x", b"1.-5"] {
            assert_eq!(time(wrong), None);
        }
    }

    fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, LayerError> {
        let mut reader = Reader::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data).map_err(broken)?;
            all.push((entry, data));
        }
        Ok(all)
    }

    #[test]
    fn what_tar_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let long = "l".repeat(200);
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d").join(&long), vec![7; 1000]).unwrap();
        std::os::unix::fs::symlink("x".repeat(150), dir.path().join("d/link")).unwrap();
        for format in ["gnu", "posix", "v7"] {
            let mut tar = std::process::Command::new("tar");
            tar.arg("-C").arg(dir.path()).args(["--format", format, "--sort=name", "-cf", "-"]);
            // The oldest format has no room for such names.
            tar.arg(if format == "v7" { "--exclude=d/*" } else { "--numeric-owner" }).arg("d");
            let bytes = tar.output().unwrap().stdout;
            let all = entries(&bytes).unwrap();
            assert_eq!((all[0].0.path.as_slice(), &all[0].0.kind), (&b"d/"[..], &Kind::Directory), "{format}");
            if format != "v7" {
                assert_eq!(all[1].0.kind, Kind::Symlink("x".repeat(150).into_bytes()));
                assert_eq!(all[2].0.path, format!("d/{long}").into_bytes());
                assert_eq!(all[2].1, vec![7; 1000]);
            }
            assert!(matches!(entries(&bytes[..1000]), Ok(_) | Err(LayerError::Cut)));
        }
    }

    #[test]
    fn sparse_files_are_whole_however_they_are_packed() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let hole = std::fs::File::create(path("a")).unwrap();
        hole.set_len(1 << 20).unwrap();
        // More runs than fit into a header, and than a block of the map.
        let many = std::fs::File::create(path("b")).unwrap();
        for at in 0..100 {
            many.write_all_at(format!("run {at}").as_bytes(), at * 20_000).unwrap();
        }
        many.set_len(2_000_001).unwrap();
        std::fs::write(path("c"), "behind").unwrap();
        for options in [
            &["--format=gnu"][..],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ] {
            let mut tar = std::process::Command::new("tar");
            tar.arg("-C").arg(dir.path()).args(options).args(["--sparse", "-cf", "-", "a", "b", "c"]);
            let bytes = tar.output().unwrap().stdout;
            assert!(bytes.len() < 1_000_000, "{options:?}: it is packed as sparse");
            let all = entries(&bytes).unwrap_or_else(|error| panic!("{options:?}: {error}"));
            for ((entry, data), name) in all.iter().zip(["a", "b", "c"]) {
                assert_eq!(entry.path, name.as_bytes(), "{options:?}");
                assert!(*data == std::fs::read(path(name)).unwrap(), "{options:?}: {name}");
                assert_eq!(entry.size, data.len() as u64);
            }
            assert_eq!(all.len(), 3);
            // Without reading what is between, too.
            let mut reader = Reader::new(io::BufReader::new(io::Cursor::new(&bytes)));
            let mut names = Vec::new();
            while let Some(entry) = reader.next().unwrap() {
                names.push(entry.path);
                reader.jump().unwrap();
            }
            assert_eq!(names, [b"a", b"b", b"c"], "{options:?}");
            for cut in [600, 1100, 1600, 3000, 5000] {
                assert!(entries(&bytes[..cut]).is_err(), "{options:?} {cut}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn a_sparse_file_that_was_changed_is_read_or_refused(at in 0usize..4096, byte: u8, which in 0usize..4) {
            let dir = tempfile::tempdir().unwrap();
            let file = std::fs::File::create(dir.path().join("f")).unwrap();
            for at in [70_000, 200_000, 300_000, 400_000, 500_000, 600_000] {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
            }
            let options = [&["--format=gnu"][..], &["--sparse-version=0.0"], &["--sparse-version=0.1"], &["--sparse-version=1.0"]];
            let mut tar = std::process::Command::new("tar");
            if which > 0 { tar.arg("--format=posix"); }
            tar.arg("-C").arg(dir.path()).args(options[which]).args(["--sparse", "-cf", "-", "f"]);
            let mut bytes = tar.output().unwrap().stdout;
            bytes[at] = byte;
            let mut reader = Reader::new(&bytes[..]);
            while let Ok(Some(entry)) = reader.next() {
                // As many bytes as are said, or an error; a size that is a lie is the sink's to refuse.
                let most = entry.size.min(1 << 22);
                let mut data = Vec::new();
                if Read::by_ref(&mut reader).take(most).read_to_end(&mut data).is_ok() && data.len() as u64 != most {
                    proptest::prop_assert!(reader.left > 0 || reader.skip().is_err(), "{} of {most}", data.len());
                }
            }
        }
    }

    #[test]
    fn headers_are_bounded() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        let error = entries(header.as_bytes()).unwrap_err();
        assert!(matches!(error, LayerError::Exceeded(Exceeded::Headers)), "{error}");
    }

    #[test]
    fn what_is_no_archive_is_told() {
        assert!(matches!(entries(&[7; 512]), Err(LayerError::Header { at: 0, .. })));
        assert!(matches!(entries(&[7; 100]), Err(LayerError::Cut)));
    }
}
