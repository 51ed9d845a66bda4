//! What schedules: starts what may start, and ends what has to end.
//!
//! ```text
//! signals, timers ──> Dispatcher ── starts cells ──> executor
//!                      │  │   ^                        │
//!                  queue  │   └── a unit is next, ─────┘
//!                         │       a unit has ended
//!                         └── pool: guests for those that come next
//! ```

mod queue;
pub mod resources;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    rc::Rc,
    time::Duration,
};

use belljar_machine::backend::Footprint;
use belljar_model::{
    EventKind, UnitId, Verdict,
    test_run::{Counts, Stopping, UnitEnded},
    verdict::{Fault, signal_name},
};
use belljar_suite::plan::Plan;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::Instant,
};

use self::{
    queue::{Budget, Job, Queue},
    resources::Memory,
};
use crate::{
    cancel::{Cancel, Canceller, Why},
    event_writer::EventWriter,
    executor::{Executor, Message},
    machines::{clocks::Clocks, pool::Pool},
};

/// Stops this process until somebody lets it go on.
pub type StandStill = Box<dyn FnOnce()>;

/// How much at the same time, how often, and for how long.
#[derive(Clone, Debug)]
pub struct RunLimits {
    /// Tests at the same time; none is as many as memory and processors allow.
    pub jobs: Option<u32>,
    /// Bytes of memory for all guests together; none is what is free.
    pub max_memory: Option<u64>,
    /// Processors for all guests together.
    pub max_cpus: u32,
    /// How many tests of a group at the same time, by the group's name.
    pub groups: BTreeMap<String, u32>,
    /// Start nothing more after a failure.
    pub fail_fast: bool,
    /// Limit to the run.
    pub global_timeout: Option<Duration>,
    /// Tries after an error of Belljar or the host.
    pub error_retries: u32,
    /// Repeat each unit until it fails.
    pub until_fail: bool,
}

/// Who can end or halt the run.
pub struct RunControl {
    /// Asks for an early end.
    pub canceller: Rc<Canceller>,
    /// Hears that.
    pub cancel: Cancel,
    /// Each makes the run stand still, and is called when it does.
    pub stand_still: mpsc::UnboundedReceiver<StandStill>,
}

/// Decides what runs when, and when nothing more is to begin.
pub(crate) struct Dispatcher {
    log: EventWriter,
    plan: Rc<Plan>,
    /// What each of the plan's units takes.
    footprints: Vec<Footprint>,
    limits: RunLimits,
    clocks: Clocks,
    pool: Rc<Pool>,
    executor: Rc<Executor>,
    /// From the executor.
    messages: mpsc::UnboundedReceiver<Message>,
    queue: Queue,
    counts: Counts,
    ended: HashSet<UnitId>,
    /// Nothing new is to begin.
    stopping: bool,
    cancel: Cancel,
}

/// What a dispatcher works with.
pub(crate) struct DispatcherContext {
    pub(crate) log: EventWriter,
    /// What each of the plan's units takes.
    pub(crate) footprints: Vec<Footprint>,
    pub(crate) clocks: Clocks,
    pub(crate) pool: Rc<Pool>,
    pub(crate) executor: Rc<Executor>,
    /// The other end is the executor's.
    pub(crate) messages: mpsc::UnboundedReceiver<Message>,
    pub(crate) cancel: Cancel,
}

impl Dispatcher {
    /// One for all cells of a plan.
    pub(crate) fn new(plan: Rc<Plan>, limits: RunLimits, context: DispatcherContext) -> Self {
        let DispatcherContext { log, footprints, clocks, pool, executor, messages, cancel } = context;
        let skipped = plan.skipped.iter().filter(|s| s.reason.is_verdict()).count() as u64;
        let counts = Counts { units: plan.units.len() as u64 + skipped, skip: skipped, ..Counts::default() };
        let queue = queue(&plan, &footprints, &limits);
        Self {
            log,
            plan,
            footprints,
            limits,
            clocks,
            pool,
            executor,
            messages,
            queue,
            counts,
            ended: HashSet::new(),
            stopping: false,
            cancel,
        }
    }

    /// Runs everything. Gives how the units ended, and why the run ended early, if it did.
    pub(crate) async fn run(mut self, control: &mut RunControl) -> (Counts, Option<Why>) {
        let early = self.dispatch(control).await;
        let mut counts = self.counts;
        counts.unfinished = counts.units.saturating_sub(counts.ended());
        (counts, early)
    }

    async fn dispatch(&mut self, control: &mut RunControl) -> Option<Why> {
        let mut tasks: JoinSet<()> = JoinSet::new();
        let mut cells: HashMap<tokio::task::Id, usize> = HashMap::new();
        let deadline = self.limits.global_timeout.map(|limit| (Instant::now() + limit, limit));
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
        let (mut cancel, mut urgent) = (control.cancel.clone(), control.cancel.clone());
        let mut early = None;
        loop {
            while !self.stopping
                && let Some((cell, slot)) = self.queue.start()
            {
                let (executor, plan) = (Rc::clone(&self.executor), Rc::clone(&self.plan));
                if let [unit] = &plan.units[plan.cells[cell].units.clone()]
                    && !plan.cells[cell].shared
                {
                    self.pool.reserve_for(unit);
                }
                let handle = tasks.spawn_local(async move { executor.run_cell(&plan, cell, slot).await });
                cells.insert(handle.id(), cell);
            }
            if self.stopping || self.queue.is_empty() {
                self.pool.clear().await;
            } else {
                self.make_ahead();
            }
            if tasks.is_empty() && (self.stopping || self.queue.is_empty()) {
                self.pool.close().await;
                return early;
            }
            tokio::select! {
                biased;
                // First, so that the log has the ends of units before whatever comes of them.
                Some(message) = self.messages.recv() => self.hear(message),
                Some(stop) = control.stand_still.recv() => self.clocks.stand_still(&self.log, stop).await,
                why = cancel.wanted(), if early.is_none() => {
                    early = Some(why);
                    self.stop(&match why {
                        Why::Signal(number) => format!("interrupted by {}", signal_words(number)),
                        Why::OutOfTime(limit) => {
                            format!("the run was given {} (global-timeout)", belljar_machine::for_people(limit))
                        }
                    });
                }
                why = urgent.urgent() => {
                    // Dropping a guest kills it.
                    tasks.shutdown().await;
                    self.hear_all();
                    self.pool.close().await;
                    return Some(why);
                }
                () = self.pool.changed() => {}
                limit = &mut out_of_time, if !timed_out => {
                    timed_out = true;
                    control.canceller.out_of_time(limit);
                }
                Some(joined) = tasks.join_next_with_id() => {
                    self.hear_all();
                    let id = match &joined {
                        Ok((id, ())) => *id,
                        Err(error) => error.id(),
                    };
                    if let Some(cell) = cells.remove(&id) {
                        if let Err(panic) = joined {
                            self.broke_off(cell, &panic);
                        }
                        self.queue.end(cell);
                    }
                }
            }
        }
    }

    /// Takes all that the executor has said by now.
    fn hear_all(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.hear(message);
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            // A cell that has ended meanwhile needs no answer.
            // A unit may have ended for the same wish to end, of which nobody has heard here yet.
            Message::Next(reply) => drop(reply.send(!self.stopping && self.cancel.is_wanted().is_none())),
            Message::Ended(ended) => self.unit_ended(ended),
        }
    }

    fn unit_ended(&mut self, ended: UnitEnded) {
        let ended = self.log.unit_ended(ended);
        self.counts.add(&ended.verdict, ended.flaky);
        self.ended.insert(ended.unit.clone());
        let bad = matches!(ended.verdict, Verdict::Fail(_) | Verdict::Timeout(_) | Verdict::Crash(_));
        if bad && self.limits.fail_fast {
            self.stop("fail-fast: a test failed");
        }
        if self.log.failure().is_some() {
            self.stop("the event log cannot be written");
        }
    }

    /// Nothing new begins from here on.
    fn stop(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.stopping, true) {
            let running = u32::try_from(self.queue.running()).unwrap_or(u32::MAX);
            self.log.emit(EventKind::Stopping(Stopping { reason: reason.to_owned(), running }));
        }
    }

    /// Has guests made for the tests that come next.
    fn make_ahead(&self) {
        let Self { plan, footprints, queue, limits, pool, .. } = self;
        let processors = usize::try_from(limits.max_cpus).unwrap_or(usize::MAX);
        let ahead = pool.pace.ahead(queue.running(), processors);
        let next = queue.upcoming(ahead).filter(|cell| !plan.cells[*cell].shared);
        let units: Vec<usize> = next.filter_map(|cell| plan.cells[cell].units.clone().next()).collect();
        let Some(each) = units.iter().map(|unit| footprints[*unit].total_memory()).max() else {
            return;
        };
        let free = usize::try_from(queue.free_memory() / each.max(1)).unwrap_or(usize::MAX);
        let first_slot = limits.jobs.unwrap_or(u32::MAX).min(limits.max_cpus);
        pool.fill(plan, &units, free.saturating_sub(pool.len()), first_slot);
    }

    /// A task of ours panicked: its units that had not ended do so now, as errors.
    fn broke_off(&mut self, cell: usize, panic: &JoinError) {
        let plan = Rc::clone(&self.plan);
        for unit in &plan.units[plan.cells[cell].units.clone()] {
            let name = UnitId::from(unit.id.as_str());
            if self.ended.contains(&name) {
                continue;
            }
            let message = format!("Belljar's own work broke off: {panic}; please report it");
            self.unit_ended(UnitEnded {
                unit: name,
                verdict: Verdict::Error(Fault::Host { message }),
                flaky: false,
                attempts: 0,
                millis: 0,
                message: None,
            });
        }
    }
}

fn queue(plan: &Plan, footprints: &[Footprint], limits: &RunLimits) -> Queue {
    let groups: BTreeMap<&str, usize> = limits.groups.keys().enumerate().map(|(n, name)| (name.as_str(), n)).collect();
    let jobs = plan.cells.iter().enumerate().map(|(cell, of_cell)| {
        let units = &plan.units[of_cell.units.clone()];
        let takes = footprints[of_cell.units.clone()].iter();
        Job {
            cell,
            memory: takes.clone().map(Footprint::total_memory).max().unwrap_or(0),
            cpus: takes.map(|takes| takes.cpus).max().unwrap_or(1),
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

/// A signal for a person.
pub(crate) fn signal_words(number: i32) -> String {
    signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned)
}
