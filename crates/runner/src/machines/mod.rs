//! What gives machines: each prepared once, guests leased of the backend, their set-up, and those made ahead.
//!
//! ```text
//! pool ── Machines ──┬── prepared each once
//!                    ├── boots    which come up at all
//!                    ├── kept ─── setup
//!                    └── clocks   what stands still with the run
//! ```

mod boots;
pub(crate) mod clocks;
mod guest;
mod kept;
pub(crate) mod pool;
mod prepared;
mod setup;

use std::{cell::Cell, io, path::PathBuf, rc::Rc};

use belljar_guest_spec::{GuestSpec, Word};
use belljar_machine::{
    Cause, Lost,
    backend::{Backends, GuestFiles, LeaseRequest},
    bounds::Bounds,
    spec::{ShareSpec, Workspace},
};
use belljar_model::{EventKind, Phase, test_run as events};
use belljar_suite::plan::{Plan, Unit};
use fs_err as fs;

use self::{
    boots::BootRecord, clocks::Clocks, guest::tell_end, kept::Setting, prepared::PreparedMachines, setup::Scene,
};
pub(crate) use self::{guest::LeasedGuest, kept::KeptSetUps, setup::SetUpScripts};
use crate::{
    attempt, cancel::Cancel, environment::environment, event_writer::EventWriter, out_dir::open_to_all, run_dir,
};

/// Gives the machines of a plan.
pub(crate) struct Machines {
    log: EventWriter,
    cancel: Cancel,
    run_dir: PathBuf,
    workspace: PathBuf,
    backends: Backends,
    clocks: Clocks,
    scripts: Rc<SetUpScripts>,
    kept: Rc<KeptSetUps>,
    /// The next number of a machine.
    instances: Rc<Cell<u64>>,
    prepared: PreparedMachines,
    boots: BootRecord,
}

/// What the machines of a run stand on.
pub(crate) struct MachineContext {
    pub(crate) log: EventWriter,
    pub(crate) cancel: Cancel,
    pub(crate) backends: Backends,
    /// The run's directory.
    pub(crate) run_dir: PathBuf,
    /// The host directory that guests see.
    pub(crate) workspace: PathBuf,
    pub(crate) clocks: Clocks,
    pub(crate) kept: KeptSetUps,
}

/// Guests of one kind stand for each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    machine: usize,
    mode: &'static str,
    /// The suite, if it has set-up scripts, and the variables that they have.
    set_up: Option<(String, Vec<Vec<u8>>)>,
}

impl Machines {
    /// The machines of a plan, by their place in it, and the set-up scripts of suites.
    pub(crate) fn new(
        context: MachineContext,
        scripts: SetUpScripts,
        specs: impl IntoIterator<Item = Result<GuestSpec, String>>,
    ) -> Self {
        let MachineContext { log, cancel, backends, run_dir, workspace, clocks, kept } = context;
        let prepared = PreparedMachines::new(backends.clone(), run_dir.clone(), specs);
        let boots = BootRecord::new(prepared.len());
        Self {
            log,
            cancel,
            run_dir,
            workspace,
            backends,
            clocks,
            scripts: Rc::new(scripts),
            kept: Rc::new(kept),
            instances: Rc::default(),
            prepared,
            boots,
        }
    }

    /// Those of another plan of the same run.
    pub(crate) fn of_plan(&self, specs: impl IntoIterator<Item = Result<GuestSpec, String>>) -> Self {
        let prepared = self.prepared.of(specs);
        Self {
            log: self.log.clone(),
            cancel: self.cancel.clone(),
            run_dir: self.run_dir.clone(),
            workspace: self.workspace.clone(),
            backends: self.backends.clone(),
            clocks: self.clocks.clone(),
            scripts: Rc::clone(&self.scripts),
            kept: Rc::clone(&self.kept),
            instances: Rc::clone(&self.instances),
            boots: BootRecord::new(prepared.len()),
            prepared,
        }
    }

    /// Removes what was kept on the host for the run's guests.
    pub(crate) fn clear(&self) {
        self.kept.clear();
    }

    /// Numbers a machine.
    pub(crate) fn next_instance(&self) -> u64 {
        let instance = self.instances.get();
        self.instances.set(instance + 1);
        instance
    }

    /// Whether the last guest of this machine was made fast.
    fn is_quick(&self, machine: usize) -> bool {
        self.boots.is_quick(machine)
    }

    /// The files that are kept of a unit's guest.
    pub(crate) fn files_of(&self, unit: &Unit) -> GuestFiles {
        self.backends.of(&unit.guest.spec.source).map(|backend| backend.files()).unwrap_or_default()
    }

    /// What a unit wants that its guests never have; none if there is no such thing.
    pub(crate) fn lacks(&self, plan: &Plan, unit: &Unit) -> Option<String> {
        let machine = &plan.machines[unit.machine];
        let source = &machine.guest.spec.source;
        self.backends.of(source).ok()?.lacks(source, &machine.hardware, &unit.settings.needs)
    }

    /// Which guests a unit can do with.
    pub(crate) fn kind_for(&self, unit: &Unit) -> Kind {
        let set_up = || (unit.suite.name.clone(), environment(unit, None));
        let set_up = self.scripts.are_for(unit).then(set_up);
        Kind { machine: unit.machine, mode: unit.settings.workspace_mode.word(), set_up }
    }

    /// A guest for a unit, in which the set-up scripts have run.
    pub(crate) async fn set_up(
        &self,
        unit: &Unit,
        instance: u64,
        slot: u32,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<LeasedGuest, Lost> {
        let mut leased = self.boot(unit, instance, slot, cancel, observe).await?;
        if self.kept.is_kept(unit) {
            return Ok(leased);
        }
        let scene = Scene { instance, dir: &leased.dir };
        match self.scripts.run(unit, scene, &mut *leased.guest, "", cancel, observe).await {
            Ok(()) => Ok(leased),
            Err(lost) => {
                leased.give_up(&lost, cancel, observe).await;
                Err(lost)
            }
        }
    }

    /// Boots the guest of a unit. `observe` hears of it; the log hears of the guest's begin and, if it comes to nothing, its end.
    async fn boot(
        &self,
        unit: &Unit,
        instance: u64,
        slot: u32,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<LeasedGuest, Lost> {
        let permit = self.boots.permit(unit.machine, cancel).await;
        self.log.emit(EventKind::GuestStarted(events::GuestStarted { instance, guest: unit.guest.name.clone(), slot }));
        let booted = match self.boots.hopeless(unit.machine) {
            Some(why) => Err(why.into()),
            None => {
                let booted = self.start(unit, instance, cancel, observe).await;
                match &booted {
                    Ok(leased) => self.boots.note(unit.machine, Ok(leased.guest.origin()), permit),
                    // It came up, and its set-up failed.
                    Err(Lost { cause: Cause::SetUp(_), .. }) => {}
                    Err(lost) => self.boots.note(unit.machine, Err(lost), permit),
                }
                booted
            }
        };
        match &booted {
            Ok(leased) => {
                let how = leased.guest.origin().word().to_owned();
                self.log.emit(EventKind::GuestReady(events::GuestReady { instance, how }));
            }
            Err(lost) => tell_end(&self.log, instance, Some(lost)),
        }
        booted
    }

    async fn start(
        &self,
        unit: &Unit,
        instance: u64,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<LeasedGuest, Lost> {
        observe(EventKind::Phase { phase: Phase::Prepare });
        let dir = self.run_dir.join(run_dir::of_guest(instance));
        let out = dir.join(run_dir::OUT);
        let made = fs::create_dir_all(&dir).and_then(|()| fs::create_dir(&out)).and_then(|()| open_to_all(&out));
        made.map_err(|e| not_made("make a directory for the guest", &e))?;
        let bounds = Bounds { output: unit.settings.max_output, disk: unit.settings.max_disk };
        let workspace = Workspace {
            dir: self.workspace.clone(),
            mode: unit.settings.workspace_mode,
            mount_at: unit.guest.spec.mount_at.clone(),
        };
        let share = ShareSpec { workspace: Some(workspace), out, out_wanted: true, bounds, modules: None };
        let prepared = self.prepared.get(unit.machine, &share, cancel).await?;
        let scene = Scene { instance, dir: &dir };
        let mut setting = self.kept.setting(&self.scripts, unit, scene, self.cancel.clone())?;
        let layer = setting.as_mut().map(Setting::layer);
        let wanted = LeaseRequest { layer, ..LeaseRequest::new(share, dir.clone()) };
        let guest = attempt::lease(prepared, wanted, cancel, observe).await?;
        drop(setting);
        let clock = self.clocks.add(instance, guest.clock());
        let scratch = self.files_of(unit).scratch;
        Ok(LeasedGuest { guest, instance, dir, tries: 0, scratch, log: self.log.clone(), clock })
    }
}

/// Something on the host's disk could not be made.
pub(crate) fn not_made(attempt: &str, error: &io::Error) -> Lost {
    Cause::host_file(attempt, error, "free some space").into()
}
