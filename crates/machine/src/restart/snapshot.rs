//! A machine that is kept as it is at some moment, and goes back there: its memory and its devices as QEMU writes them when it migrates a machine
//! (QEMU's `docs/devel/migration`), and its disks as copies, or as what the servers of lab disks remember.
//!
//! QEMU cannot do that while a share is mounted, and what was shared is the host's and does not go back. So the shares are brought to rest before, and what
//! ran is started again after it.

use std::{collections::BTreeMap, fs::File, path::Path};

use belljar_guest_spec::machine_order::Restart;
use belljar_image::disk::unnamed;
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{Identity, Quiesce};

use super::{CLOSING, QemuGuest, again};
use crate::{
    Cause, Lost, boot,
    guest::Observe,
    launch::Predecessor,
    lease::has_room,
    plan::Plan,
    qemu::qmp::{Cont, QmpError},
    session::agent::of_session,
    share,
    template::{Frozen, blocking, go_back, reopen, save_whole, unchanged_identity},
    volume::Kept,
    watch::{Expectation, control, of_exceeded},
};

/// Most snapshots of one command.
pub(crate) const MOST_SNAPSHOTS: usize = 8;

/// Those of one command.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    all: BTreeMap<String, Snapshot>,
    taken: u32,
}

#[derive(Debug)]
struct Snapshot {
    /// By which lab disks know it.
    number: u32,
    /// Memory and devices.
    state: File,
    /// Of each volume, in their order.
    disks: Vec<Kept>,
    frame: boot::Frame,
    session: Frozen,
}

impl Snapshots {
    /// Their names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    /// Whether one was taken, if only in part.
    pub(crate) fn is_used(&self) -> bool {
        self.taken > 0
    }
}

impl QemuGuest {
    /// Keeps the machine as it is now, and mounts its shares once more.
    pub(super) async fn take_snapshot(
        &mut self,
        restart: &Restart,
        name: &str,
        snapshots: &mut Snapshots,
        observe: Observe<'_>,
    ) -> Result<(), Lost> {
        self.settle(observe).await?;
        let plan = self.plan_of_restarts()?.clone();
        // One that is not whole is none.
        let number = match snapshots.all.remove(name) {
            Some(before) => before.number,
            None => {
                snapshots.taken += 1;
                snapshots.taken
            }
        };
        let obstacle = match self.obstacle(number, &plan).await {
            Some(why) => Some(why),
            None => self.bring_to_rest(&plan, observe).await?,
        };
        let refuse = |why: String, observe: Observe<'_>| {
            observe(control(&restart.to_string(), &why, true));
            Lost::from(Cause::NotRestarted(format!("{restart}: {why}"))).lasting()
        };
        if let Some(why) = obstacle {
            return Err(refuse(why, observe));
        }
        match self.keep_now(number, &plan, observe).await? {
            Ok(snapshot) => drop(snapshots.all.insert(name.to_owned(), snapshot)),
            Err(why) => return Err(refuse(why, observe)),
        }
        observe(EventKind::Phase { phase: Phase::Session });
        self.mount_again(&plan, observe).await?;
        observe(EventKind::Phase { phase: Phase::Command });
        Ok(())
    }

    /// Why the machine cannot be kept as it is, as far as that is known before its guest is asked.
    async fn obstacle(&self, number: u32, plan: &Plan) -> Option<String> {
        if let Some(why) = self.machine.watch.not_kept().await {
            return Some(why);
        }
        let bytes = self.machine.kept.iter().map(Kept::allocated).sum::<u64>().saturating_add(plan.ram_size());
        if let Err(why) = has_room(&plan.dir, bytes) {
            return Some(why);
        }
        // The disks say whether they can, and are asked once more when nobody writes.
        self.machine.lab.snapshot(number).await.err()
    }

    /// Has the guest let go of what is the host's; gives what it cannot let go of.
    async fn bring_to_rest(&mut self, plan: &Plan, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        let shares = plan.sources();
        let overlay = !shares.is_empty();
        // What is not flushed stays so.
        let quiesce =
            Quiesce { unmount: vec![share::CONTROL_PATH.into()], overlay, shares, sync: false, end_holders: true };
        let limit = self.machine.limits.sync();
        self.machine.watch.ports.let_go();
        let Self { machine, session, .. } = &mut *self;
        let agent = super::staying::agent_of(session)?;
        let left = machine
            .attend(Phase::Command, observe, async |_, _, _| {
                let quiesced = tokio::time::timeout(limit, agent.quiesce(quiesce)).await;
                let what = "unmount its shares";
                quiesced.map_err(|_| super::staying::late(what, limit))?.map_err(|e| of_session(e, Phase::Command))
            })
            .await;
        match left {
            Ok(left) if left.is_empty() => Ok(None),
            Ok(left) => Ok(Some(format!(
                "something of the host's stays mounted in the guest: {}; end what the test has left running there before that",
                left.join(", ")
            ))),
            Err(lost) => Err(self.explain(lost, Phase::Command).await),
        }
    }

    /// Has the machine stand still, writes down what it is, and lets it go on. `Err`: it goes on, and why it is not kept.
    async fn keep_now(
        &mut self,
        number: u32,
        plan: &Plan,
        observe: Observe<'_>,
    ) -> Result<Result<Snapshot, String>, Lost> {
        let Some(port) = self.machine.agents_port() else {
            return Err(Cause::Defect("a guest without an agent is to be kept".to_owned()).into());
        };
        let session = Frozen::of_agent(port);
        let dir = plan.dir.clone();
        let host = |attempt: &str, error: &std::io::Error| {
            Cause::host_file(attempt, error, "the run's directory must be writable, and have room")
        };
        let state = unnamed(&dir).map_err(|error| Cause::Description(error.to_string()))?;
        let written = state.try_clone().map_err(|error| host("keep the machine's memory", &error))?;
        let qmp = self.machine.qemu.qmp().clone();
        let limit = self.machine.limits.whole_state(plan.ram_size());
        self.machine.lab.still().await.map_err(Cause::ShareServer)?;
        self.machine.watch.expected().announce(Expectation::Stop);
        let saved = self
            .machine
            .attend(Phase::Command, observe, async |_, _, _| Ok(save_whole(&qmp, limit, written).await))
            .await;
        let saved = match saved {
            Ok(saved) => saved,
            Err(lost) => return Err(self.explain(lost, Phase::Command).await),
        };
        let kept = match saved {
            Ok(()) => self.keep_disks(number, &dir).await?,
            Err(why) => Err(format!("{why}{}", self.machine.watch.blame())),
        };
        match qmp.execute(Cont {}).await {
            Ok(_) => {}
            // What it died of will be known in a moment.
            Err(QmpError::Closed { .. }) => {
                let why = kept.err().unwrap_or_else(|| "QEMU did not go on".to_owned());
                return Err(self.explain(Lost::crash(CrashKind::Silent, why, Phase::Command), Phase::Command).await);
            }
            Err(error) => {
                let first = kept.err().map(|why| format!(" ({why})")).unwrap_or_default();
                let why = format!("the machine stood still to be kept as it is{first}, and does not go on: {error}");
                return Err(Cause::QemuRefused(why).into());
            }
        }
        self.machine.lab.begin().await.map_err(Cause::ShareServer)?;
        let frame = self.machine.frame;
        Ok(kept.map(|disks| Snapshot { number, state, disks, frame, session }))
    }

    async fn keep_disks(&mut self, number: u32, dir: &Path) -> Result<Result<Vec<Kept>, String>, Lost> {
        let disks = copies(&self.machine.kept, dir).await?;
        self.machine.lab.snapshot(number).await.map_err(Cause::ShareServer)?;
        Ok(disks.map_err(|error| format!("its disks cannot be copied to {}: {error}", dir.display())))
    }

    /// Has another machine take the place of this one, which is what this one was.
    pub(super) async fn return_to(
        &mut self,
        name: &str,
        snapshots: &Snapshots,
        observe: Observe<'_>,
    ) -> Result<(), Lost> {
        let gone = || Cause::Defect(format!("the snapshot {name} is gone"));
        let snapshot = snapshots.all.get(name).ok_or_else(gone)?;
        // What was found up to now stays found.
        self.settle(observe).await?;
        self.stop_processors().await?;
        self.machine.lab.let_go().await.map_err(Cause::ShareServer)?;
        let end = tokio::time::timeout(CLOSING, self.machine.qemu.kill()).await.ok().flatten();
        if let Some(exceeded) = end.and_then(|end| end.exceeded) {
            return Err(of_exceeded(&exceeded));
        }
        self.machine.lab.go_back(snapshot.number).await.map_err(Cause::ShareServer)?;
        let plan = self.plan_of_restarts()?.clone();
        let view = self.view_of_restarts();
        let failed = |why: String| Lost::from(Cause::NotRestarted(format!("return {name}: {why}")));
        let kept = copies(&snapshot.disks, &plan.dir).await?;
        let kept = kept.map_err(|error| failed(format!("its disks cannot be copied: {error}")))?;
        let state = reopen(&snapshot.state).map_err(|error| failed(format!("its memory cannot be read: {error}")))?;
        let boot::Machine { lab, before, pmem, .. } = &mut self.machine;
        let predecessor = Predecessor { lab: lab.clone(), before: *before, pmem: std::mem::take(pmem) };
        let launch = plan.launch_back(kept, predecessor, snapshot.frame, state);
        let launch = launch.map_err(|error| failed(error.to_string()))?;
        observe(EventKind::Phase { phase: Phase::Session });
        let (mut machine, entered) = go_back(&plan, &snapshot.session, launch, view.as_ref(), observe).await?;
        machine.watch.entered(entered.reports());
        let limit = machine.limits.setup_of_copy();
        // Its clock is set, and goes as it went then, which may be as it should not.
        machine.watch.inherit_clock(&self.machine.watch);
        let guest = boot::finish(machine, entered, &plan, Some(self.identity_again()?), limit, observe).await?;
        self.take_over(guest);
        observe(EventKind::Phase { phase: Phase::Command });
        Ok(())
    }

    /// It is who it was, and yet what is random in it is not the same each time.
    fn identity_again(&self) -> Result<Identity, Lost> {
        match &self.identity {
            Some(identity) => again(identity, false),
            None => again(&unchanged_identity(), false),
        }
    }
}

/// Copies of what volumes are now.
async fn copies(kept: &[Kept], dir: &Path) -> Result<std::io::Result<Vec<Kept>>, Lost> {
    let kept: std::io::Result<Vec<Kept>> = kept.iter().map(Kept::try_clone).collect();
    let dir = dir.to_owned();
    match kept {
        Ok(kept) => blocking(move || kept.iter().map(|one| one.copy(&dir)).collect()).await,
        Err(error) => Ok(Err(error)),
    }
}
