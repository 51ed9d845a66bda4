//! Which block of the data has a granule of the disk, and which blocks are free.

use std::collections::{BTreeMap, HashMap};

/// Where the bytes of a granule are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In what is below; zeros where nothing is.
    Below,
    /// Nowhere: they are zeros.
    Zeros,
    /// In this block of the data.
    Block(u32),
}

/// Granules of one part of the map.
const PART: u64 = 1024;
/// How [`Place::Zeros`] is written; a block is written as its number and two.
const ZEROS: u32 = 1;
const FIRST: u32 = 2;
/// Blocks that there can be at most.
pub(crate) const MAX_BLOCKS: u32 = u32::MAX - FIRST;

impl Place {
    pub(crate) fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Below,
            ZEROS => Self::Zeros,
            number => Self::Block(number - FIRST),
        }
    }

    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Below => 0,
            Self::Zeros => ZEROS,
            Self::Block(block) => block + FIRST,
        }
    }

    pub(crate) fn block(self) -> Option<u32> {
        match self {
            Self::Block(block) => Some(block),
            Self::Below | Self::Zeros => None,
        }
    }
}

/// Where each granule is. What was never set is [`Place::Below`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    parts: HashMap<u64, Box<[u32; PART as usize]>>,
    /// How many granules have blocks.
    blocks: u64,
}

impl Map {
    pub(crate) fn get(&self, granule: u64) -> Place {
        let part = self.parts.get(&(granule / PART));
        part.map_or(Place::Below, |part| Place::from_number(part[(granule % PART) as usize]))
    }

    pub(crate) fn set(&mut self, granule: u64, place: Place) {
        if place == Place::Below && !self.parts.contains_key(&(granule / PART)) {
            return;
        }
        let part = self.parts.entry(granule / PART).or_insert_with(|| Box::new([0; PART as usize]));
        let entry = &mut part[(granule % PART) as usize];
        self.blocks += u64::from(place.block().is_some());
        self.blocks -= u64::from(Place::from_number(*entry).block().is_some());
        *entry = place.number();
    }

    /// How many granules have blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many granules from this one on, `most` at most, are certainly [`Place::Below`]; 0 says nothing.
    pub(crate) fn untouched(&self, granule: u64, most: u64) -> u64 {
        if self.parts.contains_key(&(granule / PART)) { 0 } else { most.min(PART - granule % PART) }
    }

    /// All granules that were set, in order.
    pub(crate) fn all(&self) -> Vec<(u64, Place)> {
        let mut numbers: Vec<_> = self.parts.keys().copied().collect();
        numbers.sort_unstable();
        let of_part = |number: u64| {
            let part = self.parts[&number].iter().enumerate();
            part.filter(|(_, entry)| **entry != 0)
                .map(move |(at, entry)| (number * PART + at as u64, Place::from_number(*entry)))
        };
        numbers.into_iter().flat_map(of_part).collect()
    }
}

/// Blocks that nobody uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    /// The first block behind all that were ever used.
    end: u32,
    /// Runs of free blocks before it: start and length.
    free: BTreeMap<u32, u32>,
}

/// How many free runs are looked at before a new one is begun behind all.
const LOOKED_AT: usize = 32;

impl Room {
    /// All blocks before `end` are used, and none after it.
    pub(crate) fn used_to(end: u32) -> Self {
        Self { end, free: BTreeMap::new() }
    }

    /// The first block behind all that were ever used.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    /// Takes a run of so many blocks, or of fewer where there would be more than `most` in all; gives the first and how many. `None`: there is
    /// no room.
    pub(crate) fn take(&mut self, count: u32, most: u32) -> Option<(u32, u32)> {
        let run = |(start, length): (&u32, &u32)| (*start, *length);
        let fits = self.free.iter().take(LOOKED_AT).find(|(_, length)| **length >= count).map(run);
        let full = self.end.checked_add(count).is_none_or(|end| end > most.min(MAX_BLOCKS));
        if let Some((start, length)) = fits.or_else(|| if full { self.free.first_key_value().map(run) } else { None }) {
            let taken = count.min(length);
            self.free.remove(&start);
            if length > taken {
                self.free.insert(start + taken, length - taken);
            }
            return Some((start, taken));
        }
        let start = self.end;
        self.end = start.checked_add(count).filter(|end| *end <= MAX_BLOCKS)?;
        Some((start, count))
    }

    /// Gives one back.
    pub(crate) fn give(&mut self, block: u32) {
        let before = self.free.range(..block).next_back().map(|(start, length)| (*start, *length));
        let after = self.free.remove(&(block + 1)).unwrap_or(0);
        match before {
            Some((start, length)) if start + length == block => {
                self.free.insert(start, length + 1 + after);
            }
            _ => {
                self.free.insert(block, 1 + after);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_remembers_what_was_set_and_counts_blocks() {
        let mut map = Map::default();
        map.set(7, Place::Below);
        assert_eq!((map.untouched(7, 9), map.untouched(1020, 9)), (9, 4));
        map.set(5000, Place::Block(3));
        map.set(7, Place::Zeros);
        map.set(8, Place::Block(0));
        map.set(8, Place::Block(9));
        assert_eq!(map.blocks(), 2);
        assert_eq!(map.untouched(9, 9), 0);
        assert_eq!(map.all(), [(7, Place::Zeros), (8, Place::Block(9)), (5000, Place::Block(3))]);
        map.set(8, Place::Below);
        assert_eq!((map.blocks(), map.get(8), map.get(5000)), (1, Place::Below, Place::Block(3)));
    }

    #[test]
    fn what_was_given_back_is_taken_again_in_runs() {
        let mut room = Room::used_to(2);
        let take = |room: &mut Room, count| room.take(count, 10);
        assert_eq!((take(&mut room, 3), take(&mut room, 1)), (Some((2, 3)), Some((5, 1))));
        for block in [3, 2, 4] {
            room.give(block);
        }
        assert_eq!(take(&mut room, 4), Some((6, 4)), "three are no four");
        assert_eq!((take(&mut room, 2), room.end()), (Some((2, 2)), 10));
        assert_eq!(
            take(&mut room, 2),
            Some((4, 1)),
            "before the file grows without need, what is free is used in pieces"
        );
        assert_eq!(take(&mut room, 2), Some((10, 2)), "where nothing is free it has to grow");
        assert_eq!(Room::used_to(MAX_BLOCKS).take(1, MAX_BLOCKS), None);
    }
}
