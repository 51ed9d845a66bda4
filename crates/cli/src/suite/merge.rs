//! `belljar merge`: the parts of one run made one.

use std::path::{Path, PathBuf};

use belljar_model::{
    RunSummary, exit_code,
    merge::{Part, merge as merged},
};
use belljar_runner::{
    parts,
    run_dir::{EVENTS, RunDir},
};

use super::{Refused, args::MergeArgs, past, report};
use crate::{complain_note, settings, write_out};

/// Sees to it that no part is named twice, or copied into itself.
fn apart(output: Option<&Path>, parts: &[(PathBuf, String)]) -> Result<(), String> {
    let real = |dir: &PathBuf| fs_err::canonicalize(dir).unwrap_or_else(|_| dir.clone());
    for (number, (part, _)) in parts.iter().enumerate() {
        if let Some((first, _)) = parts[..number].iter().find(|(first, _)| real(first) == real(part)) {
            return Err(if first == part {
                format!("{} is named twice; name each part once", part.display())
            } else {
                format!("{} is {}, which is named twice; name each part once", part.display(), first.display())
            });
        }
    }
    let goal = output.map_or_else(settings::runs_dir, |dir| Ok(dir.to_owned()))?;
    match parts.iter().find(|(part, _)| RunDir::lies_in(&goal, part)) {
        None => Ok(()),
        Some((part, _)) => Err(format!(
            "cannot write the merged run to {}: it lies in the part {}; name a directory outside of the parts with --output",
            goal.display(),
            part.display()
        )),
    }
}

/// Makes a run of several, with all their files, and exits as the run unparted would have.
pub(crate) fn merge(args: &MergeArgs) -> Result<u8, Refused> {
    let mut all = Vec::new();
    let mut dirs = Vec::new();
    for (number, named) in (1..).zip(&args.runs) {
        let past = past::read(named)?;
        for warning in &past.warnings {
            complain_note(&format!("{}: {warning}", past.dir.display()));
        }
        let prefix = format!("part-{number}");
        let name = past.dir.display().to_string();
        dirs.push((past.dir, prefix.clone()));
        all.push(Part { name, prefix, events: past.events });
    }
    apart(args.output.as_deref(), &dirs)?;
    let events = merged(all).map_err(|e| e.to_string())?;
    // The place for a new run is made by clearing away old ones.
    let held: Vec<_> = dirs.iter().map(|(dir, _)| RunDir::hold(dir)).collect();
    let run_dir = match &args.output {
        Some(dir) => RunDir::at(dir).map_err(|e| format!("cannot use {} for the merged run: {e}", dir.display()))?,
        None => settings::new_run_dir()?,
    };
    for (dir, prefix) in &dirs {
        let left_out = parts::copy(dir, &run_dir.file(prefix))
            .map_err(|e| format!("cannot copy the files of {}: {e}", dir.display()))?;
        for what in left_out {
            complain_note(&format!("not copied: {what}"));
        }
    }
    drop(held);
    let mut log = Vec::new();
    for event in &events {
        serde_json::to_writer(&mut log, event).map_err(|e| format!("cannot write an event: {e}"))?;
        log.push(b'\n');
    }
    fs_err::write(run_dir.file(EVENTS), log).map_err(|e| format!("cannot write the event log: {e}"))?;
    let dir = run_dir.path().display().to_string();
    if !args.quiet {
        let mut text = Vec::new();
        report::tell(&events, &mut text, false, &dir).map_err(|e| format!("cannot tell of the merged run: {e}"))?;
        text.extend(format!("merged into {dir}\n").into_bytes());
        write_out(&text)?;
    }
    let run = RunSummary::of(&events);
    report::whole(&run, &dir)?;
    Ok(run.ended.map_or(exit_code::CANNOT_RUN, |ended| ended.exit_code))
}
