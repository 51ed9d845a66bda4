//! Parts of one run made one.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;

use crate::{
    event::{Event, EventKind, SCHEMA, Scope},
    exit_code,
    summary::{Limits, RunSummary},
    test_run::{TestRunEnded, TestRunStarted, UnitId},
};

/// One part's log.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// What it is called where something is wrong with it: its directory, as a person named it.
    pub name: String,
    /// What to put before the paths in it, such as `part-1`; empty for nothing.
    pub prefix: String,
    /// Its events, in order.
    pub events: Vec<Event>,
}

/// Why logs cannot be made one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there is no run to merge; name the directories of the parts")]
    Nothing,
    /// One of them is no log of `belljar test`.
    #[error("the log of {part} does not begin like a run of `belljar test`; merge only such runs")]
    NotATestRun {
        /// Which.
        part: String,
    },
    /// One of them is of a later version.
    #[error("{part}: {0}", LaterSchema(*schema))]
    Schema {
        /// Which.
        part: String,
        /// Its schema.
        schema: u32,
    },
    /// A unit was run in two of them.
    #[error("`{unit}` was run in {first} and in {second}; parts of one run have no test in common")]
    Duplicate {
        /// Which unit.
        unit: UnitId,
        /// One part.
        first: String,
        /// The other.
        second: String,
    },
    /// Two of them are the same part.
    #[error("{first} and {second} are both the part {partition}; name each part once")]
    SamePart {
        /// Which part.
        partition: String,
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// They are parts, but not of one whole.
    #[error(
        "{first} is {}, and {second} is {}: these are no parts of one run; merge the parts of each run for themselves",
        part_or_whole(first_is),
        part_or_whole(second_is)
    )]
    Different {
        /// One of them.
        first: String,
        /// Which part it is; `None` is a run in one part.
        first_is: Option<String>,
        /// The other.
        second: String,
        /// Which part that is.
        second_is: Option<String>,
    },
    /// One of them is what was made of some parts only.
    #[error("{part} was itself merged of some of a run's parts; name all the parts themselves")]
    Incomplete {
        /// Which.
        part: String,
    },
    /// One of them says that it is a part of a kind that nobody knows.
    #[error("{part} says that it is the part {partition:?}, which no Belljar writes: its log is damaged")]
    NoPart {
        /// Which.
        part: String,
        /// What it says.
        partition: String,
    },
}

/// What to say of a log with this schema, which this Belljar does not know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the event log has schema {0}, and this Belljar knows up to {SCHEMA}; read it with the Belljar that wrote it, or a later one"
)]
pub struct LaterSchema(pub u32);

fn part_or_whole(partition: &Option<String>) -> String {
    partition.as_ref().map_or_else(|| "no part of a run".to_owned(), |p| format!("the part {p}"))
}

/// Makes one log of the logs of parts. Its summary is that of the run unparted, but for times and order. It has an end only if each
/// part has one. Where parts are missing, its beginning names them ([`TestRunStarted::missing`]), and it ends with no success.
///
/// # Errors
/// If the logs are not parts of one run.
pub fn merge(parts: Vec<Part>) -> Result<Vec<Event>, MergeError> {
    let starts = check(&parts)?;
    let ends: Vec<Option<TestRunEnded>> = parts.iter().map(end_of).collect();
    let at = parts.iter().flat_map(|s| &s.events).map(|e| e.at).min().unwrap_or(Timestamp::UNIX_EPOCH);

    let mut merged = Merged::default();
    let start = joined_start(&starts);
    let incomplete = start.missing.is_some();
    merged.push(at, None, EventKind::TestRunStarted(start));
    let mut rest: Vec<(Timestamp, usize, usize, Option<Scope>, EventKind)> = Vec::new();
    let planned: HashSet<UnitId> = parts
        .iter()
        .flat_map(|s| &s.events)
        .filter_map(|e| if let EventKind::UnitPlanned(u) = &e.kind { Some(u.unit.clone()) } else { None })
        .collect();
    let mut skipped: HashSet<UnitId> = HashSet::new();
    let mut first_slot = 0;
    for (number, part) in parts.into_iter().enumerate() {
        let next_slot = first_slot + slots(&part);
        // Clocks may step back, the order within a part may not.
        let mut latest = Timestamp::MIN;
        for (place, mut event) in part.events.into_iter().enumerate() {
            adapt(&mut event.kind, &part.prefix, first_slot);
            match event.kind {
                EventKind::TestRunStarted(_) | EventKind::TestRunEnded(_) => {}
                EventKind::UnitPlanned(_) => merged.push(event.at, None, event.kind),
                EventKind::UnitSkipped(ref e) => {
                    // What no host can run is skipped in every part.
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
        let end = joined_end(&ends, &merged.events, incomplete);
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

    /// Machines are numbered within a run; two parts use the same numbers.
    fn renumber(&mut self, scope: Option<&mut Scope>, kind: &mut EventKind, part: usize) {
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
            *instance = *self.instances.entry((part, *instance)).or_insert(next);
        }
    }
}

fn check(parts: &[Part]) -> Result<Vec<TestRunStarted>, MergeError> {
    let mut starts: Vec<TestRunStarted> = Vec::new();
    let mut seen: HashMap<&UnitId, &Part> = HashMap::new();
    let mut numbers: HashMap<u64, &Part> = HashMap::new();
    for part in parts {
        let name = || part.name.clone();
        let Some(EventKind::TestRunStarted(start)) = part.events.first().map(|e| &e.kind) else {
            return Err(MergeError::NotATestRun { part: name() });
        };
        if start.schema > SCHEMA {
            return Err(MergeError::Schema { part: name(), schema: start.schema });
        }
        if start.missing.is_some() {
            return Err(MergeError::Incomplete { part: name() });
        }
        let place = match &start.partition {
            None => None,
            Some(partition) => Some(place(partition).ok_or_else(|| {
                // A run that an earlier Belljar merged of some parts.
                let incomplete = partition.split(" + ").all(|p| place(p).is_some());
                if incomplete {
                    MergeError::Incomplete { part: name() }
                } else {
                    MergeError::NoPart { part: name(), partition: partition.clone() }
                }
            })?),
        };
        if let Some(first) = starts.first() {
            let whole = |p: &Option<String>| p.as_deref().and_then(self::place).map(|p| (p.how.to_owned(), p.of));
            if whole(&first.partition) != whole(&start.partition) {
                return Err(MergeError::Different {
                    first: parts[0].name.clone(),
                    first_is: first.partition.clone(),
                    second: name(),
                    second_is: start.partition.clone(),
                });
            }
        }
        if let Some(place) = place
            && let Some(first) = numbers.insert(place.number, part)
        {
            let partition = start.partition.clone().unwrap_or_default();
            return Err(MergeError::SamePart { partition, first: first.name.clone(), second: name() });
        }
        starts.push(start.clone());
        for event in &part.events {
            if let EventKind::UnitPlanned(unit) = &event.kind
                && let Some(first) = seen.insert(&unit.unit, part)
                && !std::ptr::eq(first, part)
            {
                return Err(MergeError::Duplicate {
                    unit: unit.unit.clone(),
                    first: first.name.clone(),
                    second: name(),
                });
            }
        }
    }
    if starts.is_empty() { Err(MergeError::Nothing) } else { Ok(starts) }
}

/// What `hash:2/3` says.
struct Place<'a> {
    how: &'a str,
    number: u64,
    of: u64,
}

fn place(partition: &str) -> Option<Place<'_>> {
    let (how, part) = partition.split_once(':')?;
    let (number, of) = part.split_once('/')?;
    let (number, of) = (number.parse().ok()?, of.parse().ok()?);
    (1..=of).contains(&number).then_some(Place { how, number, of })
}

fn end_of(part: &Part) -> Option<TestRunEnded> {
    part.events.iter().rev().find_map(|e| match &e.kind {
        EventKind::TestRunEnded(e) => Some(e.clone()),
        _ => None,
    })
}

fn slots(part: &Part) -> u32 {
    let slot = |e: &Event| match &e.kind {
        EventKind::GuestStarted(e) => Some(e.slot),
        EventKind::AttemptStarted(e) => e.slot,
        _ => None,
    };
    part.events.iter().filter_map(slot).max().map_or(0, |s| s.saturating_add(1))
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
    start.missing = missing(starts);
    let partitions: Vec<&str> = starts.iter().filter_map(|s| s.partition.as_deref()).collect();
    start.partition = start.missing.is_some().then(|| partitions.join(" + "));
    start
}

/// How many missing parts are named.
const NAMED: usize = 20;

/// The parts that are not there, for a person.
fn missing(starts: &[TestRunStarted]) -> Option<String> {
    let places: Vec<Place<'_>> = starts.iter().filter_map(|s| s.partition.as_deref().and_then(place)).collect();
    let Place { how, of, .. } = places.first()?;
    let there: BTreeSet<u64> = places.iter().map(|p| p.number).collect();
    let count = of - there.len() as u64;
    let named: Vec<String> =
        (1..=*of).filter(|n| !there.contains(n)).take(NAMED).map(|n| format!("{how}:{n}/{of}")).collect();
    let more = count - named.len() as u64;
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (count > 0).then(|| format!("{}{more}", named.join(", ")))
}

fn joined_end(ends: &[TestRunEnded], events: &[Event], incomplete: bool) -> TestRunEnded {
    let small = Limits { passing_tail: 0, failing_tail: 0, attempts: 1, subresults: 0, ..Limits::default() };
    let mut summary = RunSummary::new(small);
    events.iter().for_each(|e| summary.apply(e));
    let counts = summary.counts();
    let mut messages: Vec<&str> = ends.iter().filter_map(|e| e.message.as_deref()).collect();
    messages.dedup();
    let of_missing = incomplete.then_some(exit_code::CANNOT_RUN);
    TestRunEnded {
        counts,
        exit_code: joined_code(
            ends.iter().map(|e| e.exit_code).chain([counts.exit_code()]).chain(of_missing),
            counts.units == 0,
        ),
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
