//! One command in one fresh guest.

use std::{path::PathBuf, time::Duration};

use belljar_guest_spec::GuestSpec;
use belljar_machine::{
    Cause, Lost,
    backend::{Backends, LeaseRequest, PrepareRequest},
    command::GuestCommand,
    guest::{self, Ending, Views},
    session::agent::{ExecControl, OutputSink},
    spec::ShareSpec,
};
use belljar_model::{EventKind, Exit, Phase, RunId, Verdict, event::SCHEMA, verdict::Fault};
use tokio::{io::AsyncRead, sync::mpsc};

use crate::{attempt, cancel::Cancel, exec::Limit, log::EventLog, out_dir::HeldOut};

/// Lines of the console that are shown where a run ended badly.
const TAIL: usize = 15;

/// What is to be run, and where.
#[derive(Debug)]
pub struct Request {
    /// Names the run in its log.
    pub run: RunId,
    /// Belljar's version, for the log.
    pub version: String,
    /// The guest.
    pub guest: GuestSpec,
    /// The guest in a person's words.
    pub guest_name: String,
    /// What it sees of the host.
    pub share: ShareSpec,
    /// The run's directory; it exists.
    pub dir: PathBuf,
    /// What gives the guest.
    pub backends: Backends,
    /// The command; none for a guest that is only to have been there, so that its template is made.
    pub command: Option<GuestCommand>,
    /// Limit to the command alone.
    pub timeout: Option<Duration>,
    /// End the guest through its own service manager.
    pub power_off: bool,
}

/// What the command is connected to.
pub struct RunIo<'a> {
    /// Its standard input; none is an empty one.
    pub stdin: Option<&'a mut (dyn AsyncRead + Unpin + Send)>,
    /// Takes its output.
    pub sink: &'a mut dyn OutputSink,
    /// Signals and window sizes while it runs.
    pub control: Option<mpsc::Receiver<ExecControl>>,
    /// Gets the guest's console to look at, as soon as there is one; another if the guest is the copy of one that booted.
    pub console: Option<Views>,
}

/// Boots, runs, ends; logs everything. Returns what the log's last event says.
pub async fn run(request: Request, io: RunIo<'_>, mut cancel: Cancel, log: &mut EventLog) -> Verdict {
    log.emit(EventKind::RunStarted {
        schema: SCHEMA,
        run: request.run.clone(),
        version: request.version.clone(),
        guest: request.guest_name.clone(),
        command: request
            .command
            .iter()
            .flat_map(|c| &c.argv)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect(),
    });
    let attempted = attempt_once(request, io, &mut cancel, log).await;
    let (verdict, message, tail) = match attempted {
        Ok(exit) => (Verdict::of_exit(exit), None, Vec::new()),
        Err(lost) => (lost.verdict(), lost.message(), lost.tail),
    };
    if !tail.is_empty() {
        let from = tail.len().saturating_sub(TAIL);
        log.emit(EventKind::ConsoleTail { lines: tail[from..].to_vec() });
    }
    let told = match log.take_failure() {
        Some(error) => unlogged(verdict, message, &error),
        None => ended(verdict, message),
    };
    // Even this last line may be what the disk has no room for.
    let told = log.end(told, |told, error| match told {
        EventKind::RunEnded { verdict, message, .. } => unlogged(verdict, message, error),
        other => other,
    });
    match told {
        EventKind::RunEnded { verdict, .. } => verdict,
        _ => Verdict::Error(Fault::Host { message: "the run has no end; please report it".into() }),
    }
}

fn ended(verdict: Verdict, message: Option<String>) -> EventKind {
    EventKind::RunEnded { exit_code: verdict.run_exit_code(), verdict, message }
}

/// The end of a run whose log is not whole: a pass that its own log cannot vouch for is none.
fn unlogged(verdict: Verdict, message: Option<String>, error: &std::io::Error) -> EventKind {
    const LOG: &str = "the event log could not be written";
    match verdict {
        Verdict::Pass => {
            let message = format!("the command passed, but {LOG}: {error}; free some space");
            ended(Verdict::Error(Fault::Host { message }), None)
        }
        verdict => {
            let before = message.map(|m| m + "\n").unwrap_or_default();
            ended(verdict, Some(format!("{before}{LOG}: {error}; free some space")))
        }
    }
}

async fn attempt_once(request: Request, io: RunIo<'_>, cancel: &mut Cancel, log: &mut EventLog) -> Result<Exit, Lost> {
    let Request { guest, share, dir, backends, command, timeout, power_off, .. } = request;
    let mut observe = |kind| log.emit(kind);
    observe(EventKind::Phase { phase: Phase::Prepare });
    let out = share.out.clone();
    let wanted = PrepareRequest { spec: guest, share: share.clone(), dir: dir.clone() };
    let prepared = attempt::prepare(&backends, wanted, cancel).await;
    let out = HeldOut::new(&out).map_err(|error| {
        Cause::host_file(&format!("open the output directory {}", out.display()), &error, "name another with --out")
    })?;
    let wanted = LeaseRequest { view: io.console, ..LeaseRequest::new(share, dir) };
    let mut guest = attempt::lease(&*prepared?, wanted, cancel, &mut observe).await?;
    let streams = guest::Io { stdin: io.stdin, sink: io.sink, control: io.control };
    let limit = Limit { after: timeout, name: "--timeout" };
    let exit = match command {
        Some(command) => attempt::command(&mut *guest, command, streams, limit, cancel, &mut observe).await,
        None => Ok(Exit::Code(0)),
    };
    observe(EventKind::Phase { phase: Phase::Close });
    let how = match &exit {
        Ok(_) if power_off => Ending::PowerOff,
        Ok(_) => Ending::Kill,
        Err(_) => Ending::Hurry,
    };
    let closed = attempt::close(guest, how, cancel, &mut observe).await;
    // What the command did says more than what the guest did after it, unless that makes a pass doubtful.
    match (exit, closed) {
        (Ok(exit), Ok(())) => out.moved().map_or(Ok(exit), |why| Err(Cause::Unsynced(why).into())),
        (Ok(_), Err(lost)) => Err(lost),
        (Err(lost), _) => Err(lost),
    }
}
