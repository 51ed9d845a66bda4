//! A guest for tests: booted, its set-up done, its directory where it is found again.

use std::{io, path::PathBuf, rc::Rc, sync::Arc};

use belljar_machine::{
    Cause, Lost,
    bounds::Bounds,
    guest::{Ending, Guest, Origin},
    host::HostContext,
    lease as machines,
    plan::{self, Place, Plan},
    spec::{ShareSpec, Workspace},
    tree,
};
use belljar_model::{EventKind, Phase, test_run as events};
use belljar_suite::plan::Unit;
use fs_err as fs;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Cx, kept::Setting, pause::Wound, setup::Scene};
use crate::{cancel::Cancel, out_dir::open_to_all, run_dir};

/// A guest that never came up so often is not tried again in this run.
const HOPELESS: u32 = 3;

/// How often a kind of machine came up.
#[derive(Debug)]
pub(crate) struct Boots {
    worked: bool,
    cloned: bool,
    failed: u32,
    /// Another try would end the same way.
    lasting: bool,
    last: String,
    /// A chance for each try that is left while it has not come up; closed when it has, or none is left.
    left: Arc<Semaphore>,
}

impl Default for Boots {
    fn default() -> Self {
        let left = Arc::new(Semaphore::new(HOPELESS as usize));
        Self { worked: false, cloned: false, failed: 0, lasting: false, last: String::new(), left }
    }
}

impl Boots {
    /// Whether the last one was a clone.
    pub(crate) fn is_cloned(&self) -> bool {
        self.cloned
    }
}

/// A running guest.
pub(crate) struct Lease {
    pub(crate) guest: Guest,
    pub(crate) instance: u64,
    /// Its directory in the run's.
    pub(crate) dir: PathBuf,
    /// How many tries it has seen.
    pub(crate) tries: u32,
    wound: Wound,
}

/// Why there is no guest, or why it is of no use.
#[derive(Debug)]
pub(crate) struct Unfit {
    pub(crate) lost: Lost,
    /// Whether another try may help.
    pub(crate) retry: bool,
}

impl From<Lost> for Unfit {
    fn from(lost: Lost) -> Self {
        Self { retry: !lost.lasting, lost }
    }
}

/// The directory of an instance, relative to the run's.
pub(crate) fn place(instance: u64) -> String {
    format!("guests/{instance}")
}

/// Boots the guest of a unit. `observe` hears of it; the log hears of the guest's begin and, if it comes to nothing, its end.
pub(crate) async fn boot(
    cx: &Cx,
    unit: &Unit,
    instance: u64,
    slot: u32,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Lease, Unfit> {
    let chance = chance(cx, unit.machine, cancel).await;
    cx.tell.emit(EventKind::GuestStarted(events::GuestStarted { instance, guest: unit.guest.name.clone(), slot }));
    let booted = match hopeless(cx, unit.machine) {
        Some(unfit) => Err(unfit),
        None => {
            let booted = start(cx, unit, instance, cancel, observe).await;
            match &booted {
                Ok(lease) => remember(cx, unit.machine, Ok(lease.guest.origin()), chance),
                Err(unfit) if unfit.retry || unfit.lost.lasting => remember(cx, unit.machine, Err(&unfit.lost), chance),
                // It came up, and its set-up failed.
                Err(_) => {}
            }
            booted
        }
    };
    match &booted {
        Ok(lease) => {
            let how = match lease.guest.origin() {
                Origin::Cold => "boot",
                Origin::Clone => "clone",
            };
            cx.tell.emit(EventKind::GuestReady(events::GuestReady { instance, how: how.to_owned() }));
        }
        Err(unfit) => ended(cx, instance, Some(&unfit.lost)),
    }
    booted
}

async fn start(
    cx: &Cx,
    unit: &Unit,
    instance: u64,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Lease, Unfit> {
    observe(EventKind::Phase { phase: Phase::Prepare });
    let dir = cx.run_dir.join(place(instance));
    let out = dir.join(run_dir::OUT);
    let made = fs::create_dir_all(&dir).and_then(|()| fs::create_dir(&out)).and_then(|()| open_to_all(&out));
    made.map_err(|e| not_made("make a directory for the guest", &e))?;
    let bounds = Bounds { output: unit.settings.max_output, disk: unit.settings.max_disk };
    let workspace = Workspace {
        dir: cx.workspace.clone(),
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
    let plan = plan_of(cx, unit, &share, &place, cancel).await?.at(share, place);
    for choice in plan.choices() {
        observe(choice.clone());
    }
    let mut setting = Setting::of(cx, unit, Scene { instance, dir: &dir })?;
    let layer = setting.as_mut().map(Setting::layer);
    let wanted = machines::Lease { layer, ..machines::Lease::new(plan, &cx.templates) };
    let leased = tokio::select! {
        biased;
        why = cancel.wanted() => Err(why.lost(Phase::Boot)),
        leased = machines::lease(wanted, observe) => leased,
    };
    let guest = match (leased, setting) {
        (Ok(guest), _) => guest,
        (Err(lost), Some(setting)) => return Err(setting.unfit(lost)),
        (Err(lost), None) => return Err(lost.into()),
    };
    let wound = cx.clocks.wind(instance, guest.clock());
    Ok(Lease { guest, instance, dir, tries: 0, wound })
}

/// The plan of the unit's machine. It is made once: boot files that were made twice would be those of two guests.
async fn plan_of(cx: &Cx, unit: &Unit, share: &ShareSpec, place: &Place, cancel: &mut Cancel) -> Result<Plan, Lost> {
    let plan = Rc::clone(cx.plans.borrow_mut().entry(unit.machine).or_default());
    plan.get_or_try_init(|| prepare(cx, unit, share, place, cancel)).await.cloned()
}

async fn prepare(cx: &Cx, unit: &Unit, share: &ShareSpec, place: &Place, cancel: &mut Cancel) -> Result<Plan, Lost> {
    let spec = cx.specs[unit.machine].clone().map_err(|why| Lost::from(Cause::Description(why)).lasting())?;
    let Place { console_log, qemu_log, qemu_command, .. } = place.clone();
    // Boot files that no cache can take go here: they are for all guests, and the first one's own directory moves when it ends.
    let run_dir = cx.run_dir.clone();
    let host = HostContext { run_dir, console_log, qemu_log, qemu_command, ..cx.host.clone() };
    let share = share.clone();
    let preparing = tokio::task::spawn_blocking(move || plan::prepare(&spec, &share, host));
    let prepared = tokio::select! {
        biased;
        why = cancel.wanted() => return Err(why.lost(Phase::Prepare)),
        done = preparing => done,
    };
    match prepared {
        Ok(plan) => plan.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting()),
        Err(panic) => Err(Cause::Defect(format!("Belljar's own preparation broke off: {panic}")).into()),
    }
}

impl Lease {
    /// Tells that the guest was lost before any test was in it; dropping it kills what is left of it.
    pub(crate) fn lost(self, cx: &Cx, lost: &Lost) {
        ended(cx, self.instance, Some(lost));
    }

    /// Ends the guest.
    ///
    /// # Errors
    /// As [`Guest::close`].
    pub(crate) async fn close(
        self,
        cx: &Cx,
        how: Ending,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<(), Lost> {
        self.end(cx, how, None, cancel, observe).await
    }

    /// Ends a guest that is of no use any more. If it died, that is what is told of its end.
    pub(crate) async fn give_up(self, cx: &Cx, lost: &Lost, cancel: &mut Cancel, observe: &mut dyn FnMut(EventKind)) {
        let died = lost.cause.crash_kind().map(|_| lost);
        // Its end adds nothing to what is known.
        drop(self.end(cx, Ending::Hurry, died, cancel, observe).await);
    }

    async fn end(
        self,
        cx: &Cx,
        how: Ending,
        died: Option<&Lost>,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<(), Lost> {
        let closed = tokio::select! {
            biased;
            why = cancel.urgent() => Err(why.lost(Phase::Close)),
            closed = self.guest.close(how, observe) => closed,
        };
        drop(self.wound);
        // What the guest fetched the agent from is the same for all.
        drop(tree::remove(&self.dir.join(plan::CONTROL_DIR)));
        ended(cx, self.instance, died.or(closed.as_ref().err()));
        closed
    }
}

/// Something on the host's disk could not be made.
pub(crate) fn not_made(attempt: &str, error: &io::Error) -> Lost {
    Cause::host_file(attempt, error, "free some space").into()
}

fn ended(cx: &Cx, instance: u64, lost: Option<&Lost>) {
    let message = lost.map(|lost| lost.cause.to_string());
    let message = message.map(|m| events::keep_start(&m, events::MAX_MESSAGE).to_owned());
    cx.tell.emit(EventKind::GuestEnded(events::GuestEnded { instance, message, peak_memory: None }));
}

/// Waits for a chance to boot a guest that has not come up yet in this run: there are as many as it may be tried, so that one that
/// never comes up is not tried by all tests at once. Whoever has one is done with it when the guest is up or lost, for which there
/// are limits.
async fn chance(cx: &Cx, machine: usize, cancel: &mut Cancel) -> Option<OwnedSemaphorePermit> {
    let left = Arc::clone(&cx.boots.borrow().get(machine)?.left);
    tokio::select! {
        biased;
        // Whoever is cancelled finds out by itself.
        _ = cancel.wanted() => None,
        chance = left.acquire_owned() => chance.ok(),
    }
}

fn hopeless(cx: &Cx, machine: usize) -> Option<Unfit> {
    let boots = cx.boots.borrow();
    let boots = boots.get(machine).filter(|b| !b.worked && (b.lasting || b.failed >= HOPELESS))?;
    let message = if boots.lasting {
        format!("this guest was not tried again, for it would not come up: {}", boots.last)
    } else {
        format!(
            "this guest was started {} times in this run and never came up, so it was not tried again; the last time: {}",
            boots.failed, boots.last
        )
    };
    Some(Unfit { lost: Cause::NotTried(message).into(), retry: false })
}

fn remember(cx: &Cx, machine: usize, came: Result<Origin, &Lost>, chance: Option<OwnedSemaphorePermit>) {
    let mut boots = cx.boots.borrow_mut();
    let Some(boots) = boots.get_mut(machine) else { return };
    let why = match came {
        Ok(origin) => {
            boots.worked = true;
            boots.left.close();
            boots.cloned = origin == Origin::Clone;
            return;
        }
        Err(lost) if matches!(lost.cause, Cause::Interrupted { .. }) => return,
        Err(lost) => lost.cause.to_string(),
    };
    boots.failed += 1;
    boots.lasting |= came.is_err_and(|lost| lost.lasting);
    boots.last = why.lines().next().unwrap_or_default().to_owned();
    // That was one of its tries, and nobody has it after this one.
    if let Some(chance) = chance {
        chance.forget();
    }
    if boots.failed >= HOPELESS || boots.lasting {
        boots.left.close();
    }
}
