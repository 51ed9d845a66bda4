//! Blocks whose bytes are on their way to a client, by the file that has them: until they are there, nothing else may be written to them.

use std::{fs::File, sync::Arc};

use super::{Base, GRANULE, Pending, Store, StoreError, index, read_or_zeros};
use crate::{
    answers::Piece,
    map::{Map, Place},
};

/// Most answers that are on their way in this manner: more than a client has under way.
const MAX_LOANS: usize = 64;

/// Blocks for what is to be written.
#[derive(Debug)]
pub(crate) struct Placed {
    /// The file that has them.
    pub(crate) file: Arc<File>,
    /// The first of each run, and how many.
    pub(crate) runs: Vec<(u32, u32)>,
}

/// What an answer was made of, or what is being written.
#[derive(Debug)]
struct Loan {
    path: u32,
    /// The answer's; none where it is being written.
    cookie: Option<u64>,
    runs: Vec<(u32, u32)>,
}

/// All that is lent.
#[derive(Debug, Default)]
pub(super) struct Lent {
    loans: Vec<Loan>,
    /// What the disk needs no more of it.
    resting: Vec<(u32, u32)>,
    /// Something of it was taken for needed when it was found out which blocks are.
    was_counted: bool,
}

impl Lent {
    /// All blocks that are lent.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.loans.iter().flat_map(|loan| loan.runs.iter().copied())
    }

    /// It is found out which blocks are needed, and these count among them.
    pub(super) fn count(&mut self) {
        self.was_counted = !self.loans.is_empty();
    }

    /// Of a run that the disk needs no more: what nobody has. The rest is kept in mind.
    pub(super) fn keep(&mut self, run: (u32, u32)) -> Vec<(u32, u32)> {
        let mut free = vec![run];
        for (start, count) in self.loans.iter().flat_map(|loan| &loan.runs).copied() {
            let end = start.saturating_add(count);
            let mut rest = Vec::with_capacity(free.len());
            for (first, count) in free {
                let behind = first.saturating_add(count);
                let (from, to) = (first.max(start), behind.min(end));
                if from >= to {
                    rest.push((first, count));
                    continue;
                }
                self.resting.push((from, to - from));
                rest.extend([(first, from - first), (to, behind - to)].into_iter().filter(|(_, count)| *count > 0));
            }
            free = rest;
        }
        free
    }
}

impl Store {
    /// What is at `offset`, by where it is. It stays there until it is [taken back](Self::take_back). `None`: it is better read.
    ///
    /// # Errors
    /// When it is not on the disk.
    pub fn lend(
        &mut self,
        path: u32,
        cookie: u64,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Option<Vec<Piece>>, StoreError> {
        self.check(offset, length)?;
        if self.lent.loans.len() >= MAX_LOANS {
            return Ok(None);
        }
        let mut pieces = Vec::new();
        let data = &self.data;
        let whole = pieces_of(&self.map, data, &self.base, offset, length, most, &mut pieces);
        if !whole {
            return Ok(None);
        }
        let mut runs = Vec::new();
        for piece in &pieces {
            if let Some((_, at)) = piece.file.as_ref().filter(|(file, _)| Arc::ptr_eq(file, data)) {
                let (first, end) = (at / GRANULE, (at + piece.length).div_ceil(GRANULE));
                let number = |number: u64| index(number).and_then(|n| u32::try_from(n).map_err(std::io::Error::other));
                runs.push((number(first)?, number(end - first)?));
            }
        }
        if !runs.is_empty() {
            self.lent.loans.push(Loan { path, cookie: Some(cookie), runs });
        }
        Ok(Some(pieces))
    }

    /// What was lent for this answer has arrived; `None` is for all answers of the path, whose client is gone.
    pub fn take_back(&mut self, path: u32, cookie: Option<u64>) {
        let before = self.lent.loans.len();
        if before == 0 {
            return;
        }
        if cookie.is_none() {
            self.abandon(path);
        }
        self.lent.loans.retain(|loan| loan.path != path || cookie.is_some() && loan.cookie != cookie);
        if self.lent.loans.len() != before {
            self.settle();
        }
    }

    /// Uses again what nobody has any more.
    fn settle(&mut self) {
        for run in std::mem::take(&mut self.lent.resting) {
            self.give(run);
        }
        if self.lent.loans.is_empty() && std::mem::take(&mut self.lent.was_counted) {
            self.find_room();
        }
    }

    /// Takes blocks for `length` bytes, whole granules, that are to be written by way of this path, of which there is one such request at
    /// a time. They are [put](Self::put_placed) on the disk or [given back](Self::abandon). `None`: it is better written at once.
    pub(crate) fn place(&mut self, path: u32, length: u64, most: usize) -> Option<Placed> {
        if !length.is_multiple_of(GRANULE) || self.capacity.is_some() {
            return None;
        }
        let mut left = u32::try_from(length / GRANULE).ok()?;
        self.lent.loans.push(Loan { path, cookie: None, runs: Vec::new() });
        let mut runs = Vec::new();
        while left > 0 {
            let taken = if runs.len() < most { self.take(left) } else { None };
            let Some((start, count)) = taken else {
                self.abandon(path);
                return None;
            };
            runs.push((start, count));
            if let Some(loan) = self.writing(path) {
                loan.runs.push((start, count));
            }
            left -= count;
        }
        Some(Placed { file: Arc::clone(&self.data), runs })
    }

    fn writing(&mut self, path: u32) -> Option<&mut Loan> {
        self.lent.loans.iter_mut().find(|loan| loan.path == path && loan.cookie.is_none())
    }

    fn end_writing(&mut self, path: u32) -> Option<Loan> {
        let at = self.lent.loans.iter().position(|loan| loan.path == path && loan.cookie.is_none())?;
        Some(self.lent.loans.remove(at))
    }

    /// Gives blocks back to which something was to be written by way of this path.
    pub(crate) fn abandon(&mut self, path: u32) {
        if let Some(loan) = self.end_writing(path) {
            loan.runs.into_iter().for_each(|run| self.give(run));
            self.settle();
        }
    }

    /// What was written to blocks that were [taken](Self::place) is at `offset` from now on, which is the beginning of a granule.
    ///
    /// # Errors
    /// As [`write`](Self::write); they are given back then.
    pub(crate) fn put_placed(
        &mut self,
        path: u32,
        offset: u64,
        placed: &Placed,
        durable: bool,
    ) -> Result<(), StoreError> {
        let count: u64 = placed.runs.iter().map(|(_, count)| u64::from(*count)).sum();
        let mut granule = offset / GRANULE;
        let room = self.check(offset, count * GRANULE).and_then(|()| self.check_room(granule, granule + count));
        if let Err(error) = room {
            self.abandon(path);
            return Err(error);
        }
        for (start, count) in placed.runs.iter().copied() {
            let next = granule + u64::from(count);
            self.put((granule, next, Place::Block(start)))?;
            let length = u64::from(count) * GRANULE;
            self.note(Pending { offset: granule * GRANULE, length, block: Some(start), durable })?;
            granule = next;
        }
        self.end_writing(path);
        self.settle();
        Ok(())
    }

    /// What was written to blocks that were [taken](Self::place), which are given back.
    ///
    /// # Errors
    /// When the host cannot read it.
    pub(crate) fn take_placed(&mut self, path: u32, placed: &Placed) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        for (start, count) in placed.runs.iter().copied() {
            let begin = bytes.len();
            bytes.resize(begin + index(u64::from(count) * GRANULE)?, 0);
            read_or_zeros(&placed.file, &mut bytes[begin..], u64::from(start) * GRANULE)?;
        }
        self.abandon(path);
        Ok(bytes)
    }
}

/// Adds where the bytes at `offset` are; gives whether those are all, which are no more than `most`.
fn pieces_of(
    map: &Map,
    data: &Arc<File>,
    base: &Base,
    mut offset: u64,
    length: u64,
    most: usize,
    pieces: &mut Vec<Piece>,
) -> bool {
    let last = offset + length;
    while offset < last {
        if pieces.len() >= most {
            return false;
        }
        let (place, end) = map.run_at(offset / GRANULE, last.div_ceil(GRANULE));
        let length = last.min(end.saturating_mul(GRANULE)) - offset;
        let file = match (place, base) {
            (Place::Below, Base::Frozen(below)) => {
                if !pieces_of(&below.map, &below.data, &below.base, offset, length, most, pieces) {
                    return false;
                }
                offset += length;
                continue;
            }
            (Place::Zeros, _) | (Place::Below, Base::Zeros) => None,
            (Place::Below, Base::File(file)) => Some((Arc::clone(file), offset)),
            (Place::Block(block), _) => Some((Arc::clone(data), u64::from(block) * GRANULE + offset % GRANULE)),
        };
        pieces.push(Piece { file, length });
        offset += length;
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_lent_is_kept_and_all_else_is_free(loans in prop::collection::vec(prop::collection::vec((0u32..60, 1u32..20), 0..3), 0..4), run in (0u32..60, 1u32..30)) {
            let loans: Vec<_> = loans.into_iter().map(|runs| Loan { path: 0, cookie: Some(0), runs }).collect();
            let mut lent = Lent { loans, ..Lent::default() };
            let is_lent: Vec<bool> = (0..100).map(|at| lent.runs().any(|(start, count)| (start..start + count).contains(&at))).collect();
            let mut seen = [None; 100];
            let free = lent.keep(run);
            for (runs, kept) in [(&free, false), (&lent.resting, true)] {
                for at in runs.iter().flat_map(|(start, count)| *start..*start + *count) {
                    prop_assert_eq!(seen[at as usize].replace(kept), None, "told once");
                }
            }
            for at in 0..100 {
                let expected = (run.0..run.0 + run.1).contains(&at).then(|| is_lent[at as usize]);
                prop_assert_eq!(seen[at as usize], expected);
            }
        }
    }
}
