//! Shards of one run made one.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use crate::{
    event::{Event, EventKind, SCHEMA, Scope},
    exit_code,
    summary::{Limits, RunSummary},
    test_run::{TestRunEnded, TestRunStarted, UnitId},
};

/// One shard's log.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// What to put before the paths in it, such as `shard-1`; empty for nothing.
    pub prefix: String,
    /// Its events, in order.
    pub events: Vec<Event>,
}

/// Why logs cannot be made one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there is no run to merge; name the directories of the shards")]
    Nothing,
    /// One of them is no log of `belljar test`.
    #[error(
        "log {number} does not begin like a run of `belljar test`; merge only such runs (log 1 is the first named)"
    )]
    NotATestRun {
        /// Which; the first is 1.
        number: usize,
    },
    /// One of them is of a later version.
    #[error("log {number} has schema {schema}, and this Belljar knows {SCHEMA}; merge with the Belljar that wrote it")]
    Schema {
        /// Which; the first is 1.
        number: usize,
        /// Its schema.
        schema: u32,
    },
    /// A unit was run in two of them.
    #[error("`{unit}` was run in log {first} and in log {second}; shards of one run have no unit in common")]
    Duplicate {
        /// Which unit.
        unit: UnitId,
        /// The first log; counted from 1.
        first: usize,
        /// The second.
        second: usize,
    },
}

/// Makes one log of the logs of shards. Its summary is that of the run unsharded, but for times and order. It has an end only if each
/// shard has one.
///
/// # Errors
/// If the logs are not shards of one run.
pub fn merge(shards: Vec<Shard>) -> Result<Vec<Event>, MergeError> {
    let starts = check(&shards)?;
    let ends: Vec<Option<TestRunEnded>> = shards.iter().map(end_of).collect();
    let at = shards.iter().flat_map(|s| &s.events).map(|e| e.at).min().unwrap_or(Timestamp::UNIX_EPOCH);

    let mut merged = Merged::default();
    merged.push(at, None, EventKind::TestRunStarted(joined_start(&starts)));
    let mut rest: Vec<(Timestamp, usize, usize, Option<Scope>, EventKind)> = Vec::new();
    let planned: HashSet<UnitId> = shards
        .iter()
        .flat_map(|s| &s.events)
        .filter_map(|e| if let EventKind::UnitPlanned(u) = &e.kind { Some(u.unit.clone()) } else { None })
        .collect();
    let mut skipped: HashSet<UnitId> = HashSet::new();
    let mut first_slot = 0;
    for (number, shard) in shards.into_iter().enumerate() {
        let next_slot = first_slot + slots(&shard);
        // Clocks may step back, the order within a shard may not.
        let mut latest = Timestamp::MIN;
        for (place, mut event) in shard.events.into_iter().enumerate() {
            adapt(&mut event.kind, &shard.prefix, first_slot);
            match event.kind {
                EventKind::TestRunStarted(_) | EventKind::TestRunEnded(_) => {}
                EventKind::UnitPlanned(_) => merged.push(event.at, None, event.kind),
                EventKind::UnitSkipped(ref e) => {
                    // What no host can run is skipped in every shard.
                    if !planned.contains(&e.unit.unit) && skipped.insert(e.unit.unit.clone()) {
                        merged.push(event.at, None, event.kind);
                    }
                }
                kind => {
                    latest = latest.max(event.at);
                    rest.push((latest, number, place, event.scope, kind));
                }
            }
        }
        first_slot = next_slot;
    }
    rest.sort_by_key(|(at, number, place, _, _)| (*at, *number, *place));
    for (at, number, _, mut scope, mut kind) in rest {
        merged.renumber(scope.as_mut(), &mut kind, number);
        merged.push(at, scope, kind);
    }
    if let Some(ends) = ends.into_iter().collect::<Option<Vec<_>>>() {
        let at = merged.events.iter().map(|e| e.at).max().unwrap_or(at);
        let end = joined_end(&ends, &merged.events);
        merged.push(at, None, EventKind::TestRunEnded(end));
    }
    Ok(merged.events)
}

#[derive(Default)]
struct Merged {
    events: Vec<Event>,
    instances: HashMap<(usize, u64), u64>,
}

impl Merged {
    fn push(&mut self, at: Timestamp, scope: Option<Scope>, kind: EventKind) {
        self.events.push(Event { seq: self.events.len() as u64, at, kind, scope });
    }

    /// Machines are numbered within a run; two shards use the same numbers.
    fn renumber(&mut self, scope: Option<&mut Scope>, kind: &mut EventKind, shard: usize) {
        let of_kind = match kind {
            EventKind::GuestStarted(e) => Some(&mut e.instance),
            EventKind::GuestReady(e) => Some(&mut e.instance),
            EventKind::GuestEnded(e) => Some(&mut e.instance),
            EventKind::AttemptStarted(e) => e.instance.as_mut(),
            EventKind::SetupStarted(e) => e.instance.as_mut(),
            EventKind::SetupEnded(e) => e.instance.as_mut(),
            _ => None,
        };
        if let Some(instance) = of_kind.or(scope.and_then(|s| s.instance.as_mut())) {
            let next = self.instances.len() as u64;
            *instance = *self.instances.entry((shard, *instance)).or_insert(next);
        }
    }
}

fn check(shards: &[Shard]) -> Result<Vec<TestRunStarted>, MergeError> {
    let mut starts = Vec::new();
    let mut seen: HashMap<&UnitId, usize> = HashMap::new();
    for (number, shard) in (1..).zip(shards) {
        let Some(EventKind::TestRunStarted(start)) = shard.events.first().map(|e| &e.kind) else {
            return Err(MergeError::NotATestRun { number });
        };
        if start.schema > SCHEMA {
            return Err(MergeError::Schema { number, schema: start.schema });
        }
        starts.push(start.clone());
        for event in &shard.events {
            if let EventKind::UnitPlanned(unit) = &event.kind
                && let Some(first) = seen.insert(&unit.unit, number)
                && first != number
            {
                return Err(MergeError::Duplicate { unit: unit.unit.clone(), first, second: number });
            }
        }
    }
    if starts.is_empty() { Err(MergeError::Nothing) } else { Ok(starts) }
}

fn end_of(shard: &Shard) -> Option<TestRunEnded> {
    shard.events.iter().rev().find_map(|e| match &e.kind {
        EventKind::TestRunEnded(e) => Some(e.clone()),
        _ => None,
    })
}

fn slots(shard: &Shard) -> u32 {
    let slot = |e: &Event| match &e.kind {
        EventKind::GuestStarted(e) => Some(e.slot),
        EventKind::AttemptStarted(e) => e.slot,
        _ => None,
    };
    shard.events.iter().filter_map(slot).max().map_or(0, |s| s.saturating_add(1))
}

fn adapt(kind: &mut EventKind, prefix: &str, first_slot: u32) {
    let place = |path: &mut String| {
        if !prefix.is_empty() {
            *path = format!("{prefix}/{path}");
        }
    };
    match kind {
        EventKind::Output(e) => {
            if let Some(path) = &mut e.path {
                place(path);
            }
        }
        EventKind::SetupEnded(e) => {
            if let Some(path) = &mut e.path {
                place(path);
            }
        }
        EventKind::AttemptFiles(e) => place(&mut e.dir),
        EventKind::AttemptEnded(e) => {
            if let Some(dir) = &mut e.dir {
                place(dir);
            }
        }
        EventKind::GuestStarted(e) => e.slot += first_slot,
        EventKind::AttemptStarted(e) => e.slot = e.slot.map(|s| s + first_slot),
        _ => {}
    }
}

fn joined_start(starts: &[TestRunStarted]) -> TestRunStarted {
    let mut start = TestRunStarted { schema: SCHEMA, ..starts[0].clone() };
    let names: BTreeSet<&str> = starts.iter().map(|s| s.host.name.as_str()).collect();
    start.host.name = names.into_iter().collect::<Vec<_>>().join(", ");
    start.jobs = starts.iter().map(|s| s.jobs).sum();
    let partitions: BTreeSet<&str> = starts.iter().filter_map(|s| s.partition.as_deref()).collect();
    let whole = partitions.len() < starts.len() || is_whole(&partitions);
    start.partition = (!whole).then(|| partitions.into_iter().collect::<Vec<_>>().join(" + "));
    start
}

/// Whether `hash:1/3`, `hash:2/3`, `hash:3/3` or the like are all there.
fn is_whole(partitions: &BTreeSet<&str>) -> bool {
    let mut parts = BTreeSet::new();
    let mut of = BTreeSet::new();
    for partition in partitions {
        let Some((how, part)) = partition.split_once(':') else { return false };
        let Some((k, n)) = part.split_once('/') else { return false };
        let (Ok(k), Ok(n)) = (k.parse::<usize>(), n.parse::<usize>()) else { return false };
        parts.insert(k);
        of.insert((how, n));
    }
    let Some((_, n)) = of.first().copied() else { return false };
    of.len() == 1 && parts.len() == n && parts.first() == Some(&1) && parts.last() == Some(&n)
}

fn joined_end(ends: &[TestRunEnded], events: &[Event]) -> TestRunEnded {
    let small = Limits { passing_tail: 0, failing_tail: 0, attempts: 1, subresults: 0, ..Limits::default() };
    let mut summary = RunSummary::new(small);
    events.iter().for_each(|e| summary.apply(e));
    let counts = summary.counts();
    let mut messages: Vec<&str> = ends.iter().filter_map(|e| e.message.as_deref()).collect();
    messages.dedup();
    TestRunEnded {
        counts,
        exit_code: joined_code(ends.iter().map(|e| e.exit_code).chain([counts.exit_code()]), counts.units == 0),
        millis: ends.iter().map(|e| e.millis).max().unwrap_or(0),
        message: (!messages.is_empty()).then(|| messages.join("\n")),
    }
}

/// The code that says the most: what no count explains (an interruption), failed tests, errors.
fn joined_code(codes: impl Iterator<Item = u8>, empty: bool) -> u8 {
    let codes: Vec<u8> = codes.collect();
    let plain = [exit_code::OK, exit_code::NO_TESTS, exit_code::TESTS_FAILED, exit_code::CANNOT_RUN];
    if let Some(other) = codes.iter().find(|c| !plain.contains(c)) {
        *other
    } else if codes.contains(&exit_code::TESTS_FAILED) {
        exit_code::TESTS_FAILED
    } else if codes.contains(&exit_code::CANNOT_RUN) {
        exit_code::CANNOT_RUN
    } else if empty {
        exit_code::NO_TESTS
    } else {
        exit_code::OK
    }
}

#[cfg(test)]
mod tests;
