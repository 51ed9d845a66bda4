//! `belljar ctl`: something happens to the guest of a run that goes on.

use std::{
    io,
    path::{Path, PathBuf},
};

use belljar_runner::door::{self, SOCKET};

use crate::{args::CtlArgs, complain, settings, write_out};

/// What stands for the run that was begun last, of those that go on.
const LAST: &str = "last";

/// Asks, and prints what there is to say; gives the exit code.
pub(crate) fn ctl(args: &CtlArgs) -> Result<u8, String> {
    let (dir, unit) = find(&args.run)?;
    let unit = args.unit.clone().unwrap_or(unit);
    let order = args.order.join(" ");
    let said = door::ask(&dir, &unit, &order).map_err(|error| nobody(&dir, &error))?;
    match said {
        Ok(mut said) => {
            if !said.is_empty() && !said.ends_with('\n') {
                said.push('\n');
            }
            write_out(said.as_bytes())
        }
        Err(why) => {
            complain(why.trim_end());
            Ok(1)
        }
    }
}

fn nobody(dir: &Path, error: &io::Error) -> String {
    let at = dir.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no run goes on in {at}, or it has no guest that could be told something")
        }
        io::ErrorKind::UnexpectedEof => format!("the run in {at} has ended before it answered"),
        _ => format!("cannot ask the run in {at}: {error}"),
    }
}

/// The directory of a run, and the unit that is meant, if one is.
fn find(named: &str) -> Result<(PathBuf, String), String> {
    let runs = settings::runs_dir()?;
    if Path::new(named).join(SOCKET).exists() {
        return Ok((PathBuf::from(named), String::new()));
    }
    let (run, unit) = named.split_once('/').unwrap_or((named, ""));
    if run == LAST {
        let dir = last(&runs).ok_or_else(|| format!("no run goes on that is kept in {}", runs.display()))?;
        return Ok((dir, unit.to_owned()));
    }
    let dir = runs.join(run);
    // A name, not a path that leads elsewhere.
    if !run.is_empty() && run != ".." && run != "." && dir.is_dir() {
        return Ok((dir, unit.to_owned()));
    }
    Err(format!(
        "there is no run {named}: neither is it a directory in which one goes on, nor the name of a run in {}, with /UNIT after it or without",
        runs.display()
    ))
}

/// The run that was begun last, of those that go on.
fn last(runs: &Path) -> Option<PathBuf> {
    let mut all: Vec<PathBuf> = fs_err::read_dir(runs).ok()?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    // Their names sort by time.
    all.sort();
    all.into_iter().rev().find(|dir| door::is_open(dir))
}
