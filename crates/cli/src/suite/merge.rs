//! `belljar merge`: the parts of one run made one.

use belljar_model::{
    RunSummary, exit_code,
    merge::{Shard, merge as merged},
};
use belljar_runner::{
    parts,
    run_dir::{EVENTS, RunDir},
};

use super::{Refused, args::MergeArgs, past, report};
use crate::{complain_note, settings, write_out};

/// Makes a run of several, with all their files, and exits as the run unparted would have.
pub(crate) fn merge(args: &MergeArgs) -> Result<u8, Refused> {
    let mut shards = Vec::new();
    let mut dirs = Vec::new();
    for (number, named) in (1..).zip(&args.runs) {
        let past = past::read(named)?;
        for warning in &past.warnings {
            complain_note(&format!("{}: {warning}", past.dir.display()));
        }
        let prefix = format!("part-{number}");
        dirs.push((past.dir, prefix.clone()));
        shards.push(Shard { prefix, events: past.events });
    }
    let events = merged(shards).map_err(|e| e.to_string())?;
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
    Ok(run.ended.map_or(exit_code::CANNOT_RUN, |ended| ended.exit_code))
}
