//! The bytes of a lab disk, and what a power cut leaves of them.
//!
//! The disk is granules of [`GRANULE`] bytes, of which the map has runs: what was never written costs nothing, however large it is. What is written never replaces anything: it goes to blocks of the data file that nobody uses,
//! and a map says which block a granule is in. So all that was ever written since the last flush is still there, beside what was durable
//! then. A flush makes what is there durable and gives the other blocks back; a power cut goes back to what was durable, and puts on top
//! what it lets survive. Neither copies anything while the disk works.
//!
//! The data file is the host's and ends with the guest, so nothing here waits for the host's own disk.

mod lent;
mod snapshots;

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

pub(crate) use self::lent::Placed;
use self::{lent::Lent, snapshots::Snapshots};
use crate::{
    extents::{Extents, Run},
    map::{Map, Place, Room},
    survival::{Choice, Lost, Survival},
};

/// Bytes that have one entry in the map.
pub const GRANULE: u64 = 4096;
/// Blocks of writes that were overwritten before a flush, which are kept so that a power cut can bring them back. A drive's cache has its
/// limit, too: what was overwritten longer ago than this does not come back.
const MAX_STALE: u64 = 16_384;
/// Most writes that are told apart since the last flush.
const MAX_PENDING: usize = 262_144;
/// What a frozen data file ends with: another one where the files are otherwise.
pub const FROZEN_FORMAT: &[u8; 16] = b"belljar lab 0002";
/// Bytes of that end: the magic, blocks, entries, the size of the disk, how often it has rotted, and a checksum of all of that and the entries.
const TRAILER: u64 = 16 + 8 + 8 + 8 + 8 + 4;
/// Bytes of an entry: the first granule of a run, how many it has, and the place of the first.
const ENTRY: u64 = 20;
/// Bytes that are copied at a time.
const COPIED: u64 = 1 << 20;

/// What is below what was written.
#[derive(Clone, Debug)]
pub enum Base {
    /// Nothing: zeros.
    Zeros,
    /// A file, which is not written to. What is behind its end is zeros.
    File(Arc<File>),
    /// What a disk was when it was frozen.
    Frozen(Arc<Frozen>),
}

/// A data file with a map of its own, which nobody writes to any more.
#[derive(Debug)]
pub struct Frozen {
    data: Arc<File>,
    map: Map,
    end: u32,
    size: u64,
    base: Base,
    /// How often something of it has rotted.
    rots: u64,
}

/// Why bytes were not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// As many bytes as may be have been written.
    #[error("the disk is full")]
    Full,
    /// There are no such bytes.
    #[error("it is not on the disk")]
    NotOnDisk,
    /// The host cannot.
    #[error("the host: {0}")]
    Host(#[from] io::Error),
}

/// A change since the last flush.
#[derive(Clone, Copy, Debug)]
struct Pending {
    offset: u64,
    length: u64,
    /// The first of the blocks that it was written to, which follow each other; none where it is zeros.
    block: Option<u32>,
    /// It is durable already.
    durable: bool,
}

/// The bytes of a disk.
#[derive(Debug)]
pub struct Store {
    size: u64,
    base: Base,
    data: Arc<File>,
    map: Map,
    room: Room,
    /// Where the granules that were changed since the last flush were before.
    durable: Extents,
    pending: Vec<Pending>,
    /// How many of those are not durable already.
    unsure: usize,
    /// From how many on they are told apart no longer.
    most_pending: usize,
    /// Blocks of pending changes that were overwritten: the first of a run, and how many.
    stale: Vec<(u32, u32)>,
    /// How many blocks those are.
    stale_blocks: u64,
    /// Most granules that may have blocks.
    capacity: Option<u64>,
    /// The physical sector: what a power cut does not tear.
    sector: u64,
    /// How often something of it has rotted, also before it was frozen.
    rots: u64,
    /// What it was when it was asked to remember that.
    snapshots: Snapshots,
    /// What is on its way to a client.
    lent: Lent,
}

impl Frozen {
    /// Reads the map that [`Store::freeze`] has written.
    ///
    /// # Errors
    /// When the file is none, or not as it was written.
    pub fn open(data: File, base: Base) -> io::Result<Self> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("it is no frozen lab disk: {what}"));
        let length = data.metadata()?.len();
        let start = length.checked_sub(TRAILER).ok_or_else(|| wrong("it is too short"))?;
        let mut trailer = [0; TRAILER as usize];
        data.read_exact_at(&mut trailer, start)?;
        let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().unwrap_or_default());
        if &trailer[..16] != FROZEN_FORMAT {
            return Err(wrong("its end is missing"));
        }
        let (blocks, entries, size, rots) = (number(16), number(24), number(32), number(40));
        let end = u32::try_from(blocks).map_err(|_| wrong("it has too many blocks"))?;
        let fits =
            entries.checked_mul(ENTRY).and_then(|bytes| bytes.checked_add(u64::from(end) * GRANULE)) == Some(start);
        if !fits {
            return Err(wrong("its length is another"));
        }
        let mut bytes = vec![0; usize::try_from(entries * ENTRY).map_err(|_| wrong("its map is too long"))?];
        data.read_exact_at(&mut bytes, u64::from(end) * GRANULE)?;
        let sum = u32::from_le_bytes(trailer[48..52].try_into().unwrap_or_default());
        if checksum(&trailer[..48], &bytes) != sum {
            return Err(wrong("its map has another checksum"));
        }
        let mut map = Map::default();
        let mut next = 0;
        for entry in bytes.chunks_exact(ENTRY as usize) {
            let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
            let place = Place::from_number(u32::from_le_bytes(entry[16..].try_into().unwrap_or_default()));
            let (first, count) = (number(0), number(8));
            let behind = first.checked_add(count).filter(|behind| *behind <= size.div_ceil(GRANULE));
            let blocks_end = place.block().map_or(0, |block| u64::from(block).saturating_add(count));
            let Some(behind) = behind.filter(|_| first >= next && count > 0 && blocks_end <= u64::from(end)) else {
                return Err(wrong("its map leads out of it"));
            };
            map.set((first, behind, place));
            next = behind;
        }
        Ok(Self { data: Arc::new(data), map, end, size, base, rots })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }
}

fn checksum(trailer: &[u8], entries: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(trailer);
    sum.update(entries);
    sum.finalize()
}

/// A number of bytes that is in memory.
fn index(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

/// Fills a buffer from a file; what is behind its end is zeros.
pub(crate) fn read_or_zeros(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.fill(0);
    Ok(())
}

/// Reads what is at `offset`, where `map` says which blocks of `data` have it.
fn read_mapped(map: &Map, data: &File, base: &Base, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let last = offset + buffer.len() as u64;
        let (place, end) = map.run_at(offset / GRANULE, last.div_ceil(GRANULE));
        let length = index(last.min(end.saturating_mul(GRANULE)) - offset)?;
        let (here, rest) = buffer.split_at_mut(length);
        match place {
            Place::Zeros => here.fill(0),
            Place::Block(block) => read_or_zeros(data, here, u64::from(block) * GRANULE + offset % GRANULE)?,
            Place::Below => match base {
                Base::Zeros => here.fill(0),
                Base::File(file) => read_or_zeros(file, here, offset)?,
                Base::Frozen(below) => read_mapped(&below.map, &below.data, &below.base, offset, here)?,
            },
        }
        offset += length as u64;
        buffer = rest;
    }
    Ok(())
}

/// Whether all granules from `first` to `end` are zeros without a look at what was written: a `false` may be wrong.
fn is_zeros(map: &Map, base: &Base, first: u64, end: u64) -> io::Result<bool> {
    for (start, until, place) in map.runs(first, end) {
        let zeros = match (place, base) {
            (Place::Zeros, _) | (Place::Below, Base::Zeros) => true,
            (Place::Block(_), _) => false,
            (Place::Below, Base::File(file)) => {
                let metadata = file.metadata()?;
                // The length of a device is not told there.
                metadata.is_file() && start.saturating_mul(GRANULE) >= metadata.len()
            }
            (Place::Below, Base::Frozen(below)) => is_zeros(&below.map, &below.base, start, until)?,
        };
        if !zeros {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The blocks of a run, if it has some.
fn blocks((start, end, place): Run) -> io::Result<Option<(u32, u32)>> {
    let count = u32::try_from(end - start).map_err(io::Error::other);
    place.block().map(|block| Ok((block, count?))).transpose()
}

impl Store {
    /// A disk of `size` bytes over `base`, whose changes go to `data`, an empty file.
    pub fn new(size: u64, base: Base, data: File) -> Self {
        Self::with(size, base, Arc::new(data), Map::default(), Room::default())
    }

    /// A disk that goes on from where it was frozen, in the same file, which is its own.
    pub fn go_on(frozen: Frozen) -> Self {
        let Frozen { data, map, end, size, base, rots } = frozen;
        let room = Room::with(map.all().filter_map(|run| blocks(run).ok().flatten()).collect(), end);
        Self { rots, ..Self::with(size, base, data, map, room) }
    }

    fn with(size: u64, base: Base, data: Arc<File>, map: Map, room: Room) -> Self {
        let rots = if let Base::Frozen(below) = &base { below.rots } else { 0 };
        Self {
            rots,
            size,
            base,
            data,
            map,
            room,
            durable: Extents::default(),
            pending: Vec::new(),
            unsure: 0,
            most_pending: MAX_PENDING,
            stale: Vec::new(),
            stale_blocks: 0,
            capacity: None,
            sector: 512,
            snapshots: Snapshots::default(),
            lent: Lent::default(),
        }
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What a power cut does not tear, in bytes: the physical sector.
    pub fn set_sector(&mut self, sector: u64) {
        self.sector = sector.clamp(512, GRANULE);
    }

    /// How many bytes may have been written at most, as on a thin disk; `None` is all.
    pub fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity = bytes.map(|bytes| bytes.div_ceil(GRANULE));
    }

    /// Bytes that have room of their own.
    pub fn allocated(&self) -> u64 {
        self.map.blocks() * GRANULE
    }

    /// Something of it rots; gives how often that was before.
    pub fn count_rot(&mut self) -> u64 {
        let before = self.rots;
        self.rots += 1;
        before
    }

    /// Changes since the last flush.
    pub fn pending(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Reads what is at `offset`.
    ///
    /// # Errors
    /// When the host cannot read it, or it is not on the disk.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.check(offset, buffer.len() as u64)?;
        Ok(read_mapped(&self.map, &self.data, &self.base, offset, buffer)?)
    }

    /// Writes at `offset`; durable at once if `durable`.
    ///
    /// # Errors
    /// When there is no room, the host cannot write, or it is not on the disk. Where the host cannot write, a part may have been written.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
        let length = bytes.len() as u64;
        self.check(offset, length)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (first, end) = (offset / GRANULE, (offset + length).div_ceil(GRANULE));
        self.check_room(first, end)?;
        let mut granule = first;
        while granule < end {
            let count = u32::try_from(end - granule).map_err(io::Error::other)?;
            let (start, count) = self.take(count).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            let next = granule + u64::from(count);
            let (from, to) = (offset.max(granule * GRANULE), (offset + length).min(next * GRANULE));
            let part = &bytes[index(from - offset)?..index(to - offset)?];
            if let Err(error) = self.fill(start, granule, next, from, part) {
                self.give((start, count));
                return Err(error.into());
            }
            self.put((granule, next, Place::Block(start)))?;
            self.note(Pending { offset: from, length: to - from, block: Some(start), durable })?;
            granule = next;
        }
        Ok(())
    }

    /// Whether a thin disk has room for what is written to these granules.
    fn check_room(&self, first: u64, end: u64) -> Result<(), StoreError> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let new = self.map.runs(first, end).filter(|(_, _, place)| place.block().is_none());
        let new: u64 = new.map(|(start, end, _)| end - start).sum();
        if self.map.blocks() + new > capacity { Err(StoreError::Full) } else { Ok(()) }
    }

    /// How many blocks there are before those that are free are used in pieces.
    fn most_blocks(&self) -> u32 {
        let disks = 2 + self.snapshots.count() as u64;
        u32::try_from(self.size.div_ceil(GRANULE).saturating_mul(disks).saturating_add(MAX_STALE)).unwrap_or(u32::MAX)
    }

    /// Fills the blocks of the granules from `first` to `end` with `bytes`, and what is around them.
    fn fill(&self, start: u32, first: u64, end: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = u64::from(start) * GRANULE;
        let before = offset - first * GRANULE;
        let behind = end * GRANULE - (offset + bytes.len() as u64);
        if before == 0 && behind == 0 {
            return self.data.write_all_at(bytes, at);
        }
        let mut whole = vec![0; index((end - first) * GRANULE)?];
        let old =
            |whole: &mut [u8], granule: u64| read_mapped(&self.map, &self.data, &self.base, granule * GRANULE, whole);
        if before > 0 {
            old(&mut whole[..GRANULE as usize], first)?;
        }
        if behind > 0 && (before == 0 || end - first > 1) {
            let last = whole.len() - GRANULE as usize;
            old(&mut whole[last..], end - 1)?;
        }
        let before = index(before)?;
        whole[before..before + bytes.len()].copy_from_slice(bytes);
        self.data.write_all_at(&whole, at)
    }

    /// Makes bytes zeros, giving room back where whole granules are.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&mut self, offset: u64, length: u64, durable: bool) -> Result<(), StoreError> {
        self.check(offset, length)?;
        let end = offset + length;
        let (first, last) =
            (offset.div_ceil(GRANULE), if end == self.size { end.div_ceil(GRANULE) } else { end / GRANULE });
        if first >= last {
            return self.zero_part(offset, end, durable);
        }
        self.zero_part(offset, first * GRANULE, durable)?;
        if self.is_changed_by_zeros(first, last, durable)? {
            let nothing = if matches!(self.base, Base::Zeros) { Place::Below } else { Place::Zeros };
            self.put((first, last, nothing))?;
            let length = (last * GRANULE).min(self.size) - first * GRANULE;
            self.note(Pending { offset: first * GRANULE, length, block: None, durable })?;
        }
        self.zero_part((last * GRANULE).min(end), end, durable)
    }

    /// Makes bytes zeros that are no whole granule.
    fn zero_part(&mut self, offset: u64, end: u64, durable: bool) -> Result<(), StoreError> {
        if offset >= end || !self.is_changed_by_zeros(offset / GRANULE, end.div_ceil(GRANULE), durable)? {
            return Ok(());
        }
        let zeros = vec![0; index(end - offset)?];
        self.write(offset, &zeros, durable)
    }

    /// Whether it is a change if these granules become zeros: what is zeros already does not, but where that has to be durable and is not.
    fn is_changed_by_zeros(&self, first: u64, end: u64, durable: bool) -> Result<bool, StoreError> {
        let is_durable = || !durable || matches!(self.durable.run_at(first, end), (None, until) if until == end);
        Ok(!is_zeros(&self.map, &self.base, first, end)? || !is_durable())
    }

    /// Gives granules another place; remembers where they were.
    fn put(&mut self, (first, end, place): Run) -> Result<(), StoreError> {
        let mut at = first;
        while at < end {
            let (known, until) = self.durable.run_at(at, end);
            for run in self.map.runs(at, until) {
                if known.is_none() {
                    self.durable.insert(run);
                } else if let Some((block, count)) = blocks(run)? {
                    self.stale.push((block, count));
                    self.stale_blocks += u64::from(count);
                }
            }
            at = until;
        }
        self.map.set((first, end, place));
        Ok(())
    }

    /// A change is there. Where there are none but durable ones, all is flushed.
    fn note(&mut self, pending: Pending) -> Result<(), StoreError> {
        if pending.durable && self.unsure == 0 {
            return self.flush();
        }
        self.unsure += usize::from(!pending.durable);
        self.pending.push(pending);
        if self.stale_blocks > MAX_STALE || self.pending.len() > self.most_pending { self.forget() } else { Ok(()) }
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// None that a disk has met: where it would have more blocks than there are.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        for run in std::mem::take(&mut self.durable).iter() {
            blocks(run)?.into_iter().for_each(|blocks| self.give(blocks));
        }
        let stale = self.take_stale();
        self.give_back(stale);
        self.pending.clear();
        self.unsure = 0;
        self.most_pending = MAX_PENDING;
        Ok(())
    }

    fn take_stale(&mut self) -> Vec<(u32, u32)> {
        self.stale_blocks = 0;
        std::mem::take(&mut self.stale)
    }

    fn give_back(&mut self, blocks: Vec<(u32, u32)>) {
        blocks.into_iter().for_each(|blocks| self.give(blocks));
    }

    /// Forgets in which steps the granules that are not flushed came to be what they are.
    fn forget(&mut self) -> Result<(), StoreError> {
        self.snapshots.set_between(true);
        // What is durable among it has to be durable without the steps.
        let pending = std::mem::take(&mut self.pending);
        let durable = std::mem::take(&mut self.durable);
        let mut now: Vec<Run> = Vec::new();
        for run in durable.iter() {
            now.extend(self.map.runs(run.0, run.1));
            self.map.set(run);
        }
        let freed = self.take_stale();
        self.unsure = 0;
        for one in pending.iter().filter(|one| one.durable) {
            self.apply(*one, one.offset, one.length)?;
        }
        for run in now {
            for was in self.map.runs(run.0, run.1) {
                self.durable.insert(was);
            }
            self.map.set(run);
            self.add_run(run);
        }
        self.unsure = self.pending.len();
        // So that it is not done for each change from now on.
        self.most_pending = MAX_PENDING.max(2 * self.pending.len());
        self.give_back(freed);
        self.snapshots.set_between(false);
        Ok(())
    }

    /// Adds the change of a run, to the last one if it goes on from there.
    fn add_run(&mut self, (start, end, place): Run) {
        let offset = start * GRANULE;
        let length = end.saturating_mul(GRANULE).min(self.size) - offset;
        if let Some(last) = self.pending.last_mut().filter(|last| last.offset + last.length == offset) {
            let follows = match (last.block, place.block()) {
                (Some(first), Some(block)) => u64::from(first) + last.length / GRANULE == u64::from(block),
                (None, None) => true,
                _ => false,
            };
            if follows {
                last.length += length;
                return;
            }
        }
        self.pending.push(Pending { offset, length, block: place.block(), durable: false });
    }

    /// Cuts the power: what was not flushed is lost, but for what survives.
    ///
    /// # Errors
    /// When the host cannot read or write. The disk is not to be used any more then.
    pub fn cut(&mut self, survival: Survival) -> Result<Lost, StoreError> {
        self.snapshots.set_between(true);
        let pending = std::mem::take(&mut self.pending);
        self.unsure = 0;
        let mut freed = self.take_stale();
        for run in std::mem::take(&mut self.durable).iter() {
            for gone in self.map.runs(run.0, run.1) {
                freed.extend(blocks(gone)?);
            }
            self.map.set(run);
        }
        let mut choice = Choice::new(survival);
        let mut lost = Lost { pending: pending.len() as u64, lost: 0 };
        for one in pending {
            let pieces = if one.durable {
                vec![(one.offset, one.length)]
            } else {
                choice.of((one.offset, one.length), one.block.is_some(), self.sector)
            };
            lost.lost += u64::from(pieces != [(one.offset, one.length)]);
            for (offset, length) in pieces {
                self.apply(one, offset, length)?;
            }
        }
        self.give_back(freed);
        self.snapshots.set_between(false);
        Ok(lost)
    }

    /// Puts a part of a change that is not in the map on top of what is, durably.
    fn apply(&mut self, one: Pending, offset: u64, length: u64) -> Result<(), StoreError> {
        let Some(block) = one.block else { return self.zero(offset, length, true) };
        // It had its room when it was written.
        let capacity = self.capacity.take();
        let mut done = Ok(());
        let (mut from, end) = (offset, offset + length);
        while from < end && done.is_ok() {
            let to = end.min((from / COPIED + 1) * COPIED);
            let at = u64::from(block) * GRANULE + from - one.offset / GRANULE * GRANULE;
            done = index(to - from).map_err(StoreError::from).and_then(|length| {
                let mut bytes = vec![0; length];
                read_or_zeros(&self.data, &mut bytes, at)?;
                self.write(from, &bytes, true)
            });
            from = to;
        }
        self.capacity = capacity;
        done
    }

    /// Flushes, and writes the map behind the data, so that [`Frozen::open`] finds it.
    ///
    /// # Errors
    /// When the host cannot write.
    pub fn freeze(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        let mut bytes = Vec::with_capacity(self.map.len() * ENTRY as usize);
        for (start, end, place) in self.map.all() {
            bytes.extend_from_slice(&start.to_le_bytes());
            bytes.extend_from_slice(&(end - start).to_le_bytes());
            bytes.extend_from_slice(&place.number().to_le_bytes());
        }
        let end = self.room.end();
        let mut trailer = Vec::with_capacity(TRAILER as usize);
        trailer.extend_from_slice(FROZEN_FORMAT);
        for number in [u64::from(end), self.map.len() as u64, self.size, self.rots] {
            trailer.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&trailer, &bytes);
        trailer.extend_from_slice(&sum.to_le_bytes());
        let at = u64::from(end) * GRANULE;
        // What a frozen disk that goes on had behind its data.
        self.data.set_len(at)?;
        self.data.write_all_at(&bytes, at)?;
        Ok(self.data.write_all_at(&trailer, at + bytes.len() as u64)?)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), StoreError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(StoreError::NotOnDisk),
        }
    }
}

#[cfg(test)]
mod tests;
