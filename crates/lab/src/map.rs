//! Which block of the data has a granule of the disk, and which blocks are free.

use std::collections::BTreeMap;

use crate::extents::{Extents, Run};

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

    /// The place of the granule so many further on, in the same run.
    pub(crate) fn forward(self, granules: u64) -> Self {
        match self {
            // Whoever has a run of blocks has them all.
            Self::Block(block) => Self::Block(block.wrapping_add(u32::try_from(granules).unwrap_or(u32::MAX))),
            other => other,
        }
    }
}

/// Where each granule is. What was never set is [`Place::Below`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    runs: Extents,
    /// How many granules have blocks.
    blocks: u64,
}

impl Map {
    /// Where a granule is, and up to where, `end` at most, those behind it follow it there.
    pub(crate) fn run_at(&self, granule: u64, end: u64) -> (Place, u64) {
        let (place, end) = self.runs.run_at(granule, end);
        (place.unwrap_or(Place::Below), end)
    }

    /// The runs of these granules, in order and without gaps.
    pub(crate) fn runs(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        let mut at = start;
        std::iter::from_fn(move || {
            let from = at;
            let (place, until) = (at < end).then(|| self.run_at(from, end))?;
            at = until;
            Some((from, until, place))
        })
    }

    /// Sets the granules of a run.
    pub(crate) fn set(&mut self, (start, end, place): Run) {
        let blocks = |(start, end, place): &Run| if place.block().is_some() { end - start } else { 0 };
        let gone: u64 = self.runs.take(start, end).iter().map(blocks).sum();
        self.blocks = self.blocks - gone + blocks(&(start, end, place));
        if place != Place::Below {
            self.runs.insert((start, end, place));
        }
    }

    /// How many granules have blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// All runs that were set, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter()
    }

    /// How many those are.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
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

    /// What is left of the blocks before `end` by these runs.
    pub(crate) fn with(mut used: Vec<(u32, u32)>, end: u32) -> Self {
        let mut room = Self::used_to(end);
        used.sort_unstable();
        let mut free = 0;
        for (block, count) in used {
            room.give((free, block.saturating_sub(free)));
            free = free.max(block.saturating_add(count));
        }
        room.give((free, end.saturating_sub(free)));
        room
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

    /// Gives a run back, which nobody must use any more.
    pub(crate) fn give(&mut self, (block, count): (u32, u32)) {
        if count == 0 {
            return;
        }
        let end = block.saturating_add(count);
        let after = self.free.remove(&end).unwrap_or(0);
        let before = self.free.range(..block).next_back().map(|(start, length)| (*start, *length));
        match before {
            Some((start, length)) if start + length == block => {
                self.free.insert(start, length + count + after);
            }
            _ => {
                self.free.insert(block, count + after);
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
        map.set((7, 8, Place::Below));
        assert_eq!((map.run_at(7, 9), map.len()), ((Place::Below, 9), 0));
        map.set((5000, 5003, Place::Block(3)));
        map.set((7, 1 << 40, Place::Zeros));
        map.set((8, 9, Place::Block(0)));
        map.set((8, 9, Place::Block(9)));
        map.set((5000, 5002, Place::Block(3)));
        assert_eq!(map.blocks(), 3);
        assert_eq!(map.run_at(5001, 1 << 41), (Place::Block(4), 5002));
        map.set((7, 1 << 41, Place::Below));
        map.set((8, 9, Place::Block(9)));
        map.set((7, 8, Place::Zeros));
        assert_eq!(map.all().collect::<Vec<_>>(), [(7, 8, Place::Zeros), (8, 9, Place::Block(9))]);
        let all: Vec<_> = map.runs(6, 20).collect();
        let runs = [(6, 7, Place::Below), (7, 8, Place::Zeros), (8, 9, Place::Block(9)), (9, 20, Place::Below)];
        assert_eq!((all, map.blocks()), (runs.to_vec(), 1));
    }

    #[test]
    fn what_was_given_back_is_taken_again_in_runs() {
        let mut room = Room::used_to(2);
        let take = |room: &mut Room, count| room.take(count, 10);
        assert_eq!((take(&mut room, 3), take(&mut room, 1)), (Some((2, 3)), Some((5, 1))));
        for run in [(3, 1), (2, 1), (4, 0), (4, 1)] {
            room.give(run);
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
