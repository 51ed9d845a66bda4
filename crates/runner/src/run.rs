//! One command in one fresh guest.

use std::{path::PathBuf, time::Duration};

use belljar_guest_spec::{GuestSpec, scheduled::ScheduledOrder};
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

use crate::{
    attempt::{self, CommandEnd, Tripped},
    cancel::Cancel,
    door::Door,
    exec::Limit,
    log::{EventLog, unwritten},
    orders::OrdersFor,
    out_dir::HeldOut,
};

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
    /// What happens to its machine while the command runs.
    pub orders: Vec<ScheduledOrder>,
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
        Ok(CommandEnd { exit, tripped }) => {
            let (verdict, message) = Tripped::verdict(tripped.as_deref(), Verdict::of_exit(exit), None);
            (verdict, message, Vec::new())
        }
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
    let why = unwritten(error);
    match verdict {
        Verdict::Pass => {
            let message = format!("the command passed, but {why}");
            ended(Verdict::Error(Fault::Host { message }), None)
        }
        verdict => {
            let before = message.map(|m| m + "\n").unwrap_or_default();
            ended(verdict, Some(format!("{before}{why}")))
        }
    }
}

async fn attempt_once(
    request: Request,
    io: RunIo<'_>,
    cancel: &mut Cancel,
    log: &mut EventLog,
) -> Result<CommandEnd, Lost> {
    let Request { guest, share, dir, backends, command, timeout, power_off, orders, .. } = request;
    let door = Door::open(&dir).ok();
    let mut observe = |kind| log.emit(kind);
    observe(EventKind::Phase { phase: Phase::Prepare });
    let out = share.out.clone();
    let wanted = PrepareRequest { spec: guest, share: share.clone(), dir: dir.clone(), leased_at_once: true };
    let prepared = attempt::prepare(&backends, wanted, cancel).await;
    let out = HeldOut::new(&out).map_err(|error| {
        Cause::host_file(&format!("open the output directory {}", out.display()), &error, "name another with --out")
    })?;
    let wanted = LeaseRequest { view: io.console, ..LeaseRequest::new(share, dir) };
    let mut guest = attempt::lease(&*prepared?, wanted, cancel, &mut observe).await?;
    let streams = guest::Io { stdin: io.stdin, sink: io.sink, control: io.control };
    let limit = Limit { after: timeout, name: "--timeout" };
    let exit = match command {
        Some(command) => {
            let orders = OrdersFor { schedule: &orders, door: door.as_ref().map(|door| (door, "")) };
            attempt::command(&mut *guest, command, streams, orders, limit, cancel, &mut observe).await
        }
        None => Ok(CommandEnd { exit: Exit::Code(0), tripped: None }),
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use belljar_guest_spec::{Source, WorkspaceMode};
    use belljar_machine::{
        bounds::Bounds,
        session::agent::SinkFuture,
        spec::{ShareSpec, Workspace},
    };

    use super::*;
    use crate::{
        cancel,
        pretend::{Fate, Pretend},
    };

    #[derive(Default)]
    struct Heard(Vec<u8>);

    impl OutputSink for Heard {
        fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
            self.0.extend_from_slice(bytes);
            Box::pin(std::future::ready(Ok(())))
        }

        fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    struct Told {
        verdict: Verdict,
        output: Vec<u8>,
        events: Vec<EventKind>,
    }

    /// Runs these steps in a guest that is pretended.
    async fn told(pretend: &Pretend, steps: &str, power_off: bool) -> Told {
        let dir = tempfile::tempdir().unwrap();
        let (workspace, out) = (dir.path().join("workspace"), dir.path().join("out"));
        fs_err::create_dir(&workspace).unwrap();
        fs_err::create_dir(&out).unwrap();
        fs_err::write(workspace.join("steps"), steps).unwrap();
        let mount_at = belljar_guest_spec::DEFAULT_MOUNT_AT.to_owned();
        let command = GuestCommand {
            argv: vec![format!("{mount_at}/steps").into_bytes()],
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            guards: None,
        };
        let workspace = Some(Workspace { dir: workspace, mode: WorkspaceMode::Rw, mount_at });
        let request = Request {
            run: RunId::new(jiff::Timestamp::UNIX_EPOCH, 1),
            version: "0".into(),
            guest: GuestSpec::new(Source::host()),
            guest_name: "host".into(),
            share: ShareSpec { workspace, out, out_wanted: false, bounds: Bounds::default(), modules: None },
            dir: dir.path().to_owned(),
            backends: pretend.alone(),
            command: Some(command),
            orders: Vec::new(),
            timeout: Some(Duration::from_secs(60)),
            power_off,
        };
        let events: Rc<RefCell<Vec<EventKind>>> = Rc::default();
        let seen = Rc::clone(&events);
        let observer = Box::new(move |event: &belljar_model::Event| seen.borrow_mut().push(event.kind.clone()));
        let mut log = EventLog::create(&dir.path().join("events.jsonl"), observer).unwrap();
        let mut heard = Heard::default();
        let io = RunIo { stdin: None, sink: &mut heard, control: None, console: None };
        let (_canceller, cancel) = cancel::channel();
        let verdict = run(request, io, cancel, &mut log).await;
        let events = events.borrow().clone();
        Told { verdict, output: heard.0, events }
    }

    #[tokio::test(start_paused = true)]
    async fn one_command_in_one_guest() {
        let pretend = Pretend::new(Fate::default());
        let ran = told(&pretend, "say hello\nexit 3", false).await;
        assert_eq!((ran.verdict.run_exit_code(), &*ran.output), (3, &b"hello\n"[..]));
        let steps = ["all: prepare", "0: lease", "0: run steps", "0: close Kill", "0: gone"];
        assert_eq!(pretend.journal(), steps);
        let chosen = |kind: &EventKind| matches!(kind, EventKind::Choice { chosen, .. } if chosen == "pretended");
        assert!(ran.events.iter().any(chosen), "what was chosen is told");
    }

    #[tokio::test(start_paused = true)]
    async fn how_the_guest_ends_is_asked_for_or_follows_from_how_the_command_did() {
        let ended = async |steps, power_off| {
            let pretend = Pretend::new(Fate::default());
            let verdict = told(&pretend, steps, power_off).await.verdict;
            let ending = pretend.journal().into_iter().find(|line| line.contains("close")).unwrap_or_default();
            (verdict.run_exit_code(), ending)
        };
        assert_eq!(ended("", true).await, (0, "0: close PowerOff".to_owned()));
        assert_eq!(ended("crash", true).await, (121, "0: close Hurry".to_owned()));
        assert_eq!(ended("hang", false).await, (124, "0: close Hurry".to_owned()));
        assert_eq!(
            ended("unsynced", false).await,
            (125, "0: close Kill".to_owned()),
            "no pass that nobody vouches for"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_did_not_come_up_shows_its_console() {
        let pretend = Pretend::new(Fate { lost_on_lease: 1.into(), ..Fate::default() });
        let ran = told(&pretend, "", false).await;
        assert_eq!(ran.verdict.run_exit_code(), 125);
        let tail = |kind: &EventKind| matches!(kind, EventKind::ConsoleTail { lines } if lines == &["no root"]);
        assert!(ran.events.iter().any(tail));
    }
}
