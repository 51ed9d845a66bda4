//! Starts what may start, and ends what has to end.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
};

use belljar_machine::qemu::probe;
use belljar_model::{
    EventKind, UnitId, Verdict,
    event::SCHEMA,
    exit_code,
    test_run::{Counts, TestRunEnded, TestRunStarted, Unit as UnitEvent, UnitEnded, UnitSkipped},
    verdict::{Fault, signal_name},
};
use belljar_suite::plan::Plan;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Cases, Cx, Ended, Reins, Request, RunLimits,
    kept::KeptSetUps,
    lease::Lease,
    listing, millis,
    pause::Clocks,
    pool::{Kind, Pool},
    queue::{Budget, Job, Queue},
    resources::{Memory, OVERHEAD, no_room_for},
    tell::Tell,
    unit,
};
use crate::{cancel::Why, log::EventLog};

/// Runs the suite. Everything is in the log when this returns.
///
/// Must run within a [`tokio::task::LocalSet`].
///
/// # Errors
/// If not even the first guest could be started: no QEMU, no accelerator as it was asked for.
pub async fn run(request: Request, log: EventLog, mut reins: Reins) -> Result<Ended, String> {
    let started = Instant::now();
    let tell = Tell::new(log);
    let accelerator = accelerator(&request).await?;
    let first = (request.plan)(&Cases::new());
    tell.emit(EventKind::TestRunStarted(TestRunStarted {
        schema: SCHEMA,
        run: request.run.clone(),
        version: request.version.clone(),
        host: belljar_model::test_run::Host { accelerator, ..request.host_words.clone() },
        profile: first.profile.clone(),
        command: request.command.clone(),
        partition: first.partition.map(|p| p.to_string()),
        jobs: request.limits.jobs,
    }));

    let clocks = Clocks::default();
    let instances = Rc::new(Cell::new(0));
    let kept = Rc::new(KeptSetUps::new(&request.run_dir, &request.workspace, &request.setup, &first));
    let mut unlisted = HashMap::new();
    let mut plan = first;
    if plan.units.iter().any(|u| u.to_be_listed) {
        // The listing has a context of its own: its machines are those of this plan.
        let cx = context(&request, &plan, &tell, &reins, &clocks, &instances, &kept);
        let listing = listing::list(&cx, &plan);
        let listed = loop_while(listing, &mut reins, &tell, &clocks).await;
        unlisted = listed.unlisted;
        plan = (request.plan)(&listed.cases);
    }
    tell_plan(&tell, &plan);
    let cx = Rc::new(Cx { unlisted, ..context(&request, &plan, &tell, &reins, &clocks, &instances, &kept) });
    cx.counts.borrow_mut().skip += plan.skipped.iter().filter(|s| s.reason.is_verdict()).count() as u64;
    let reason = dispatch(&cx, Rc::new(plan), &request.limits, &mut reins).await;
    kept.clear();

    let mut counts = *cx.counts.borrow();
    counts.units = cx.units;
    counts.unfinished = counts.units.saturating_sub(counts.ended());
    let (code, message) = outcome(&cx, counts, reason);
    let ended = Ended { counts, exit_code: code, message: message.clone() };
    let millis = millis(started.elapsed());
    let told = EventKind::TestRunEnded(TestRunEnded { counts, exit_code: code, millis, message });
    // Even this last line may be what the disk has no room for.
    let told = tell.end(told, |told, error| match told {
        EventKind::TestRunEnded(ended) => EventKind::TestRunEnded(TestRunEnded {
            exit_code: if ended.exit_code == exit_code::OK { exit_code::CANNOT_RUN } else { ended.exit_code },
            message: Some(unlogged(&error.to_string())),
            ..ended
        }),
        other => other,
    });
    Ok(match told {
        EventKind::TestRunEnded(TestRunEnded { exit_code, message, .. }) => Ended { exit_code, message, ..ended },
        _ => ended,
    })
}

fn unlogged(error: &str) -> String {
    format!("the event log could not be written: {error}; free some space")
}

/// The accelerator that guests have unless they say otherwise, which also finds out whether there is a QEMU at all.
async fn accelerator(request: &Request) -> Result<String, String> {
    let host = request.host.clone();
    let probing = tokio::task::spawn_blocking(move || {
        let qemu =
            probe::find_qemu(host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir).map_err(|e| e.to_string())?;
        let accel = probe::choose_accel(host.accel, &qemu, &host.shim, &host.cache_dir).map_err(|e| e.to_string())?;
        Ok(accel.accel.to_string())
    });
    probing.await.map_err(|panic| format!("looking for QEMU broke off: {panic}; please report it"))?
}

/// Waits for `work`, standing still meanwhile whenever somebody wants it.
async fn loop_while<T>(work: impl Future<Output = T>, reins: &mut Reins, tell: &Tell, clocks: &Clocks) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            Some(stop) = reins.stand_still.recv() => clocks.stand_still(tell, stop).await,
            done = &mut work => return done,
        }
    }
}

fn context(
    request: &Request,
    plan: &Plan,
    tell: &Tell,
    reins: &Reins,
    clocks: &Clocks,
    instances: &Rc<Cell<u64>>,
    kept: &Rc<KeptSetUps>,
) -> Cx {
    Cx {
        tell: tell.clone(),
        cancel: reins.cancel.clone(),
        clocks: clocks.clone(),
        host: request.host.clone(),
        run_dir: request.run_dir.clone(),
        workspace: request.workspace.clone(),
        setup: request.setup.clone(),
        kept: Rc::clone(kept),
        specs: plan.machines.iter().map(|m| m.spec(&request.around)).collect(),
        plans: RefCell::default(),
        templates: request.templates.clone(),
        boots: RefCell::new(plan.machines.iter().map(|_| super::lease::Boots::default()).collect()),
        pool: Pool::default(),
        unlisted: HashMap::new(),
        no_room: no_room(plan, &request.limits, Memory::of_host()),
        instances: Rc::clone(instances),
        error_retries: request.limits.error_retries,
        until_fail: request.limits.until_fail,
        fail_fast: request.limits.fail_fast,
        counts: RefCell::default(),
        ended: RefCell::new(HashSet::new()),
        units: plan.units.len() as u64 + plan.skipped.iter().filter(|s| s.reason.is_verdict()).count() as u64,
        stopping: Cell::new(false),
        running: Cell::new(0),
    }
}

/// Units whose guest is larger than all there is.
fn no_room(plan: &Plan, limits: &RunLimits, host: Memory) -> HashMap<String, String> {
    let too_large = |memory: u64| no_room_for(memory, limits.max_memory, host);
    let units = plan.units.iter();
    units.filter_map(|u| Some((u.id.clone(), too_large(plan.machines.get(u.machine)?.hardware.memory)?))).collect()
}

fn tell_plan(tell: &Tell, plan: &Plan) {
    for unit in &plan.units {
        tell.emit(EventKind::UnitPlanned(UnitEvent {
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
        tell.emit(EventKind::UnitSkipped(UnitSkipped {
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

fn queue(plan: &Plan, limits: &RunLimits) -> Queue {
    let groups: BTreeMap<&str, usize> = limits.groups.keys().enumerate().map(|(n, name)| (name.as_str(), n)).collect();
    let jobs = plan.cells.iter().enumerate().map(|(cell, units)| {
        let units = &plan.units[units.units.clone()];
        let hardware = units.iter().filter_map(|u| plan.machines.get(u.machine)).map(|m| &m.hardware);
        Job {
            cell,
            memory: hardware.clone().map(|h| h.memory.saturating_add(OVERHEAD)).max().unwrap_or(0),
            cpus: hardware.map(|h| h.cpus).max().unwrap_or(1),
            group: units.iter().find_map(|u| u.settings.group.as_deref()).and_then(|g| groups.get(g).copied()),
            exclusive: units.iter().any(|u| u.settings.exclusive),
        }
    });
    let budget = Budget {
        jobs: limits.jobs.unwrap_or(u32::from(u16::MAX)),
        memory: limits.max_memory.unwrap_or_else(|| {
            let host = Memory::of_host();
            if host.total == 0 { u64::MAX } else { host.budget() }
        }),
        cpus: limits.max_cpus,
        groups: limits.groups.values().copied().collect(),
    };
    Queue::new(budget, jobs)
}

/// Runs everything. Gives why it ended early, if it did.
async fn dispatch(cx: &Rc<Cx>, plan: Rc<Plan>, limits: &RunLimits, reins: &mut Reins) -> Option<Why> {
    let mut queue = queue(&plan, limits);
    let mut tasks: JoinSet<usize> = JoinSet::new();
    let mut cells: HashMap<tokio::task::Id, usize> = HashMap::new();
    let deadline = limits.global_timeout.map(|limit| (Instant::now() + limit, limit));
    let mut out_of_time = std::pin::pin!(async {
        match deadline {
            Some((at, limit)) => {
                tokio::time::sleep_until(at).await;
                limit
            }
            None => std::future::pending().await,
        }
    });
    let mut timed_out = false;
    let (mut cancel, mut urgent) = (reins.cancel.clone(), reins.cancel.clone());
    let mut early = None;
    loop {
        while !cx.stopping.get()
            && let Some((cell, slot)) = queue.start()
        {
            if let [unit] = &plan.units[plan.cells[cell].units.clone()]
                && !plan.cells[cell].shared
            {
                cx.pool.keep_for(unit, &Kind::of(cx, unit));
            }
            let task = cell_task(Rc::clone(cx), Rc::clone(&plan), cell, slot);
            let handle = tasks.spawn_local(task);
            cells.insert(handle.id(), cell);
            cx.running.set(u32::try_from(queue.running()).unwrap_or(u32::MAX));
        }
        if cx.stopping.get() || queue.is_empty() {
            cx.pool.clear(cx).await;
        } else {
            make_ahead(cx, &plan, &queue, limits);
        }
        if tasks.is_empty() && (cx.stopping.get() || queue.is_empty()) {
            cx.pool.close(cx).await;
            return early;
        }
        tokio::select! {
            biased;
            Some(stop) = reins.stand_still.recv() => cx.clocks.stand_still(&cx.tell, stop).await,
            why = cancel.wanted(), if early.is_none() => {
                early = Some(why);
                cx.stop(&match why {
                    Why::Signal(number) => format!("interrupted by {}", signal_words(number)),
                    Why::OutOfTime(limit) => {
                        format!("the run was given {} (global-timeout)", belljar_machine::for_people(limit))
                    }
                });
            }
            why = urgent.urgent() => {
                // Dropping a guest kills it.
                tasks.shutdown().await;
                cx.pool.close(cx).await;
                return Some(why);
            }
            () = cx.pool.changed() => {}
            limit = &mut out_of_time, if !timed_out => {
                timed_out = true;
                reins.canceller.out_of_time(limit);
            }
            Some(joined) = tasks.join_next_with_id() => {
                let (id, panic) = match joined {
                    Ok((id, _)) => (id, None),
                    Err(error) => (error.id(), Some(error.to_string())),
                };
                if let Some(cell) = cells.remove(&id) {
                    queue.end(cell);
                    if let Some(panic) = panic {
                        broke_off(cx, &plan, cell, &panic);
                    }
                }
                cx.running.set(u32::try_from(queue.running()).unwrap_or(u32::MAX));
            }
        }
    }
}

/// Has guests made for the tests that come next.
fn make_ahead(cx: &Rc<Cx>, plan: &Rc<Plan>, queue: &Queue, limits: &RunLimits) {
    let processors = usize::try_from(limits.max_cpus).unwrap_or(usize::MAX);
    let ahead = cx.pool.pace.ahead(queue.running(), processors);
    let next = queue.upcoming(ahead).filter(|cell| !plan.cells[*cell].shared);
    let units: Vec<usize> = next.filter_map(|cell| plan.cells[cell].units.clone().next()).collect();
    let Some(memory) = units.iter().map(|u| plan.machines[plan.units[*u].machine].hardware.memory).max() else {
        return;
    };
    let each = memory.saturating_add(OVERHEAD).max(1);
    let free = usize::try_from(queue.free_memory() / each).unwrap_or(usize::MAX);
    let first_slot = limits.jobs.unwrap_or(u32::MAX).min(limits.max_cpus);
    cx.pool.fill(cx, plan, &units, free.saturating_sub(cx.pool.len()), first_slot);
}

async fn cell_task(cx: Rc<Cx>, plan: Rc<Plan>, cell: usize, slot: u32) -> usize {
    let shared = plan.cells[cell].shared;
    let mut lease: Option<Lease> = None;
    for unit in &plan.units[plan.cells[cell].units.clone()] {
        if cx.stopping.get() {
            break;
        }
        unit::run(&cx, unit, slot, shared.then_some(&mut lease)).await;
    }
    if let Some(lease) = lease {
        let mut cancel = cx.cancel.clone();
        // Each test's result was secured when it ended; what the guest does last is told with its end.
        let mut nobody = |_| ();
        drop(lease.close(&cx, belljar_machine::guest::Ending::Kill, &mut cancel, &mut nobody).await);
    }
    cell
}

/// A task of ours panicked: its units that had not ended do so now, as errors.
fn broke_off(cx: &Cx, plan: &Plan, cell: usize, panic: &str) {
    for unit in &plan.units[plan.cells[cell].units.clone()] {
        let name = UnitId::from(unit.id.as_str());
        if cx.ended.borrow().contains(&name) {
            continue;
        }
        let message = format!("Belljar's own work broke off: {panic}; please report it");
        cx.unit_ended(UnitEnded {
            unit: name,
            verdict: Verdict::Error(Fault::Host { message }),
            flaky: false,
            attempts: 0,
            millis: 0,
            message: None,
        });
    }
}

/// The exit code, and what the counts do not say.
fn outcome(cx: &Cx, counts: Counts, early: Option<Why>) -> (u8, Option<String>) {
    if let Some(error) = cx.tell.failure() {
        return (exit_code::CANNOT_RUN, Some(unlogged(&error)));
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

fn signal_words(number: i32) -> String {
    signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned)
}
