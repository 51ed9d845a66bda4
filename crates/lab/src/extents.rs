//! Places by runs of granules: as many entries as were made by what was written, however large the runs are.

use std::collections::BTreeMap;

use crate::map::Place;

/// Granules from the first to the one behind the last, and the place of the first; those of the others follow it.
pub(crate) type Run = (u64, u64, Place);

/// Runs that do not touch each other's granules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extents {
    /// The end and the place of each, by its beginning.
    runs: BTreeMap<u64, (u64, Place)>,
}

impl Extents {
    /// Whether there is a place for this granule, which, and up to where, `end` at most, that is so.
    pub(crate) fn run_at(&self, granule: u64, end: u64) -> (Option<Place>, u64) {
        if let Some((start, (until, place))) = self.runs.range(..=granule).next_back()
            && *until > granule
        {
            return (Some(place.forward(granule - start)), end.min(*until));
        }
        let next = self.runs.range(granule..).next().map_or(end, |(next, _)| end.min(*next));
        (None, next)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(start, (end, place))| (*start, *end, *place))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Takes out what there is of these granules; gives it, in order.
    pub(crate) fn take(&mut self, start: u64, end: u64) -> Vec<Run> {
        let mut taken = Vec::new();
        if start >= end {
            return taken;
        }
        let before = self.runs.range(..start).next_back().map(|(begin, (until, place))| (*begin, *until, *place));
        if let Some((begin, until, place)) = before.filter(|(_, until, _)| *until > start) {
            self.runs.insert(begin, (start, place));
            taken.push((start, until.min(end), place.forward(start - begin)));
            if until > end {
                self.runs.insert(end, (until, place.forward(end - begin)));
            }
        }
        while let Some((begin, (until, place))) = self.runs.range(start..end).next().map(|(begin, run)| (*begin, *run))
        {
            self.runs.remove(&begin);
            taken.push((begin, until.min(end), place));
            if until > end {
                self.runs.insert(end, (until, place.forward(end - begin)));
            }
        }
        taken
    }

    /// Puts a run where there is none.
    pub(crate) fn insert(&mut self, (mut start, mut end, mut place): Run) {
        if start >= end {
            return;
        }
        let before = self.runs.range(..start).next_back().map(|(begin, (until, place))| (*begin, *until, *place));
        if let Some((begin, until, first)) = before
            && until == start
            && first.forward(until - begin) == place
        {
            (start, place) = (begin, first);
        }
        if let Some((until, next)) = self.runs.get(&end).copied()
            && place.forward(end - start) == next
        {
            self.runs.remove(&end);
            end = until;
        }
        self.runs.insert(start, (end, place));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_single_granules_are(steps in prop::collection::vec((0u64..40, 0u64..20, prop::option::of(0u32..60)), 1..40)) {
            let mut extents = Extents::default();
            let mut model = vec![None; 60];
            for (start, length, block) in steps {
                let end = start + length;
                let taken: Vec<_> = extents.take(start, end);
                let mut found = vec![None; 60];
                for (from, to, place) in taken {
                    prop_assert!(from < to);
                    (from..to).for_each(|at| found[at as usize] = Some(place.forward(at - from)));
                }
                prop_assert_eq!(&found[start as usize..end as usize], &model[start as usize..end as usize]);
                let place = block.map(|block| if block == 0 { Place::Zeros } else { Place::Block(block) });
                if let Some(place) = place {
                    extents.insert((start, end, place));
                }
                (start..end).for_each(|at| model[at as usize] = place.map(|place| place.forward(at - start)));
                let mut at = 0;
                while at < 60 {
                    let (place, until) = extents.run_at(at, 60);
                    prop_assert!(until > at);
                    (at..until).for_each(|one| assert_eq!(model[one as usize], place.map(|place| place.forward(one - at))));
                    at = until;
                }
                let all: Vec<_> = extents.iter().collect();
                prop_assert!(all.windows(2).all(|two| two[0].1 < two[1].0 || two[0].2.forward(two[0].1 - two[0].0) != two[1].2), "{:?}", all);
            }
        }
    }
}
