//! `belljar test`: a plan becomes events.
//!
//! ```text
//! run ── libtest binaries are listed ── the plan is told ── dispatcher ──┬─ cell ── unit ── try ── guest
//!                                                                       └─ cell …
//! ```
//!
//! All of it runs on one thread. The dispatcher alone starts and ends things; each cell (a unit alone, or those that share a guest)
//! is a task of its own and tells what happens in the one event log.

mod attempt;
mod collect;
mod dispatch;
mod files;
pub mod history;
mod judge;
mod kept;
mod lease;
mod listing;
mod obstacles;
mod output;
mod pause;
mod pool;
mod queue;
pub mod resources;
mod setup;
mod tell;
mod unit;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use belljar_guest_spec::{GuestSpec, Surroundings};
use belljar_machine::{Cause, Lost, host::HostContext, lease::Templates, plan::Plan as MachinePlan};
use belljar_model::{
    AttemptId, EventKind, RunId, UnitId, Verdict,
    test_run::{Counts, Host, Stopping, UnitEnded},
};
use belljar_suite::{
    discover::SetUp,
    plan::{Case, Plan, Unit},
};
use tokio::sync::{OnceCell, mpsc};

use self::{attempt::Tried, lease::Boots, pause::Clocks, tell::Tell};
use crate::cancel::{Cancel, Canceller};

/// Stops this process until somebody lets it go on.
pub type StandStill = Box<dyn FnOnce()>;

/// What libtest binaries hold, by the id of the unit that stands for the binary.
pub type Cases = BTreeMap<String, Vec<Case>>;

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
    /// What the host side stands on; the paths of single guests are set for each.
    pub host: HostContext,
    /// Where templates of guests may be.
    pub templates: Templates,
    /// The run's directory.
    pub run_dir: PathBuf,
    /// How much at the same time, and for how long.
    pub limits: RunLimits,
}

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
pub struct Reins {
    /// Asks for an early end.
    pub canceller: Rc<Canceller>,
    /// Hears that.
    pub cancel: Cancel,
    /// Each makes the run stand still, and is called when it does.
    pub stand_still: mpsc::UnboundedReceiver<StandStill>,
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

pub use dispatch::run;
pub use obstacles::obstacles;

/// What all tasks of a run share.
pub(crate) struct Cx {
    tell: Tell,
    cancel: Cancel,
    clocks: Clocks,
    host: HostContext,
    run_dir: PathBuf,
    workspace: PathBuf,
    setup: BTreeMap<String, SetUp>,
    kept: Rc<kept::KeptSetUps>,
    /// By the plan's machines.
    specs: Vec<Result<GuestSpec, String>>,
    /// Those of them that were prepared, ready to be started.
    plans: RefCell<HashMap<usize, Rc<OnceCell<MachinePlan>>>>,
    templates: Templates,
    boots: RefCell<Vec<Boots>>,
    pool: pool::Pool,
    /// Binaries that could not be listed, and why not.
    unlisted: HashMap<String, Lost>,
    /// Units for which there is no room on this host at all, and why not.
    no_room: HashMap<String, String>,
    instances: Rc<Cell<u64>>,
    error_retries: u32,
    until_fail: bool,
    fail_fast: bool,
    counts: RefCell<Counts>,
    ended: RefCell<HashSet<UnitId>>,
    /// How many there are, with those that are skipped by plan.
    units: u64,
    /// Set when nothing new is to begin.
    stopping: Cell<bool>,
    running: Cell<u32>,
}

impl Cx {
    fn next_instance(&self) -> u64 {
        let instance = self.instances.get();
        self.instances.set(instance + 1);
        instance
    }

    /// Whether the last guest of this machine was a clone.
    fn is_cloned(&self, machine: usize) -> bool {
        self.boots.borrow().get(machine).is_some_and(Boots::is_cloned)
    }

    /// A command's variables: the user's, and where it is.
    fn environment(&self, unit: &Unit, attempt: Option<(&AttemptId, &str)>) -> Vec<Vec<u8>> {
        let mut vars: Vec<String> = unit.settings.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let out = attempt.map_or(belljar_machine::share::OUT_PATH, |(_, out)| out);
        vars.push(format!("BELLJAR_OUT={out}"));
        vars.push(format!("BELLJAR_WORKSPACE={}", unit.guest.spec.mount_at));
        vars.push(format!("BELLJAR_SUITE={}", unit.suite.name));
        vars.push(format!("BELLJAR_GUEST={}", unit.guest.name));
        if let Some((id, _)) = attempt {
            vars.push(format!("BELLJAR_TEST={}", unit.test));
            vars.push(format!("BELLJAR_ATTEMPT={}", id.attempt));
        }
        vars.into_iter().map(String::into_bytes).collect()
    }

    /// What stands in the way of a unit before any guest is started.
    fn cannot(&self, unit: &Unit) -> Option<Tried> {
        let lost = match (self.no_room.get(&unit.id), self.unlisted.get(&unit.id)) {
            (Some(why), _) => Cause::NotTried(why.clone()).into(),
            (None, Some(lost)) => lost.clone(),
            (None, None) if unit.to_be_listed => Cause::Defect("the tests in this binary are not known".into()).into(),
            (None, None) => return None,
        };
        let (verdict, message) = (lost.verdict(), lost.message());
        let exit = if let Verdict::Fail(exit) = verdict { Some(exit) } else { None };
        Some(Tried { verdict, message, exit, millis: 0, dir: None, retry: false })
    }

    fn unit_ended(&self, ended: UnitEnded) {
        self.counts.borrow_mut().add(&ended.verdict, ended.flaky);
        self.ended.borrow_mut().insert(ended.unit.clone());
        let bad = matches!(ended.verdict, Verdict::Fail(_) | Verdict::Timeout(_) | Verdict::Crash(_));
        self.tell.emit(EventKind::UnitEnded(ended));
        if bad && self.fail_fast {
            self.stop("fail-fast: a test failed");
        }
        if self.tell.failure().is_some() {
            self.stop("the event log cannot be written");
        }
    }

    /// Nothing new begins from here on.
    fn stop(&self, reason: &str) {
        if !self.stopping.replace(true) {
            let running = self.running.get();
            self.tell.emit(EventKind::Stopping(Stopping { reason: reason.to_owned(), running }));
        }
    }
}

/// For events.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells names apart that would come to the same file name (FNV-1a, 64 bits); nobody gains by a collision.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
