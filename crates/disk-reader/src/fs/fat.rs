//! FAT with entries of 12, 16 and 32 bits, with long names. Source: Microsoft's "FAT: General Overview of On-Disk Format", 1.03.

use super::{FileError, FileSystem, Kind, MAX_ENTRIES, Stat};
use crate::bytes::{le16, le32};
use crate::disk::Part;

const ENTRY: usize = 32;
const LONG_NAME: u8 = 0x0f;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// Bytes of a directory that are read.
const MAX_DIRECTORY: usize = 4 << 20;
/// What a larger FAT than any has would take.
const MAX_FAT: u64 = 1 << 30;

pub(super) struct Fat {
    part: Part,
    width: Width,
    cluster: u64,
    fat: u64,
    /// Where cluster 2 is.
    data: u64,
    clusters: u32,
    root: Root,
    /// Where reading went on last: first cluster of the file, index of the cluster in it, the cluster.
    last: Option<(u32, u64, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

enum Root {
    /// In a place of its own: offset and bytes.
    Fixed(u64, usize),
    /// As any directory.
    Cluster(u32),
}

struct Entry {
    name: String,
    short: String,
    attributes: u8,
    first: u32,
    size: u32,
}

fn broken(said: &str) -> FileError {
    FileError::FileSystem { kind: "FAT", said: said.to_owned() }
}

impl Fat {
    pub(super) fn open(part: &Part) -> Result<Self, FileError> {
        let boot = part.bytes(0, 512)?;
        Self::parse(part, &boot).ok_or_else(|| broken("its first sector makes no sense"))
    }

    fn parse(part: &Part, boot: &[u8]) -> Option<Self> {
        let sector = u64::from(le16(boot, 11)?);
        let per_cluster = u64::from(*boot.get(13)?);
        if !matches!(sector, 512 | 1024 | 2048 | 4096) || !per_cluster.is_power_of_two() {
            return None;
        }
        let reserved = u64::from(le16(boot, 14)?);
        let copies = u64::from(*boot.get(16)?);
        let root_entries = usize::from(le16(boot, 17)?);
        let sectors = match le16(boot, 19)? {
            0 => u64::from(le32(boot, 32)?),
            n => u64::from(n),
        };
        let fat_sectors = match le16(boot, 22)? {
            0 => u64::from(le32(boot, 36)?),
            n => u64::from(n),
        };
        let root_sectors = (root_entries * ENTRY).div_ceil(usize::try_from(sector).ok()?) as u64;
        let fat = reserved * sector;
        let root = (reserved + copies * fat_sectors) * sector;
        let data = root + root_sectors * sector;
        let clusters = u32::try_from(sectors.checked_sub(data / sector)? / per_cluster).ok()?;
        if fat_sectors == 0 || copies == 0 || fat_sectors * sector > MAX_FAT {
            return None;
        }
        let width = match clusters {
            0..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        let root = if width == Width::ThirtyTwo {
            Root::Cluster(le32(boot, 44)?)
        } else {
            Root::Fixed(root, root_entries * ENTRY)
        };
        Some(Self { part: part.clone(), width, cluster: per_cluster * sector, fat, data, clusters, root, last: None })
    }

    /// The cluster behind one; none at the end.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FileError> {
        let n = u64::from(cluster);
        let (value, end) = match self.width {
            Width::Twelve => {
                let pair = self.part.bytes(self.fat + n + n / 2, 2)?;
                let both = le16(&pair, 0).unwrap_or(0);
                (u32::from(if n % 2 == 0 { both & 0xfff } else { both >> 4 }), 0xff8)
            }
            Width::Sixteen => (u32::from(le16(&self.part.bytes(self.fat + 2 * n, 2)?, 0).unwrap_or(0)), 0xfff8),
            Width::ThirtyTwo => {
                (le32(&self.part.bytes(self.fat + 4 * n, 4)?, 0).unwrap_or(0) & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        if value >= end {
            return Ok(None);
        }
        self.place(value)?;
        Ok(Some(value))
    }

    /// Where a cluster is.
    fn place(&self, cluster: u32) -> Result<u64, FileError> {
        let index = cluster.checked_sub(2).filter(|&index| index < self.clusters);
        let index = index.ok_or_else(|| broken("a chain of clusters leads out of the file system"))?;
        Ok(self.data + u64::from(index) * self.cluster)
    }

    fn directory(&self, first: Option<u32>) -> Result<Vec<Entry>, FileError> {
        let first = match (first, &self.root) {
            (None, Root::Fixed(at, length)) => return Ok(entries(&self.part.bytes(*at, *length)?)),
            (None, Root::Cluster(cluster)) => *cluster,
            (Some(cluster), _) => cluster,
        };
        let length = usize::try_from(self.cluster).unwrap_or(MAX_DIRECTORY);
        let mut bytes = Vec::new();
        let mut cluster = Some(first);
        while let Some(here) = cluster {
            if bytes.len() + length > MAX_DIRECTORY {
                return Err(broken("a directory is too large, or its chain of clusters is a circle"));
            }
            bytes.extend(self.part.bytes(self.place(here)?, length)?);
            cluster = self.next(here)?;
        }
        Ok(entries(&bytes))
    }

    /// None for the topmost directory.
    fn find(&self, path: &str) -> Result<Option<Entry>, FileError> {
        let mut found: Option<Entry> = None;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let first = match &found {
                Some(entry) if entry.attributes & DIRECTORY == 0 => return Err(FileError::NotADirectory),
                Some(entry) => Some(entry.first),
                None => None,
            };
            let is_it = |entry: &Entry| {
                entry.name.to_lowercase() == name.to_lowercase() || entry.short.eq_ignore_ascii_case(name)
            };
            found = Some(self.directory(first)?.into_iter().find(is_it).ok_or(FileError::NotFound)?);
        }
        Ok(found)
    }
}

/// The entries in a directory's bytes, but for the volume's label and what was removed.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    let mut long: Vec<u16> = Vec::new();
    for entry in bytes.chunks_exact(ENTRY) {
        let attributes = entry[11];
        match entry[0] {
            0 => break,
            0xe5 => long.clear(),
            order if attributes & 0x3f == LONG_NAME => {
                if order & 0x40 != 0 {
                    long.clear();
                }
                // They come last part first.
                let units = [1..11, 14..26, 28..32].into_iter().flatten().step_by(2).filter_map(|at| le16(entry, at));
                let part: Vec<u16> = units.take_while(|&unit| unit != 0 && unit != 0xffff).collect();
                long.splice(0..0, part);
                long.truncate(260);
            }
            _ if attributes & VOLUME != 0 => long.clear(),
            _ => {
                let short = short_name(entry);
                let name = if long.is_empty() { short.clone() } else { String::from_utf16_lossy(&long) };
                long.clear();
                let high = u32::from(le16(entry, 20).unwrap_or(0)) << 16;
                let first = high | u32::from(le16(entry, 26).unwrap_or(0));
                found.push(Entry { name, short, attributes, first, size: le32(entry, 28).unwrap_or(0) });
                if found.len() == MAX_ENTRIES {
                    break;
                }
            }
        }
    }
    found
}

fn short_name(entry: &[u8]) -> String {
    let part = |range: std::ops::Range<usize>| String::from_utf8_lossy(&entry[range]).trim_end().to_owned();
    // Case is kept in two bits where it is the same for the whole of a part.
    let cased = |text: String, bit: u8| if entry[12] & bit != 0 { text.to_lowercase() } else { text };
    let (stem, extension) = (cased(part(0..8), 8), cased(part(8..11), 16));
    if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

impl FileSystem for Fat {
    fn stat(&mut self, path: &str) -> Result<Stat, FileError> {
        Ok(match self.find(path)? {
            Some(entry) if entry.attributes & DIRECTORY == 0 => {
                Stat { kind: Kind::File, size: u64::from(entry.size), mode: 0 }
            }
            _ => Stat { kind: Kind::Directory, size: 0, mode: 0 },
        })
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, FileError> {
        let first = match self.find(path)? {
            Some(entry) if entry.attributes & DIRECTORY == 0 => return Err(FileError::NotADirectory),
            found => found.map(|entry| entry.first),
        };
        Ok(self.directory(first)?.into_iter().map(|entry| entry.name).collect())
    }

    fn link(&mut self, _path: &str) -> Result<String, FileError> {
        Err(FileError::NotFound)
    }

    fn read_at(&mut self, path: &str, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let entry = self.find(path)?.filter(|entry| entry.attributes & DIRECTORY == 0).ok_or(FileError::NotAFile)?;
        let left = u64::from(entry.size).saturating_sub(offset);
        let wanted = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        let mut rest = &mut buffer[..wanted];
        if rest.is_empty() {
            return Ok(0);
        }
        let mut index = offset / self.cluster;
        let (mut at, mut cluster) = match self.last {
            Some((first, at, cluster)) if first == entry.first && at <= index => (at, cluster),
            _ => (0, entry.first),
        };
        let ends = || broken("a chain of clusters is shorter than its file");
        while at < index {
            cluster = self.next(cluster)?.ok_or_else(ends)?;
            at += 1;
        }
        let mut within = offset % self.cluster;
        loop {
            let n = usize::try_from(self.cluster - within).unwrap_or(rest.len()).min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            self.part.read_at(self.place(cluster)? + within, now)?;
            rest = later;
            self.last = Some((entry.first, index, cluster));
            if rest.is_empty() {
                return Ok(wanted);
            }
            within = 0;
            index += 1;
            cluster = self.next(cluster)?.ok_or_else(ends)?;
        }
    }
}
