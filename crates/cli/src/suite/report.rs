//! `belljar report`: a run's reports again, from its event log.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use belljar_model::{Event, RunSummary, exit_code};
use belljar_report::{
    Format, Reporter,
    run::Level,
    terminal::{Options, TestReporter},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
};

use super::{
    Refused,
    args::{ReportArgs, ReportFormat},
    past,
};
use crate::{complain_note, env, write_out};

/// Writes a report of a run that is over or was cut off.
pub(crate) fn report(args: &ReportArgs) -> Result<u8, Refused> {
    let past = past::read(&args.run)?;
    past.warnings.iter().for_each(|w| complain_note(w));
    let dir = past.dir.display().to_string();
    let color = args.output.is_none() && io::stdout().is_terminal() && env::get(env::NO_COLOR).is_none();
    let mut text = Vec::new();
    match args.format {
        ReportFormat::Text => tell(&past.events, &mut text, color, &dir),
        ReportFormat::Json => past.events.iter().try_for_each(|event| {
            serde_json::to_writer(&mut text, event)?;
            text.write_all(b"\n")
        }),
        ReportFormat::Junit => Format::Junit.write(&RunSummary::of(&past.events), &dir, &mut text),
        ReportFormat::Tap => Format::Tap.write(&RunSummary::of(&past.events), &dir, &mut text),
        ReportFormat::Html => Format::Html.write(&RunSummary::of(&past.events), &dir, &mut text),
    }
    .map_err(|e| format!("cannot make the report: {e}"))?;
    match &args.output {
        Some(file) => write_file(file, &text)?,
        None => drop(write_out(&text)?),
    }
    whole(&RunSummary::of(&past.events), &dir)?;
    Ok(exit_code::OK)
}

/// Parts of a run are no success, whatever is asked of them: refuses them, after they were shown.
pub(super) fn whole(run: &RunSummary, dir: &str) -> Result<(), Refused> {
    let Some(incomplete) = run.incomplete() else { return Ok(()) };
    Err(Refused {
        message: format!("{dir}: {incomplete}\nrun them, and merge all parts into another directory"),
        code: run.ended.as_ref().map_or(exit_code::CANNOT_RUN, |ended| ended.exit_code),
    })
}

/// What `belljar test` said, or would have said.
pub(super) fn tell(events: &[Event], out: &mut dyn Write, color: bool, run_dir: &str) -> io::Result<()> {
    let options = Options {
        level: Level::Normal,
        color,
        live: None,
        run_dir: run_dir.to_owned(),
        rerun: Box::new(|unit| super::run::again(&unit.unit, None)),
        history: HashMap::new(),
    };
    let mut reporter = Box::new(TestReporter::new(out, options));
    for event in events {
        reporter.on_event(event)?;
    }
    reporter.finish()
}

/// Whether a report can be written here, as far as can be told before there is one: whoever waits an hour for it is told at once.
pub(super) fn check_target(file: &Path) -> Result<(), String> {
    let refuse = |why: String| Err(format!("cannot write the report {}: {why}", file.display()));
    match rustix::fs::stat(file).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Directory) => refuse("it is a directory; name a file in it".to_owned()),
        Ok(FileType::Socket) => refuse("it is a socket".to_owned()),
        Err(error @ Errno::LOOP) => refuse(io::Error::from(error).to_string()),
        // The file itself is made then, and directories above it.
        _ => Ok(()),
    }
}

/// Writes a report, whole or not at all.
pub(super) fn write_file(file: &Path, text: &[u8]) -> Result<(), String> {
    check_target(file)?;
    let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        fs_err::create_dir_all(parent)?;
        if fs_err::metadata(file).is_ok_and(|m| !m.is_file()) {
            // A pipe or /dev/stdout is written to as it is.
            return write_special(file, text);
        }
        let mut new = tempfile::Builder::new().permissions(permissions()).tempfile_in(parent)?;
        new.write_all(text)?;
        new.persist(file).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| format!("cannot write the report {}: {e}", file.display()))
}

/// Writes to what is no file, and waits for whoever reads there no longer than [`READER_LIMIT`] for each step.
fn write_special(file: &Path, text: &[u8]) -> io::Result<()> {
    let since = Instant::now();
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let target = loop {
        match rustix::fs::open(file, flags, Mode::empty()) {
            // A pipe that nobody has open for reading yet: of that nobody is told.
            Err(Errno::NXIO) if since.elapsed() < READER_LIMIT => std::thread::sleep(READER_LOOK),
            Err(Errno::NXIO) => {
                return Err(io::Error::other(format!("nobody reads it ({} s)", READER_LIMIT.as_secs())));
            }
            opened => break opened?,
        }
    };
    let mut rest = text;
    while !rest.is_empty() {
        match rustix::io::write(&target, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let limit = Timespec::try_from(READER_LIMIT).map_err(io::Error::other)?;
                if poll(&mut [PollFd::new(&target, PollFlags::OUT)], Some(&limit))? == 0 {
                    let limit = READER_LIMIT.as_secs();
                    return Err(io::Error::other(format!("nobody has read any more of it for {limit} s")));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How long a pipe's reader is waited for.
const READER_LIMIT: Duration = Duration::from_secs(2);
const READER_LOOK: Duration = Duration::from_millis(20);

/// A report is for everybody who may read what the user's umask allows.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o666)
}
