//! What gives machines: the plan of each, guests that boot or are copies of templates, their set-up, and those made ahead.
//!
//! ```text
//! pool ── Machines ──┬── plans    each made once
//!                    ├── boots    which come up at all
//!                    ├── kept ─── setup
//!                    └── clocks   what stands still with the run
//! ```

mod boots;
pub(crate) mod clocks;
mod error;
mod guest;
mod kept;
mod plans;
pub(crate) mod pool;
mod setup;

use std::{cell::Cell, path::PathBuf, rc::Rc};

use belljar_guest_spec::{GuestSpec, Word};
use belljar_machine::{
    Cause,
    bounds::Bounds,
    guest::Origin,
    host::HostContext,
    lease as machines,
    lease::Templates,
    plan::Place,
    spec::{ShareSpec, Workspace},
};
use belljar_model::{EventKind, Phase, test_run as events};
use belljar_suite::plan::Unit;
use fs_err as fs;

use self::{boots::BootRecord, clocks::Clocks, guest::tell_end, kept::Setting, plans::MachinePlans, setup::Scene};
pub(crate) use self::{
    error::{GuestError, not_made},
    guest::LeasedGuest,
    kept::KeptSetUps,
    setup::SetUpScripts,
};
use crate::{
    attempt, cancel::Cancel, environment::environment, event_writer::EventWriter, out_dir::open_to_all, run_dir,
};

/// Gives the machines of a plan.
pub(crate) struct Machines {
    log: EventWriter,
    cancel: Cancel,
    run_dir: PathBuf,
    workspace: PathBuf,
    templates: Templates,
    clocks: Clocks,
    scripts: Rc<SetUpScripts>,
    kept: Rc<KeptSetUps>,
    /// The next number of a machine.
    instances: Rc<Cell<u64>>,
    plans: MachinePlans,
    boots: BootRecord,
}

/// What the machines of a run stand on.
pub(crate) struct MachineContext {
    pub(crate) log: EventWriter,
    pub(crate) cancel: Cancel,
    pub(crate) host: HostContext,
    /// The run's directory.
    pub(crate) run_dir: PathBuf,
    /// The host directory that guests see.
    pub(crate) workspace: PathBuf,
    pub(crate) templates: Templates,
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
        let MachineContext { log, cancel, host, run_dir, workspace, templates, clocks, kept } = context;
        let plans = MachinePlans::new(host, run_dir.clone(), specs);
        let boots = BootRecord::new(plans.len());
        Self {
            log,
            cancel,
            run_dir,
            workspace,
            templates,
            clocks,
            scripts: Rc::new(scripts),
            kept: Rc::new(kept),
            instances: Rc::default(),
            plans,
            boots,
        }
    }

    /// Those of another plan of the same run.
    pub(crate) fn of_plan(&self, specs: impl IntoIterator<Item = Result<GuestSpec, String>>) -> Self {
        let plans = self.plans.of(specs);
        Self {
            log: self.log.clone(),
            cancel: self.cancel.clone(),
            run_dir: self.run_dir.clone(),
            workspace: self.workspace.clone(),
            templates: self.templates.clone(),
            clocks: self.clocks.clone(),
            scripts: Rc::clone(&self.scripts),
            kept: Rc::clone(&self.kept),
            instances: Rc::clone(&self.instances),
            boots: BootRecord::new(plans.len()),
            plans,
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

    /// Whether the last guest of this machine was a clone.
    fn is_cloned(&self, machine: usize) -> bool {
        self.boots.is_cloned(machine)
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
    ) -> Result<LeasedGuest, GuestError> {
        let mut leased = self.boot(unit, instance, slot, cancel, observe).await?;
        if self.kept.is_kept(unit) {
            return Ok(leased);
        }
        let scene = Scene { instance, dir: &leased.dir };
        match self.scripts.run(unit, scene, &mut leased.guest, "", cancel, observe).await {
            Ok(()) => Ok(leased),
            Err(error) => {
                leased.give_up(&error.lost, cancel, observe).await;
                Err(error)
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
    ) -> Result<LeasedGuest, GuestError> {
        let permit = self.boots.permit(unit.machine, cancel).await;
        self.log.emit(EventKind::GuestStarted(events::GuestStarted { instance, guest: unit.guest.name.clone(), slot }));
        let booted = match self.boots.hopeless(unit.machine) {
            Some(why) => Err(GuestError { lost: Cause::NotTried(why).into(), retry: false }),
            None => {
                let booted = self.start(unit, instance, cancel, observe).await;
                match &booted {
                    Ok(leased) => self.boots.note(unit.machine, Ok(leased.guest.origin()), permit),
                    Err(error) if error.retry || error.lost.lasting => {
                        self.boots.note(unit.machine, Err(&error.lost), permit);
                    }
                    // It came up, and its set-up failed.
                    Err(_) => {}
                }
                booted
            }
        };
        match &booted {
            Ok(leased) => {
                let how = match leased.guest.origin() {
                    Origin::Cold => "boot",
                    Origin::Clone => "clone",
                };
                self.log.emit(EventKind::GuestReady(events::GuestReady { instance, how: how.to_owned() }));
            }
            Err(error) => tell_end(&self.log, instance, Some(&error.lost)),
        }
        booted
    }

    async fn start(
        &self,
        unit: &Unit,
        instance: u64,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<LeasedGuest, GuestError> {
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
        let place = Place {
            console_log: dir.join(run_dir::CONSOLE),
            qemu_log: dir.join(run_dir::QEMU_LOG),
            qemu_command: dir.join(run_dir::QEMU_COMMAND),
            run_dir: dir.clone(),
        };
        let plan = self.plans.get(unit.machine, share, place, cancel).await?;
        let scene = Scene { instance, dir: &dir };
        let mut setting = self.kept.setting(&self.scripts, unit, scene, self.cancel.clone())?;
        let layer = setting.as_mut().map(Setting::layer);
        let wanted = machines::LeaseRequest { layer, ..machines::LeaseRequest::new(plan, &self.templates) };
        let guest = match (attempt::lease(wanted, cancel, observe).await, setting) {
            (Ok(guest), _) => guest,
            (Err(lost), Some(setting)) => return Err(setting.into_error(lost)),
            (Err(lost), None) => return Err(lost.into()),
        };
        let clock = self.clocks.add(instance, guest.clock());
        Ok(LeasedGuest { guest, instance, dir, tries: 0, log: self.log.clone(), clock })
    }
}
