//! Runs that are over, or were cut off: where they are and what their logs say.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
};

use belljar_model::{
    Event, EventKind,
    log::{Damage, Line},
    read_log,
};
use belljar_runner::run_dir;

use crate::settings;

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
    let file = fs_err::File::open(&log).map_err(|e| format!("cannot read the run's events: {e}"))?;
    let mut past =
        Past { dir: log.parent().unwrap_or(Path::new(".")).to_owned(), events: Vec::new(), warnings: Vec::new() };
    for line in read_log(BufReader::new(file)) {
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
        Some(EventKind::TestRunStarted(_)) => Ok(past),
        Some(_) => Err(format!("{} is the log of something else than `belljar test`", log.display())),
        None => Err(format!("{} holds no event: the run ended before it began", log.display())),
    }
}

/// The event log of a run, given as a directory, as the log itself, by name, or as `last`.
fn find(named: &Path) -> Result<PathBuf, String> {
    if named.is_dir() {
        return Ok(named.join(run_dir::EVENTS));
    }
    if named.is_file() {
        return Ok(named.to_owned());
    }
    let runs = settings::runs_dir()?;
    if named == Path::new("last") {
        return last(&runs)
            .ok_or_else(|| format!("there is no run of `belljar test` in {}; name a run's directory", runs.display()));
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

/// The log of the latest run of a suite; names sort by time.
fn last(runs: &Path) -> Option<PathBuf> {
    let entries = fs_err::read_dir(runs).ok()?;
    let mut logs: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|e| e.path().join(run_dir::EVENTS)).filter(|log| log.is_file()).collect();
    logs.sort();
    logs.into_iter().rev().find(|log| is_test_run(log))
}

fn is_test_run(log: &Path) -> bool {
    let Ok(file) = fs_err::File::open(log) else { return false };
    let first = read_log(BufReader::new(file)).next();
    matches!(first, Some(Ok(Line::Event(Event { kind: EventKind::TestRunStarted(_), .. }))))
}
