//! Runs that are over, or were cut off: where they are and what their logs say.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
};

use belljar_model::{
    Event, EventKind,
    event::SCHEMA,
    log::{Damage, Line},
    merge::LaterSchema,
    read_log,
};
use belljar_runner::run_dir;
use belljar_suite::files::open_regular;
use bytesize::ByteSize;
use jiff::Timestamp;

use crate::settings;

/// No log of a run is longer: a million units have less.
const MAX_LOG: u64 = 4 << 30;

/// A run that was read.
pub(crate) struct Past {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Its events, in order.
    pub(crate) events: Vec<Event>,
    /// What a person should know of the log.
    pub(crate) warnings: Vec<String>,
}

/// Finds and reads a run of `belljar test`.
pub(crate) fn read(named: &Path) -> Result<Past, String> {
    let log = find(named)?;
    let file = open_regular(&log).map_err(|e| format!("cannot read the run's events: {e}"))?;
    let length = file.metadata().map_or(0, |m| m.len());
    if length > MAX_LOG {
        return Err(format!("{} has {}, which no run's log has", log.display(), ByteSize(length)));
    }
    let mut past =
        Past { dir: log.parent().unwrap_or(Path::new(".")).to_owned(), events: Vec::new(), warnings: Vec::new() };
    for line in read_log(BufReader::new(file.take(MAX_LOG))) {
        match line.map_err(|e| format!("cannot read {}: {e}", log.display()))? {
            Line::Event(event) => past.events.push(event),
            Line::Damaged { number, damage: Damage::CutOff } => {
                past.warnings
                    .push(format!("line {number} of the event log was cut off: the run was killed while it wrote it"));
            }
            Line::Damaged { number, damage } => {
                let what = match damage {
                    Damage::TooLong => "is too long".to_owned(),
                    Damage::Unreadable(why) => format!("cannot be read: {why}"),
                    Damage::CutOff => "was cut off".to_owned(),
                };
                past.warnings.push(format!("line {number} of the event log {what}; what it said is lost"));
            }
        }
    }
    match past.events.first().map(|e| &e.kind) {
        Some(EventKind::TestRunStarted(started)) if started.schema > SCHEMA => {
            Err(format!("cannot read the run in {}: {}", past.dir.display(), LaterSchema(started.schema)))
        }
        Some(EventKind::TestRunStarted(_)) => Ok(past),
        Some(EventKind::RunStarted { .. }) => Err(of_belljar_run(&past.dir)),
        Some(_) => Err(format!("{} is the log of something else than `belljar test`", log.display())),
        None => Err(format!("{} holds no event: the run ended before it began", log.display())),
    }
}

/// What to say where somebody names what `belljar run` left.
fn of_belljar_run(dir: &Path) -> String {
    format!(
        "{} is the record of a `belljar run`, and reports are made of runs of `belljar test`; \
         look into {} and console.log there",
        dir.display(),
        run_dir::EVENTS
    )
}

/// The event log of a run, given as a directory, as the log itself, by name, or as `last`.
fn find(named: &Path) -> Result<PathBuf, String> {
    if named.is_dir() {
        let log = named.join(run_dir::EVENTS);
        if fs_err::symlink_metadata(&log).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            return Err(format!(
                "there is no run in {}: it has no {}\nthe record of a run that was killed while its guest could write there is in {}",
                named.display(),
                run_dir::EVENTS,
                settings::runs_dir()?.display()
            ));
        }
        return Ok(log);
    }
    // Whatever else it is, it is what was meant, and what is wrong with it is said when it is opened.
    if named.exists() {
        return Ok(named.to_owned());
    }
    let runs = settings::runs_dir()?;
    if named == Path::new("last") {
        return last(&runs).ok_or_else(|| {
            let none = format!("there is no run of `belljar test` in {}; name a run's directory", runs.display());
            match last_of_belljar_run(&runs) {
                Some(dir) => format!("{none}\n{}", of_belljar_run(&dir)),
                None => none,
            }
        });
    }
    // A name, not a path that leads elsewhere.
    let log = runs.join(named).join(run_dir::EVENTS);
    if named.components().count() == 1 && log.is_file() {
        return Ok(log);
    }
    Err(format!(
        "there is no run {}: neither is it a directory, nor the name of a run in {}",
        named.display(),
        runs.display()
    ))
}

/// The logs among the runs that are kept, by name.
fn logs(runs: &Path) -> Vec<(OsString, PathBuf)> {
    let Ok(entries) = fs_err::read_dir(runs) else { return Vec::new() };
    let mut logs: Vec<(OsString, PathBuf)> = entries
        .filter_map(Result::ok)
        .map(|e| (e.file_name(), e.path().join(run_dir::EVENTS)))
        .filter(|(_, log)| log.is_file())
        .collect();
    logs.sort();
    logs
}

/// The directory of the latest record of a `belljar run`.
fn last_of_belljar_run(runs: &Path) -> Option<PathBuf> {
    let (_, log) = logs(runs)
        .into_iter()
        .rev()
        .find(|(_, log)| matches!(first(log), Some(Event { kind: EventKind::RunStarted { .. }, .. })))?;
    log.parent().map(Path::to_owned)
}

/// The log of the latest run of a suite. Names sort by time, to the second; within one the first event says which was later.
fn last(runs: &Path) -> Option<PathBuf> {
    let mut latest: Option<(Timestamp, OsString, PathBuf)> = None;
    for (name, log) in logs(runs).into_iter().rev() {
        if latest.as_ref().is_some_and(|(_, found, _)| second(found) != second(&name)) {
            break;
        }
        let Some(began) = test_run_began(&log) else { continue };
        if latest.as_ref().is_none_or(|(at, _, _)| began > *at) {
            latest = Some((began, name, log));
        }
    }
    latest.map(|(_, _, log)| log)
}

/// What the names of runs of one second have in common.
fn second(name: &OsStr) -> &[u8] {
    let name = name.as_encoded_bytes();
    name.split(|b| *b == b'-').next().unwrap_or(name)
}

/// When this run of a suite began, if it is one.
fn test_run_began(log: &Path) -> Option<Timestamp> {
    match first(log)? {
        Event { kind: EventKind::TestRunStarted(_), at, .. } => Some(at),
        _ => None,
    }
}

/// The first event of a log.
fn first(log: &Path) -> Option<Event> {
    match read_log(BufReader::new(open_regular(log).ok()?)).next()? {
        Ok(Line::Event(event)) => Some(event),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use belljar_model::{
        RunId,
        test_run::{Host, TestRunStarted},
    };

    use super::*;

    fn run(runs: &Path, random: u32, at: &str) -> PathBuf {
        let at: Timestamp = at.parse().unwrap();
        let run = RunId::new(at, random);
        let kind = EventKind::TestRunStarted(TestRunStarted {
            schema: 1,
            run: run.clone(),
            version: String::new(),
            host: Host::default(),
            profile: String::new(),
            command: Vec::new(),
            partition: None,
            missing: None,
            jobs: None,
        });
        let log = runs.join(run.as_str()).join(run_dir::EVENTS);
        fs_err::create_dir(log.parent().unwrap()).unwrap();
        fs_err::write(&log, serde_json::to_string(&Event { seq: 0, at, kind, scope: None }).unwrap() + "\n").unwrap();
        log
    }

    #[test]
    fn of_runs_of_one_second_the_last_one_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        assert_eq!(last(runs), None);
        run(runs, 9, "2026-01-02T03:04:04.9Z");
        run(runs, 7, "2026-01-02T03:04:05.1Z");
        let latest = run(runs, 1, "2026-01-02T03:04:05.3Z");
        run(runs, 8, "2026-01-02T03:04:05.2Z");
        assert_eq!(last(runs), Some(latest));
        // What is no run of a suite does not count.
        let other = runs.join("20260102T030406Z-00000001");
        fs_err::create_dir(&other).unwrap();
        fs_err::write(other.join(run_dir::EVENTS), "{}\n").unwrap();
        assert_eq!(last(runs).unwrap().parent().unwrap().file_name().unwrap(), "20260102T030405Z-00000001");
    }
}
