//! A run of a suite: its parts are put together, and its end is told.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    rc::Rc,
};

use belljar_guest_spec::Surroundings;
use belljar_machine::{
    Cause, Lost,
    backend::{Backend, Backends},
};
use belljar_model::{
    EventKind, RunId, UnitId,
    event::SCHEMA,
    exit_code,
    test_run::{Counts, Host, TestRunEnded, TestRunStarted, Unit as UnitEvent, UnitSkipped},
};
use belljar_suite::{discover::SetUp, plan::Plan};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    attempt::millis,
    cancel::Why,
    door::Door,
    event_writer::EventWriter,
    executor::{
        Attempts, Executor, Units,
        listing::{self, Cases},
    },
    log::{EventLog, unwritten},
    machines::{KeptSetUps, MachineContext, Machines, SetUpScripts, clocks::Clocks, pool::Pool},
    schedule::{
        Dispatcher, DispatcherContext, RunControl, RunLimits,
        resources::{self, Memory, no_room_for},
        signal_words,
    },
};

/// A run of a suite.
pub struct Request {
    /// Names the run.
    pub run: RunId,
    /// Belljar's version.
    pub version: String,
    /// The command line.
    pub command: Vec<String>,
    /// The host; the accelerator is found out.
    pub host_words: Host,
    /// Makes the plan; again, when the tests in libtest binaries are known.
    pub plan: Box<dyn Fn(&Cases) -> Plan>,
    /// The set-ups of suites, by the suite's name.
    pub setup: BTreeMap<String, SetUp>,
    /// The host directory that guests see.
    pub workspace: PathBuf,
    /// What of the environment guests depend on.
    pub around: Surroundings,
    /// What gives guests.
    pub backends: Backends,
    /// The run's directory.
    pub run_dir: PathBuf,
    /// How much at the same time, and for how long.
    pub limits: RunLimits,
}

/// How the run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How many units ended how.
    pub counts: Counts,
    /// The exit code of the program.
    pub exit_code: u8,
    /// Where the counts alone do not say it.
    pub message: Option<String>,
}

/// Runs the suite. Everything is in the log when this returns.
///
/// Must run within a [`tokio::task::LocalSet`].
///
/// # Errors
/// If what gives the plan's guests cannot give any on this host.
pub async fn run(request: Request, log: EventLog, mut control: RunControl) -> Result<Ended, String> {
    let started = Instant::now();
    let log = EventWriter::new(log);
    let first = (request.plan)(&Cases::new());
    let accelerator = probe(&first, &request.backends).await.map_err(|lost| lost.to_string())?;
    log.emit(EventKind::TestRunStarted(TestRunStarted {
        schema: SCHEMA,
        run: request.run.clone(),
        version: request.version.clone(),
        host: Host { accelerator, ..request.host_words.clone() },
        profile: first.profile.clone(),
        command: request.command.clone(),
        partition: first.partition.map(|p| p.to_string()),
        missing: None,
        jobs: request.limits.jobs,
    }));

    let clocks = Clocks::default();
    let mut machines = machines(&request, &first, &log, &control, &clocks);
    let mut barred = HashMap::new();
    let mut plan = first;
    if plan.units.iter().any(|u| u.to_be_listed) {
        let listing = listing::list(&machines, &plan, &log, control.cancel.clone());
        let listed = loop_while(listing, &mut control, &log, &clocks).await;
        barred = listed.unlisted;
        plan = (request.plan)(&listed.cases);
        machines = machines.of_plan(plan.machines.iter().map(|m| m.spec(&request.around)));
    }
    tell_plan(&log, &plan);
    let footprints = resources::of_units(&plan, &request.backends);
    for (unit, takes) in plan.units.iter().zip(&footprints) {
        let no_room = || no_room_for(takes, request.limits.max_memory, Memory::of_host());
        let why = match machines.lacks(&plan, unit) {
            Some(why) => Some(Cause::Skipped(why)),
            None => no_room().map(Cause::NotTried),
        };
        barred.extend(why.map(|why| (unit.id.clone(), why.into())));
    }
    let machines = Rc::new(machines);
    let pool = Rc::new(Pool::new(Rc::clone(&machines), log.clone(), control.cancel.clone()));
    let units = Units {
        attempts: Attempts {
            log: log.clone(),
            cancel: control.cancel.clone(),
            machines: Rc::clone(&machines),
            pool: Rc::clone(&pool),
            run_dir: request.run_dir.clone(),
            door: Door::open(&request.run_dir).ok().map(Rc::new),
        },
        barred,
        error_retries: request.limits.error_retries,
        until_fail: request.limits.until_fail,
    };
    let (to_dispatcher, messages) = mpsc::unbounded_channel();
    let executor = Rc::new(Executor::new(units, to_dispatcher));
    let context = DispatcherContext {
        log: log.clone(),
        footprints,
        clocks,
        pool,
        executor,
        messages,
        cancel: control.cancel.clone(),
    };
    let dispatcher = Dispatcher::new(Rc::new(plan), request.limits.clone(), context);
    let (counts, early) = dispatcher.run(&mut control).await;
    machines.clear();

    let (code, message) = outcome(&log, counts, early);
    let ended = Ended { counts, exit_code: code, message: message.clone() };
    let millis = millis(started);
    let told = EventKind::TestRunEnded(TestRunEnded { counts, exit_code: code, millis, message });
    // Even this last line may be what the disk has no room for.
    let told = log.end(told, |told, error| match told {
        EventKind::TestRunEnded(ended) => EventKind::TestRunEnded(TestRunEnded {
            exit_code: if ended.exit_code == exit_code::OK { exit_code::CANNOT_RUN } else { ended.exit_code },
            message: Some(unwritten(error)),
            ..ended
        }),
        other => other,
    });
    Ok(match told {
        EventKind::TestRunEnded(TestRunEnded { exit_code, message, .. }) => Ended { exit_code, message, ..ended },
        _ => ended,
    })
}

/// Finds out whether there can be guests: whatever gives those of the plan is asked, and nothing else. Gives the accelerator that they have
/// unless they say otherwise; an empty one where none has any.
async fn probe(plan: &Plan, backends: &Backends) -> Result<String, Lost> {
    let mut asked: Vec<&Rc<dyn Backend>> = Vec::new();
    let mut accelerators = Vec::new();
    for machine in &plan.machines {
        let backend = backends.of(&machine.guest.spec.source)?;
        if !asked.iter().any(|other| Rc::ptr_eq(other, backend)) {
            accelerators.extend(backend.probe().await?);
            asked.push(backend);
        }
    }
    Ok(accelerators.join(", "))
}

/// Waits for `work`, standing still meanwhile whenever somebody wants it.
async fn loop_while<T>(
    work: impl Future<Output = T>,
    control: &mut RunControl,
    log: &EventWriter,
    clocks: &Clocks,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(stop) = control.stand_still.recv() => clocks.stand_still(log, stop).await,
            done = &mut work => return done,
        }
    }
}

/// The machines of the first plan.
fn machines(request: &Request, plan: &Plan, log: &EventWriter, control: &RunControl, clocks: &Clocks) -> Machines {
    let context = MachineContext {
        log: log.clone(),
        cancel: control.cancel.clone(),
        backends: request.backends.clone(),
        run_dir: request.run_dir.clone(),
        workspace: request.workspace.clone(),
        clocks: clocks.clone(),
        kept: KeptSetUps::new(&request.run_dir, &request.workspace, &request.setup, plan),
    };
    let scripts = SetUpScripts::new(log.clone(), request.setup.clone());
    Machines::new(context, scripts, plan.machines.iter().map(|m| m.spec(&request.around)))
}

/// Tells which units there are.
fn tell_plan(log: &EventWriter, plan: &Plan) {
    for unit in &plan.units {
        log.emit(EventKind::UnitPlanned(UnitEvent {
            unit: UnitId::from(unit.id.as_str()),
            suite: unit.suite.name.clone(),
            test: match &unit.case {
                Some(case) => format!("{}::{case}", unit.test),
                None => unit.test.clone(),
            },
            guest: unit.guest.name.clone(),
            tags: unit.settings.tags.iter().cloned().collect(),
            file: Some(unit.file.clone()),
        }));
    }
    for skipped in plan.skipped.iter().filter(|s| s.reason.is_verdict()) {
        log.emit(EventKind::UnitSkipped(UnitSkipped {
            unit: UnitEvent {
                unit: UnitId::from(skipped.id.as_str()),
                suite: skipped.suite.clone(),
                test: skipped.test.clone(),
                guest: skipped.guest.clone(),
                tags: Vec::new(),
                file: Some(skipped.file.clone()),
            },
            reason: skipped.reason.to_string(),
        }));
    }
}

/// The exit code, and what the counts do not say.
fn outcome(log: &EventWriter, counts: Counts, early: Option<Why>) -> (u8, Option<String>) {
    if let Some(why) = log.failure() {
        return (exit_code::CANNOT_RUN, Some(why));
    }
    match early {
        Some(Why::Signal(number)) => {
            (exit_code::for_signal(number), Some(format!("interrupted by {}", signal_words(number))))
        }
        Some(Why::OutOfTime(limit)) => {
            let message =
                format!("the run as a whole was given {} (global-timeout)", belljar_machine::for_people(limit));
            let code = if counts.exit_code() == exit_code::OK { exit_code::TESTS_FAILED } else { counts.exit_code() };
            (code, Some(message))
        }
        None => (counts.exit_code(), None),
    }
}
