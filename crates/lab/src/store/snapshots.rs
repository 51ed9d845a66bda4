//! What a disk was at some moment, to which it can go back.
//!
//! Nothing that was written is ever written over, so that what has to be remembered is the map alone; its blocks are not used for anything
//! else as long as it is. While there is a snapshot no block is given back; which are free is found out when one comes or goes, or when
//! there is no room.

use std::collections::BTreeMap;

use super::{Pending, Store, blocks};
use crate::{
    control::MAX_SNAPSHOTS,
    extents::Extents,
    map::{Map, Room},
};

/// All of a disk's.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    all: BTreeMap<u32, State>,
    /// The disk's own map does not tell all that it needs just now.
    is_between: bool,
}

/// What was on it, flushed and not.
#[derive(Clone, Debug)]
struct State {
    map: Map,
    durable: Extents,
    pending: Vec<Pending>,
    unsure: usize,
    most_pending: usize,
    stale: Vec<(u32, u32)>,
    stale_blocks: u64,
    rots: u64,
}

impl State {
    /// The blocks that it needs.
    fn used(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        used(&self.map, &self.durable, &self.stale)
    }
}

fn used<'a>(map: &'a Map, durable: &'a Extents, stale: &'a [(u32, u32)]) -> impl Iterator<Item = (u32, u32)> + 'a {
    map.all().chain(durable.iter()).filter_map(|run| blocks(run).ok().flatten()).chain(stale.iter().copied())
}

impl Snapshots {
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// From now on, or no longer, the disk's map does not tell all that it needs.
    pub(super) fn set_between(&mut self, is_between: bool) {
        self.is_between = is_between;
    }
}

impl Store {
    /// Remembers what is on it, flushed and not, under this number.
    ///
    /// # Errors
    /// When too much is remembered already.
    pub fn snapshot(&mut self, number: u32) -> Result<(), String> {
        let all = &mut self.snapshots.all;
        if all.len() >= MAX_SNAPSHOTS && !all.contains_key(&number) {
            return Err(format!("there are {MAX_SNAPSHOTS} snapshots already"));
        }
        let state = State {
            map: self.map.clone(),
            durable: self.durable.clone(),
            pending: self.pending.clone(),
            unsure: self.unsure,
            most_pending: self.most_pending,
            stale: self.stale.clone(),
            stale_blocks: self.stale_blocks,
            rots: self.rots,
        };
        all.insert(number, state);
        self.find_room();
        Ok(())
    }

    /// Has it be what it was then. It can go back there again.
    ///
    /// # Errors
    /// When nothing is remembered under this number.
    pub fn go_back(&mut self, number: u32) -> Result<(), String> {
        let state = self.snapshots.all.get(&number).ok_or_else(|| format!("there is no snapshot {number}"))?.clone();
        let State { map, durable, pending, unsure, most_pending, stale, stale_blocks, rots } = state;
        (self.map, self.durable, self.pending, self.unsure) = (map, durable, pending, unsure);
        (self.most_pending, self.stale, self.stale_blocks, self.rots) = (most_pending, stale, stale_blocks, rots);
        self.find_room();
        Ok(())
    }

    /// Remembers nothing any more.
    pub fn forget_snapshots(&mut self) {
        if self.snapshots.count() > 0 {
            self.snapshots.all.clear();
            self.find_room();
        }
    }

    /// Finds out which blocks nobody needs.
    pub(super) fn find_room(&mut self) {
        let now = used(&self.map, &self.durable, &self.stale);
        let others = self.snapshots.all.values().flat_map(State::used).chain(self.lent.runs());
        let all = now.chain(others).collect();
        self.lent.count();
        self.room = Room::with(all, self.room.end());
    }

    /// Takes a run of free blocks, or of fewer; gives the first and how many.
    pub(super) fn take(&mut self, count: u32) -> Option<(u32, u32)> {
        let most = self.most_blocks();
        let is_short = |room: &Room| room.end().checked_add(count).is_none_or(|end| end > most);
        if self.snapshots.count() > 0 && !self.snapshots.is_between && is_short(&self.room) {
            self.find_room();
        }
        self.room.take(count, most)
    }

    /// Gives a run back that the disk needs no more.
    pub(super) fn give(&mut self, run: (u32, u32)) {
        // Somebody else may need it.
        if self.snapshots.count() == 0 {
            for free in self.lent.keep(run) {
                self.room.give(free);
            }
        }
    }
}
