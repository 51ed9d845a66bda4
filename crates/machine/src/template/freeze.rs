//! From a guest that booted to a template.

use std::{fs::File, time::Duration};

use belljar_model::{CrashKind, Phase};
use belljar_proto::message::Quiesce;
use tokio::time::Instant;

use super::{
    Template, TemplateKey,
    manifest::Frozen,
    sparse,
    store::{Facts, Making, RAM, STATE},
};
use crate::{
    Cause, Lost,
    boot::{Entered, Machine},
    enter,
    guest::Observe,
    plan::Plan,
    qemu::{
        process::Qemu,
        qmp::{
            Cont, EventStream, Migrate, MigrateSetCapabilities, MigrateSetParameters, MigrationCapability, Qmp,
            QmpError, QueryMigrate, QueryStatus, Stop,
        },
    },
    session::agent::of_session,
    share,
    watch::Expectation,
};

/// Bytes in a second at which memory is written: more than there will be.
const MOST_BANDWIDTH: u64 = 1 << 40;

/// How often, and how many times, it is looked whether QEMU is done with a migration that has ended.
const SETTLED_LOOK: Duration = Duration::from_millis(20);
const SETTLED_LOOKS: usize = 250;

/// For so long a guest must have nothing to do to count as having come to rest.
const REST: Duration = Duration::from_millis(60);

/// Both ends agree that memory is not in the state.
pub(super) fn capabilities() -> MigrateSetCapabilities {
    let on = |capability| MigrationCapability { capability, state: true };
    MigrateSetCapabilities { capabilities: vec![on("x-ignore-shared"), on("events")] }
}

/// Memory is in the state, wherever it is.
pub(super) fn whole_capabilities() -> MigrateSetCapabilities {
    let set = |capability, state| MigrationCapability { capability, state };
    MigrateSetCapabilities { capabilities: vec![set("x-ignore-shared", false), set("events", true)] }
}

/// Stops the guest, and writes its memory and its devices' state. It does not go on.
pub(crate) async fn save_whole(qmp: &Qmp, limit: Duration, state: File) -> Result<(), String> {
    let refused = |error: QmpError| error.told();
    let mut events = qmp.events();
    let saving = async {
        // It waits for what its disks are at.
        qmp.execute_within(Stop {}, limit).await.map_err(refused)?;
        qmp.execute(whole_capabilities()).await.map_err(refused)?;
        // As fast as it goes: nothing else is done meanwhile.
        qmp.execute(MigrateSetParameters { max_bandwidth: MOST_BANDWIDTH }).await.map_err(refused)?;
        qmp.hand_over("state", state.into()).await.map_err(refused)?;
        qmp.execute(Migrate { uri: "fd:state".into() }).await.map_err(refused)?;
        let saved = saved(qmp, &mut events).await;
        settled(qmp).await;
        saved
    };
    tokio::time::timeout(limit, saving).await.unwrap_or_else(|_| {
        Err(format!("QEMU did not write its memory and the state of its devices within {}", crate::for_people(limit)))
    })
}

/// Why there is no template.
#[derive(Debug)]
pub(crate) enum Unfrozen {
    /// The guest goes on as it is; why it could not be frozen.
    GoesOn(String),
    /// The guest is lost.
    Lost(Lost),
    /// QEMU did not survive the freezing, of which the guest knew nothing: another one may boot.
    Spent(Lost),
}

/// How long a guest may take to come to rest.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rest {
    /// A sixteenth of the time since its start.
    PartOfBoot,
    /// So long.
    AtMost(Duration),
}

/// What is made of a guest that is frozen.
pub(crate) struct Freezing<'a> {
    pub(crate) plan: &'a Plan,
    /// Which guest it is, for a person.
    pub(crate) title: String,
    /// The template that it was made of.
    pub(crate) base: Option<TemplateKey>,
    /// Used up if a template comes of it; else whoever waits for it can be told something first.
    pub(crate) making: &'a mut Option<Making>,
    /// The guest's memory.
    pub(crate) ram: File,
    /// When the guest was started.
    pub(crate) since: Instant,
    pub(crate) rest: Rest,
}

/// Freezes a guest, and makes a template of it. The machine is of no use after that.
pub(crate) async fn freeze(
    machine: &mut Machine,
    entered: &mut Entered,
    freezing: &mut Freezing<'_>,
    observe: Observe<'_>,
) -> Result<Template, Unfrozen> {
    if let Entered::Shell(shell) = &*entered
        && let Some(why) = &shell.makeshift
    {
        // Each of its copies would have no more.
        return Err(Unfrozen::GoesOn(why.clone()));
    }
    let Freezing { plan, title, base, making, ram, since, rest } = freezing;
    let rest = match rest {
        Rest::PartOfBoot => since.elapsed() / 16,
        Rest::AtMost(limit) => *limit,
    };
    let session = match entered {
        Entered::Agent { port, .. } => Frozen::of_agent(*port),
        Entered::Shell(_) => Frozen::Shell,
    };
    let facts = Facts {
        guest: title.clone(),
        base: base.clone(),
        qemu: plan.qemu.version.to_string(),
        boot_millis: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        session,
    };
    quiesce(machine, entered, plan, rest, observe).await?;
    if let Some(lost) = machine.watch.doubt(Phase::Session, observe).await {
        return Err(Unfrozen::Lost(lost));
    }
    let used_up = || Unfrozen::GoesOn("the right to make a template is used up".into());
    let create = |name| making.as_ref().ok_or_else(used_up)?.create(name).map_err(|e| Unfrozen::GoesOn(e.to_string()));
    let ram = ram.try_clone().map_err(|e| Unfrozen::GoesOn(e.to_string()))?;
    let (state, kept) = (create(STATE)?, create(RAM)?);
    let qmp = machine.qemu.qmp().clone();
    machine.watch.expected().announce(Expectation::Stop);
    let limit = machine.limits.state();
    let saved =
        machine.attend(Phase::Session, observe, async |_, _, _| Ok(save(&qmp, limit, state, ram, kept).await)).await;
    let published = match saved {
        Ok(Ok(copied)) => {
            let frozen = machine.lab.freeze().await;
            frozen.map_err(|why| Unfrozen::Spent(Cause::ShareServer(why).into()))?;
            let making = making.take().ok_or_else(used_up)?;
            let published = tokio::task::spawn_blocking(move || making.publish(facts, copied.hash)).await;
            published.map_err(|e| e.to_string()).and_then(|p| p.map_err(|e| e.to_string()))
        }
        Ok(Err(why)) => Err(why),
        Err(lost) => return Err(Unfrozen::Spent(lost)),
    };
    match published {
        Ok(template) => Ok(template),
        // It has lost no more than time.
        Err(why) => {
            settled(&qmp).await;
            match qmp.execute(Cont {}).await {
                Ok(_) => Err(Unfrozen::GoesOn(why)),
                // What it died of will be known in a moment.
                Err(QmpError::Closed { .. }) => {
                    Err(Unfrozen::Spent(Lost::crash(CrashKind::Silent, why, Phase::Session)))
                }
                Err(error) => {
                    Err(Unfrozen::Spent(Cause::QemuRefused(format!("{why}; nor does it go on: {error}")).into()))
                }
            }
        }
    }
}

/// Has the guest let go of the host, and waits until it has come to rest.
async fn quiesce(
    machine: &mut Machine,
    entered: &mut Entered,
    plan: &Plan,
    resting: Duration,
    observe: Observe<'_>,
) -> Result<(), Unfrozen> {
    // Whatever this guest's own workspace is like: that of a copy may be another.
    let (mounts, shares) = (plan.mounts(), plan.sources());
    let wanted = Quiesce {
        unmount: vec![share::CONTROL_PATH.into()],
        overlay: !shares.is_empty(),
        shares,
        sync: true,
        end_holders: false,
    };
    let limits = machine.limits;
    let limit = limits.sync();
    machine.watch.ports.let_go();
    let left = machine
        .attend(Phase::Session, observe, async |qemu, _, _| {
            let letting_go = async {
                match entered {
                    Entered::Agent { session, .. } => {
                        session.quiesce(wanted).await.map_err(|e| of_session(e, Phase::Session))
                    }
                    Entered::Shell(shell) => enter::quiesce(shell, &mounts, &limits).await,
                }
            };
            let left = match tokio::time::timeout(limit, letting_go).await {
                Ok(left) => left?,
                Err(_) => vec!["nobody knows where, for the guest does not answer".into()],
            };
            if left.is_empty() {
                rest(qemu, resting).await;
            }
            Ok(left)
        })
        .await
        .map_err(Unfrozen::Lost)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Unfrozen::GoesOn(format!("something of the host's stays mounted in it: {}", left.join(", "))))
}

/// Waits until the guest has nothing to do: what it still has to do, each of its copies would have to do. One that never
/// rests is frozen all the same.
async fn rest(qemu: &Qemu, limit: Duration) {
    let until = Instant::now() + limit;
    let mut before = qemu.wanted_time();
    while Instant::now() < until {
        tokio::time::sleep(REST).await;
        let now = qemu.wanted_time();
        if now.saturating_sub(before) < REST / 8 {
            return;
        }
        before = now;
    }
}

/// Stops the guest, and writes its devices' state and its memory.
async fn save(
    qmp: &Qmp,
    limit: Duration,
    state: File,
    ram: File,
    kept: File,
) -> Result<belljar_image::sparse::Content, String> {
    let refused = |error: QmpError| error.to_string();
    qmp.execute(Stop {}).await.map_err(refused)?;
    let copying = tokio::task::spawn_blocking(move || {
        let size = ram.metadata()?.len();
        sparse::copy(&ram, &kept, size)
    });
    let mut events = qmp.events();
    qmp.execute(capabilities()).await.map_err(refused)?;
    qmp.hand_over("state", state.into()).await.map_err(refused)?;
    let saving = async {
        qmp.execute(Migrate { uri: "fd:state".into() }).await.map_err(refused)?;
        saved(qmp, &mut events).await
    };
    let saved = tokio::time::timeout(limit, saving).await.unwrap_or_else(|_| {
        Err(format!("QEMU did not write the state of its devices within {}", crate::for_people(limit)))
    });
    // Whatever came of the state: the files are closed before anybody goes on.
    let copied = copying.await.map_err(|e| e.to_string())?.map_err(|e| format!("its memory cannot be kept: {e}"))?;
    saved.map(|()| copied)
}

/// Waits until the machine may go on: QEMU says that a migration has ended a moment before it is done with it (its `migration_completion`).
async fn settled(qmp: &Qmp) {
    for _ in 0..SETTLED_LOOKS {
        match qmp.execute(QueryStatus {}).await {
            Ok(state) if state.status == "finish-migrate" => tokio::time::sleep(SETTLED_LOOK).await,
            // What is wrong is found by whoever has it go on.
            _ => return,
        }
    }
}

/// Waits for the end of the migration.
async fn saved(qmp: &Qmp, events: &mut EventStream) -> Result<(), String> {
    while let Some(event) = events.next().await {
        if event.name != "MIGRATION" {
            continue;
        }
        match event.data.get("status").and_then(|s| s.as_str()) {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let info = qmp.execute(QueryMigrate {}).await.unwrap_or_default();
                return Err(info.error_desc.unwrap_or_else(|| "QEMU could not write the state of its devices".into()));
            }
            _ => {}
        }
    }
    Err("QEMU's control channel was closed".into())
}
