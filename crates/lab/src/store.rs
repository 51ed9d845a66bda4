//! The bytes of a lab disk, and what a power cut leaves of them.
//!
//! The disk is granules of [`GRANULE`] bytes. What is written never replaces anything: it goes to blocks of the data file that nobody uses,
//! and a map says which block a granule is in. So all that was ever written since the last flush is still there, beside what was durable
//! then. A flush makes what is there durable and gives the other blocks back; a power cut goes back to what was durable, and puts on top
//! what it lets survive. Neither copies anything while the disk works.
//!
//! The data file is the host's and ends with the guest, so nothing here waits for the host's own disk.

use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use crate::{
    map::{Map, Place, Room},
    survival::{Choice, Lost, Survival},
};

/// Bytes that have one entry in the map.
pub const GRANULE: u64 = 4096;
/// Blocks of writes that were overwritten before a flush, which are kept so that a power cut can bring them back. A drive's cache has its
/// limit, too: what was overwritten longer ago than this does not come back.
const MAX_STALE: usize = 16_384;
/// Most writes that are told apart since the last flush.
const MAX_PENDING: usize = 262_144;
/// What a frozen data file ends with.
const MAGIC: &[u8; 16] = b"belljar lab 0001";
/// Bytes of that end: the magic, blocks, entries, the size of the disk, and a checksum of all of that and the entries.
const TRAILER: u64 = 16 + 8 + 8 + 8 + 4;
/// Bytes of an entry: the granule and its place.
const ENTRY: u64 = 12;

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
    data: File,
    map: Map,
    end: u32,
    size: u64,
    base: Base,
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
    data: File,
    map: Map,
    room: Room,
    /// Where the granules that were changed since the last flush were before.
    durable: HashMap<u64, Place>,
    pending: Vec<Pending>,
    /// How many of those are not durable already.
    unsure: usize,
    /// From how many on they are told apart no longer.
    most_pending: usize,
    /// Blocks of pending changes that were overwritten.
    stale: Vec<u32>,
    /// Most granules that may have blocks.
    capacity: Option<u64>,
    /// The physical sector: what a power cut does not tear.
    sector: u64,
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
        if &trailer[..16] != MAGIC {
            return Err(wrong("its end is missing"));
        }
        let (blocks, entries, size) = (number(16), number(24), number(32));
        let end = u32::try_from(blocks).map_err(|_| wrong("it has too many blocks"))?;
        let fits =
            entries.checked_mul(ENTRY).and_then(|bytes| bytes.checked_add(u64::from(end) * GRANULE)) == Some(start);
        if !fits {
            return Err(wrong("its length is another"));
        }
        let mut bytes = vec![0; usize::try_from(entries * ENTRY).map_err(|_| wrong("its map is too long"))?];
        data.read_exact_at(&mut bytes, u64::from(end) * GRANULE)?;
        let sum = u32::from_le_bytes(trailer[40..44].try_into().unwrap_or_default());
        if checksum(&trailer[..40], &bytes) != sum {
            return Err(wrong("its map has another checksum"));
        }
        let mut map = Map::default();
        for entry in bytes.chunks_exact(ENTRY as usize) {
            let granule = u64::from_le_bytes(entry[..8].try_into().unwrap_or_default());
            let place = Place::from_number(u32::from_le_bytes(entry[8..].try_into().unwrap_or_default()));
            if granule >= size.div_ceil(GRANULE) || place.block().is_some_and(|block| block >= end) {
                return Err(wrong("its map leads out of it"));
            }
            map.set(granule, place);
        }
        Ok(Self { data, map, end, size, base })
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
fn read_or_zeros(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
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
        let granule = offset / GRANULE;
        let place = map.get(granule);
        // As many granules as follow each other where they are, too.
        let mut end = (granule + 1) * GRANULE;
        let last = offset + buffer.len() as u64;
        let mut next = 1;
        while end < last {
            let follows = match (place, map.get(granule + next)) {
                (Place::Block(first), Place::Block(other)) => u64::from(first) + next == u64::from(other),
                (one, other) => one == other,
            };
            if !follows {
                break;
            }
            end += GRANULE;
            next += 1;
        }
        let length = index(end.min(last) - offset)?;
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

impl Store {
    /// A disk of `size` bytes over `base`, whose changes go to `data`, an empty file.
    pub fn new(size: u64, base: Base, data: File) -> Self {
        Self::with(size, base, data, Map::default(), Room::default())
    }

    /// A disk that goes on from where it was frozen, in the same file, which is its own.
    pub fn go_on(frozen: Frozen) -> Self {
        let Frozen { data, map, end, size, base } = frozen;
        let mut room = Room::used_to(end);
        let mut used: Vec<u32> = map.all().iter().filter_map(|(_, place)| place.block()).collect();
        used.sort_unstable();
        let mut used = used.into_iter().peekable();
        for block in 0..end {
            if used.next_if_eq(&block).is_none() {
                room.give(block);
            }
        }
        Self::with(size, base, data, map, room)
    }

    fn with(size: u64, base: Base, data: File, map: Map, room: Room) -> Self {
        Self {
            size,
            base,
            data,
            map,
            room,
            durable: HashMap::new(),
            pending: Vec::new(),
            unsure: 0,
            most_pending: MAX_PENDING,
            stale: Vec::new(),
            capacity: None,
            sector: 512,
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
        if let Some(capacity) = self.capacity {
            let new = (first..end).filter(|granule| self.map.get(*granule).block().is_none()).count() as u64;
            if self.map.blocks() + new > capacity {
                return Err(StoreError::Full);
            }
        }
        let mut granule = first;
        while granule < end {
            let count = u32::try_from(end - granule).map_err(io::Error::other)?;
            let (start, count) =
                self.room.take(count, self.most_blocks()).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
            let next = granule + u64::from(count);
            let (from, to) = (offset.max(granule * GRANULE), (offset + length).min(next * GRANULE));
            let part = &bytes[index(from - offset)?..index(to - offset)?];
            if let Err(error) = self.fill(start, granule, next, from, part) {
                (0..count).for_each(|at| self.room.give(start + at));
                return Err(error.into());
            }
            for at in 0..count {
                self.put(granule + u64::from(at), Place::Block(start + at));
            }
            self.note(Pending { offset: from, length: to - from, block: Some(start), durable })?;
            granule = next;
        }
        Ok(())
    }

    /// How many blocks there are before those that are free are used in pieces.
    fn most_blocks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(GRANULE).saturating_mul(2).saturating_add(MAX_STALE as u64))
            .unwrap_or(u32::MAX)
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
            let zeros = vec![0; index(length)?];
            return self.write(offset, &zeros, durable);
        }
        let zeros = [0; GRANULE as usize];
        let (head, tail) = (first * GRANULE - offset, end.saturating_sub(last * GRANULE));
        self.write(offset, &zeros[..index(head)?], durable)?;
        let nothing = if matches!(self.base, Base::Zeros) { Place::Below } else { Place::Zeros };
        let (mut granule, mut changed) = (first, false);
        while granule < last {
            if nothing == Place::Below {
                granule += self.map.untouched(granule, last - granule);
                if granule >= last {
                    break;
                }
            }
            let place = self.map.get(granule);
            if place != nothing && place != Place::Zeros {
                self.put(granule, nothing);
                changed = true;
            }
            granule += 1;
        }
        if changed {
            let length = (last * GRANULE).min(self.size) - first * GRANULE;
            self.note(Pending { offset: first * GRANULE, length, block: None, durable })?;
        }
        self.write(end - tail, &zeros[..index(tail)?], durable)
    }

    fn put(&mut self, granule: u64, place: Place) {
        let before = self.map.get(granule);
        match self.durable.entry(granule) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(before);
            }
            std::collections::hash_map::Entry::Occupied(_) => self.stale.extend(before.block()),
        }
        self.map.set(granule, place);
    }

    /// A change is there. Where there are none but durable ones, all is flushed.
    fn note(&mut self, pending: Pending) -> Result<(), StoreError> {
        if pending.durable && self.unsure == 0 {
            self.flush();
            return Ok(());
        }
        self.unsure += usize::from(!pending.durable);
        self.pending.push(pending);
        if self.stale.len() > MAX_STALE || self.pending.len() > self.most_pending { self.forget() } else { Ok(()) }
    }

    /// Makes all that was written durable.
    pub fn flush(&mut self) {
        for block in self.durable.drain().filter_map(|(_, place)| place.block()).chain(self.stale.drain(..)) {
            self.room.give(block);
        }
        self.pending.clear();
        self.unsure = 0;
        self.most_pending = MAX_PENDING;
    }

    /// Forgets in which steps the granules that are not flushed came to be what they are.
    fn forget(&mut self) -> Result<(), StoreError> {
        // What is durable among it has to be durable without the steps.
        let now = self.map.clone();
        let pending = std::mem::take(&mut self.pending);
        let durable = std::mem::take(&mut self.durable);
        for (granule, place) in &durable {
            self.map.set(*granule, *place);
        }
        let freed = std::mem::take(&mut self.stale);
        self.unsure = 0;
        for one in pending.iter().filter(|one| one.durable) {
            self.apply(*one, one.offset, one.length)?;
        }
        let mut granules: Vec<u64> = durable.into_keys().collect();
        granules.sort_unstable();
        for granule in granules {
            let place = now.get(granule);
            self.durable.insert(granule, self.map.get(granule));
            self.map.set(granule, place);
            self.add_granule(granule, place);
        }
        self.unsure = self.pending.len();
        // So that it is not done for each change from now on.
        self.most_pending = MAX_PENDING.max(2 * self.pending.len());
        give_back(&mut self.room, freed);
        Ok(())
    }

    /// Adds the change of one granule, to the last one if it goes on from there.
    fn add_granule(&mut self, granule: u64, place: Place) {
        let offset = granule * GRANULE;
        let length = GRANULE.min(self.size - offset);
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
        let pending = std::mem::take(&mut self.pending);
        self.unsure = 0;
        let mut freed = std::mem::take(&mut self.stale);
        for (granule, place) in std::mem::take(&mut self.durable) {
            freed.extend(self.map.get(granule).block());
            self.map.set(granule, place);
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
        give_back(&mut self.room, freed);
        Ok(lost)
    }

    /// Puts a part of a change that is not in the map on top of what is, durably.
    fn apply(&mut self, one: Pending, offset: u64, length: u64) -> Result<(), StoreError> {
        let Some(block) = one.block else { return self.zero(offset, length, true) };
        let mut bytes = vec![0; index(length)?];
        let at = u64::from(block) * GRANULE + offset - one.offset / GRANULE * GRANULE;
        read_or_zeros(&self.data, &mut bytes, at)?;
        // It had its room when it was written.
        let capacity = self.capacity.take();
        let done = self.write(offset, &bytes, true);
        self.capacity = capacity;
        done
    }

    /// Flushes, and writes the map behind the data, so that [`Frozen::open`] finds it.
    ///
    /// # Errors
    /// When the host cannot write.
    pub fn freeze(&mut self) -> Result<(), StoreError> {
        self.flush();
        let entries = self.map.all();
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY as usize);
        for (granule, place) in &entries {
            bytes.extend_from_slice(&granule.to_le_bytes());
            bytes.extend_from_slice(&place.number().to_le_bytes());
        }
        let end = self.room.end();
        let mut trailer = Vec::with_capacity(TRAILER as usize);
        trailer.extend_from_slice(MAGIC);
        for number in [u64::from(end), entries.len() as u64, self.size] {
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

fn give_back(room: &mut Room, blocks: Vec<u32>) {
    blocks.into_iter().for_each(|block| room.give(block));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 16 * GRANULE + 1024;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    fn whole(store: &Store) -> Vec<u8> {
        let mut bytes = vec![0xee; store.size() as usize];
        store.read(0, &mut bytes).unwrap();
        bytes
    }

    /// What is in each sector, and what a power cut may leave of it: the first is durable.
    struct Model(Vec<Vec<Vec<u8>>>);

    impl Model {
        fn of(store: &Store) -> Self {
            Self(whole(store).chunks(512).map(|sector| vec![sector.to_vec()]).collect())
        }

        fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
            for (at, byte) in (offset..).zip(bytes) {
                let (sector, at) = ((at / 512) as usize, (at % 512) as usize);
                // Writes are of whole sectors: at the first byte of one another version begins.
                if at == 0 {
                    let last = self.0[sector].last().unwrap().clone();
                    self.0[sector].push(last);
                }
                self.0[sector].last_mut().unwrap()[at] = *byte;
            }
            if durable {
                let touched = (offset / 512) as usize..((offset + bytes.len() as u64) / 512) as usize;
                self.0[touched].iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
            }
        }

        fn flush(&mut self) {
            self.0.iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
        }

        fn now(&self) -> Vec<u8> {
            self.0.iter().flat_map(|versions| versions.last().unwrap().clone()).collect()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u64, u8, bool),
        Zero(u64, u64, bool),
        Flush,
        Forget,
        Refreeze,
        Cut(Option<u64>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let sectors = SIZE / 512;
        let range = (0..sectors).prop_flat_map(move |start| (Just(start), 1..=(sectors - start).min(24)));
        prop_oneof![
            6 => (range.clone(), any::<u8>(), prop::bool::weighted(0.2)).prop_map(|((s, l), b, d)| Step::Write(s * 512, l * 512, b, d)),
            2 => (range, prop::bool::weighted(0.2)).prop_map(|((s, l), d)| Step::Zero(s * 512, l * 512, d)),
            1 => Just(Step::Flush),
            1 => Just(Step::Forget),
            1 => Just(Step::Refreeze),
            2 => prop::option::of(any::<u64>()).prop_map(Step::Cut),
        ]
    }

    proptest! {
        #[test]
        fn it_reads_as_written_and_a_cut_leaves_what_it_may(below in prop::sample::select(vec![0, 1, 2]), steps in prop::collection::vec(step(), 1..40)) {
            let base = match below {
                0 => Base::Zeros,
                1 => {
                    let file = file();
                    // It ends before the disk does.
                    file.write_all_at(&vec![7; 9 * GRANULE as usize + 100], 0).unwrap();
                    Base::File(Arc::new(file))
                }
                _ => {
                    let data = file();
                    let mut below = Store::new(SIZE, Base::Zeros, data.try_clone().unwrap());
                    below.write(GRANULE + 512, &[9; 9000], false).unwrap();
                    below.freeze().unwrap();
                    Base::Frozen(Arc::new(Frozen::open(data, Base::Zeros).unwrap()))
                }
            };
            let mut data = file();
            let mut store = Store::new(SIZE, base.clone(), data.try_clone().unwrap());
            let mut model = Model::of(&store);
            for step in steps {
                match step {
                    Step::Write(offset, length, byte, durable) => {
                        let bytes: Vec<u8> = (0..length).map(|at| byte.wrapping_add((at / 512) as u8)).collect();
                        store.write(offset, &bytes, durable).unwrap();
                        model.write(offset, &bytes, durable);
                    }
                    Step::Zero(offset, length, durable) => {
                        store.zero(offset, length, durable).unwrap();
                        model.write(offset, &vec![0; length as usize], durable);
                    }
                    Step::Flush => { store.flush(); model.flush(); }
                    Step::Forget => store.forget().unwrap(),
                    Step::Refreeze => {
                        store.freeze().unwrap();
                        model.flush();
                        let frozen = Frozen::open(data, base.clone()).unwrap();
                        data = frozen.data.try_clone().unwrap();
                        store = Store::go_on(frozen);
                    }
                    Step::Cut(seed) => {
                        let lost = store.cut(seed.map_or(Survival::Strict, Survival::Seed)).unwrap();
                        prop_assert!(lost.lost <= lost.pending);
                        let left = whole(&store);
                        for (sector, (left, may)) in left.chunks(512).zip(&model.0).enumerate() {
                            let may = if seed.is_some() { &may[..] } else { &may[..1] };
                            prop_assert!(may.iter().any(|version| version == left), "sector {sector} is what nobody wrote");
                        }
                        prop_assert_eq!(store.pending(), 0);
                        model = Model::of(&store);
                    }
                }
                prop_assert_eq!(whole(&store), model.now());
            }
        }
    }

    #[test]
    fn seeds_choose_differently_and_each_the_same_again() {
        let left = |seed| {
            let mut store = Store::new(SIZE, Base::Zeros, file());
            for granule in 0..16 {
                store.write(granule * GRANULE, &[1 + granule as u8; GRANULE as usize], false).unwrap();
            }
            store.cut(Survival::Seed(seed)).unwrap();
            whole(&store)
        };
        let all: Vec<_> = (0..20).map(left).collect();
        assert_eq!(all, (0..20).map(left).collect::<Vec<_>>());
        let nothing = vec![0; SIZE as usize];
        let torn = |bytes: &Vec<u8>| {
            bytes.chunks(GRANULE as usize).any(|granule| granule.iter().any(|byte| *byte != granule[0]))
        };
        assert!(all.contains(&nothing), "in some nothing survives");
        assert!(all.iter().any(|bytes| !bytes[..16 * GRANULE as usize].contains(&0)), "in some all does");
        assert!(all.iter().any(torn), "some writes are torn");
    }

    #[test]
    fn blocks_are_used_again_and_history_has_its_limit() {
        let data = file();
        let mut store = Store::new(64 << 20, Base::Zeros, data.try_clone().unwrap());
        let mib = vec![3; 1 << 20];
        for _ in 0..40 {
            for at in 0..8 {
                store.write(at << 20, &mib, false).unwrap();
            }
        }
        // Never flushed: what is durable is nothing, and the rest is forgotten.
        let length = data.metadata().unwrap().len();
        assert!(length < 160 << 20, "{length}");
        for _ in 0..40 {
            for at in 0..8 {
                store.write(at << 20, &mib, false).unwrap();
            }
            store.flush();
        }
        assert!(data.metadata().unwrap().len() < length + (32 << 20));
        assert_eq!(store.allocated(), 8 << 20);
        store.zero(0, 64 << 20, false).unwrap();
        assert_eq!((store.allocated(), store.pending()), (0, 1));
        store.cut(Survival::Strict).unwrap();
        assert_eq!(store.allocated(), 8 << 20, "a discard that was not flushed is lost, too");
    }

    #[test]
    fn a_thin_disk_fills_up_and_has_room_again() {
        let mut store = Store::new(SIZE, Base::Zeros, file());
        store.set_capacity(Some(2 * GRANULE));
        store.write(0, &[1; 2 * GRANULE as usize], false).unwrap();
        let full = store.write(3 * GRANULE, &[1; 512], false).unwrap_err();
        assert!(matches!(full, StoreError::Full));
        store.write(0, &[2; 512], false).unwrap();
        store.zero(0, GRANULE, false).unwrap();
        store.write(3 * GRANULE, &[1; 512], false).unwrap();
    }

    #[test]
    fn what_is_not_on_the_disk_is_refused() {
        let mut store = Store::new(SIZE, Base::Zeros, file());
        for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
            assert!(store.read(offset, &mut vec![0; length as usize]).is_err());
            assert!(store.write(offset, &vec![0; length as usize], false).is_err());
            assert!(store.zero(offset, length, false).is_err());
        }
    }

    #[test]
    fn a_frozen_disk_that_was_changed_is_none() {
        let freeze = || {
            let data = file();
            let mut store = Store::new(SIZE, Base::Zeros, data.try_clone().unwrap());
            store.write(GRANULE, &[5; 3 * GRANULE as usize], false).unwrap();
            store.freeze().unwrap();
            data
        };
        assert_eq!(Frozen::open(freeze(), Base::Zeros).unwrap().size(), SIZE);
        let length = freeze().metadata().unwrap().len();
        assert!(Frozen::open(file(), Base::Zeros).is_err());
        for at in 3 * GRANULE..length {
            let data = freeze();
            let mut byte = [0];
            data.read_exact_at(&mut byte, at).unwrap();
            data.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            assert!(Frozen::open(data, Base::Zeros).is_err(), "{at}");
        }
        let data = freeze();
        data.set_len(length - 1).unwrap();
        assert!(Frozen::open(data, Base::Zeros).is_err());
    }
}
