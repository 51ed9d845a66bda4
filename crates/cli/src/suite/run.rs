//! `belljar test`.

use std::{
    cell::RefCell,
    collections::HashMap,
    io::{self, IsTerminal, Stdout},
    path::Path,
    rc::Rc,
};

use belljar_guest_spec::WorkspaceMode;
use belljar_model::{Event, RunSummary, UnitId, exit_code, log::Line, read_log, test_run::Host};
use belljar_report::{
    Format, Reporter,
    run::Level,
    terminal::{Options, TestReporter},
};
use belljar_runner::{
    beneath::ReportPlace,
    cancel,
    log::EventLog,
    run_dir::{self, RunDir},
    suite::{Cases, Request, RunControl, RunLimits, StandStill, resources::Memory},
};
use belljar_suite::filter::{Field, Filter, Matcher};
use indicatif::ProgressDrawTarget;
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::LocalSet,
};

use super::{
    Refused,
    args::TestArgs,
    chosen::Chosen,
    list::{listing, surroundings},
    report::{check_target, write_file},
};
use crate::{
    complain, complain_note, env,
    input::is_in_background,
    run::{hear_signals, runtime},
    settings, template, write_out,
};

/// A report, and where it goes, or why it cannot.
type WantedReport = (Format, Result<ReportPlace, String>);

type Teller = Rc<RefCell<Option<Box<TestReporter<Stdout>>>>>;

/// Runs the suite.
pub(crate) fn test(args: TestArgs) -> Result<u8, Refused> {
    let mut chosen = Chosen::new(&args.suite)?;
    let repeat = args.repeat.unwrap_or(1);
    let plan = chosen.plan(&Cases::new(), repeat);
    for note in chosen.discovery.notes.iter().chain(plan.notes.iter()) {
        complain_note(&note.to_string());
    }
    if plan.units.is_empty() && plan.skipped.iter().all(|s| !s.reason.is_verdict()) {
        let code = if chosen.nothing_to_rerun() { exit_code::OK } else { exit_code::NO_TESTS };
        if code == exit_code::OK {
            complain_note(&chosen.why_none(&plan));
            return Ok(code);
        }
        return Err(Refused { message: chosen.why_none(&plan), code });
    }
    if args.host.dry_run {
        let listing = listing(&plan, &chosen, (args.host.qemu.as_deref(), args.host.engine.as_deref()))?;
        return Ok(write_out(listing.human(args.host.verbose > 0).as_bytes())?);
    }
    let around = surroundings(&plan);
    let exposed = plan.units.iter().any(|unit| unit.settings.workspace_mode == WorkspaceMode::Rw);
    let exposed = exposed.then_some(&*chosen.config.workspace);
    // The run makes its own.
    drop(plan);
    let limits = limits(&args, &chosen).map_err(Refused::usage)?;
    let templates = template::settings(&args.host)?;
    let mut reports = reports(&args, &chosen)?;
    let mut run_dir = settings::run_dir(&args.host, exposed)?;
    let backends = settings::backends(args.host.qemu.as_deref(), args.host.engine.as_deref(), args.accel, templates)?;
    // The next run learns from this one even if it is cut off.
    chosen.history.begin(run_dir.path());
    remember(&chosen);
    let chosen = Rc::new(chosen);
    let planner = Rc::clone(&chosen);
    let request = Request {
        run: run_dir.id().clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect(),
        host_words: host_words(limits.max_cpus),
        plan: Box::new(move |cases| planner.plan(cases, repeat)),
        setup: chosen.discovery.setup.clone(),
        workspace: fs_err::canonicalize(&chosen.config.workspace).map_err(|e| format!("the workspace: {e}"))?,
        around,
        backends,
        run_dir: run_dir.path().to_owned(),
        limits,
    };
    let ended = go(request, &args, &chosen, &run_dir);

    let Ok(mut chosen) = Rc::try_unwrap(chosen) else {
        return Err("Belljar's own work went on after its end; please report it".to_owned().into());
    };
    chosen.history.learn_from(run_dir.path());
    remember(&chosen);
    let written = if ended.is_ok() { write_reports(&mut reports, &run_dir) } else { Ok(()) };
    let delivered = run_dir.deliver().map_err(|e| e.to_string());
    let mut code = ended?;
    for message in [written.err(), delivered.err()].into_iter().flatten() {
        complain(&message);
        // Whoever reads the reports must not take their absence for success.
        if code == exit_code::OK {
            code = exit_code::CANNOT_RUN;
        }
    }
    Ok(code)
}

fn go(request: Request, args: &TestArgs, chosen: &Chosen, run_dir: &RunDir) -> Result<u8, Refused> {
    let runtime = runtime()?;
    let ended = LocalSet::new().block_on(&runtime, async {
        let teller: Teller = Rc::new(RefCell::new(Some(Box::new(reporter(args, chosen, run_dir)))));
        let unsaid = Rc::new(RefCell::new(None));
        let note = {
            let unsaid = Rc::clone(&unsaid);
            move |said: io::Result<()>| match said {
                // With standard output closed there is nobody to tell; the log has it all.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    unsaid.borrow_mut().get_or_insert(error);
                }
                _ => {}
            }
        };
        let observer = {
            let (teller, note) = (Rc::clone(&teller), note.clone());
            move |event: &Event| {
                if let Some(reporter) = teller.borrow_mut().as_mut() {
                    note(reporter.on_event(event));
                }
            }
        };
        let log = EventLog::create(&run_dir.file(run_dir::EVENTS), Box::new(observer))
            .map_err(|e| format!("cannot write the event log: {e}"))?;
        let (canceller, cancel) = cancel::channel();
        let canceller = Rc::new(canceller);
        hear_signals(Rc::clone(&canceller)).map_err(|e| format!("cannot listen for signals: {e}"))?;
        let (stops, stand_still) = mpsc::unbounded_channel();
        hear_ctrl_z(stops).map_err(|e| format!("cannot listen for signals: {e}"))?;
        let control = RunControl { canceller, cancel, stand_still };
        let ended = belljar_runner::suite::run(request, log, control).await;
        if let Some(reporter) = teller.borrow_mut().take() {
            note(reporter.finish());
        }
        ended.map(|ended| (ended.exit_code, unsaid.borrow_mut().take()))
    });
    runtime.shutdown_background();
    let (code, unsaid) = ended?;
    if let Some(error) = unsaid {
        let log = run_dir.shown().join(run_dir::EVENTS);
        complain(&format!(
            "cannot write to standard output: {error}; `belljar report` tells what is in {}",
            log.display()
        ));
        if code == exit_code::OK {
            return Ok(exit_code::CANNOT_RUN);
        }
    }
    Ok(code)
}

fn reporter(args: &TestArgs, chosen: &Chosen, run_dir: &RunDir) -> TestReporter<Stdout> {
    let level = settings::level(&args.host);
    let terminal = io::stdout().is_terminal();
    let history = chosen
        .durations()
        .iter()
        .map(|(id, took)| (UnitId::from(id.as_str()), u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
    let config = args.suite.config.clone();
    TestReporter::new(
        io::stdout(),
        Options {
            level,
            color: terminal && env::get(env::NO_COLOR).is_none(),
            live: (terminal && level > Level::Quiet && !is_in_background(io::stdout()))
                .then(ProgressDrawTarget::stdout),
            run_dir: run_dir.shown().display().to_string(),
            rerun: Box::new(move |unit| again(&unit.unit, config.as_deref())),
            history: history.collect::<HashMap<_, _>>(),
        },
    )
}

/// The command that runs a unit again alone.
pub(super) fn again(unit: &UnitId, config: Option<&Path>) -> String {
    let filter = Filter::Is(Field::Id, Matcher::Exact(unit.as_str().to_owned())).to_string();
    let quote = |text: &str| shlex::try_quote(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned);
    let config = config.map(|c| format!(" --config {}", quote(&c.display().to_string()))).unwrap_or_default();
    format!("belljar test{config} {}", quote(&filter))
}

/// Ctrl-Z: the run stands still, and this process with it, until somebody lets it go on.
fn hear_ctrl_z(stops: mpsc::UnboundedSender<StandStill>) -> io::Result<()> {
    let mut pressed = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
    tokio::task::spawn_local(async move {
        while pressed.recv().await.is_some() {
            // Returns when somebody sends SIGCONT.
            let stop: StandStill = Box::new(|| {
                // A process can always stop itself.
                let _ = kill_process(getpid(), Signal::STOP);
            });
            if stops.send(stop).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn limits(args: &TestArgs, chosen: &Chosen) -> Result<RunLimits, String> {
    let profile = &chosen.profile;
    let max_memory = settings::bound("--max-memory", args.max_memory.as_deref())?;
    let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    Ok(RunLimits {
        jobs: args.jobs.or(profile.jobs),
        max_memory: max_memory.or(profile.max_memory),
        max_cpus: args.max_cpus.or(profile.max_cpus).unwrap_or(cpus),
        groups: chosen.config.groups.clone(),
        fail_fast: args.fail_fast || (profile.fail_fast && !args.no_fail_fast),
        global_timeout: args.global_timeout.or(profile.global_timeout),
        error_retries: args.error_retries.unwrap_or(profile.error_retries),
        until_fail: args.until_fail,
    })
}

fn host_words(cpus: u32) -> Host {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    Host {
        name: text(system.nodename()),
        kernel: format!("{} {}", text(system.sysname()), text(system.release())),
        arch: text(system.machine()),
        cpus,
        memory: Memory::of_host().total,
        accelerator: String::new(),
    }
}

/// The reports that are wanted: those of flags where the user is, those of the profile beside `belljar.toml`.
fn reports(args: &TestArgs, chosen: &Chosen) -> Result<Vec<WantedReport>, String> {
    let profile = &chosen.profile;
    let wanted = [
        (Format::Junit, &args.junit, &profile.junit),
        (Format::Tap, &args.tap, &profile.tap),
        (Format::Html, &args.html, &profile.html),
    ];
    let mut reports = Vec::new();
    for (format, flag, configured) in wanted {
        if let Some(path) = flag.as_ref().or(configured.as_ref()) {
            check_target(&settings::absolute(path)?)?;
            // Before any guest runs: what is there now is not theirs.
            let place = ReportPlace::new(path, &chosen.config.workspace);
            let place = place.map_err(|e| format!("cannot write the report {}: {e}", path.display()));
            reports.push((format, place));
        }
    }
    Ok(reports)
}

/// Writes the reports from the event log, as `belljar report` would.
fn write_reports(reports: &mut [WantedReport], run_dir: &RunDir) -> Result<(), String> {
    if reports.is_empty() {
        return Ok(());
    }
    let file = run_dir.open(run_dir::EVENTS).map_err(|e| format!("cannot read the event log: {e}"))?;
    let mut run = RunSummary::default();
    for line in read_log(io::BufReader::new(file)) {
        if let Line::Event(event) = line.map_err(|e| format!("cannot read the event log: {e}"))? {
            run.apply(&event);
        }
    }
    for (format, place) in reports {
        let place = place.as_mut().map_err(|e| e.clone())?;
        let path = place.path().to_owned();
        let mut text = Vec::new();
        let dir = run_dir.shown().display().to_string();
        format.write(&run, &dir, &mut text).map_err(|e| format!("cannot make the report {}: {e}", path.display()))?;
        if place.is_special() {
            write_file(&path, &text)?;
            continue;
        }
        place.write(&text).map_err(|e| format!("cannot write the report {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Keeps the history; a run does not fail for want of it.
fn remember(chosen: &Chosen) {
    if let Err(error) = chosen.history.save(&chosen.history_file) {
        complain_note(&format!("cannot remember this run for --rerun-failed and the order of the next: {error}"));
    }
}
