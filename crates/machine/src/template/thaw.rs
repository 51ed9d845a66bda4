//! From a template to a guest of its own.

use std::fs::File;

use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::Identity;

use super::{
    Making, Template,
    blame::{Blame, of_loss, of_start},
    blocking,
    freeze::{capabilities, whole_capabilities},
    manifest::Frozen,
};
use crate::{
    Cause, Lost, access,
    boot::{self, Entered, Machine, Ports, StartError},
    console::Console,
    enter,
    guest::{Observe, Views},
    launch::Launch,
    limits::Limits,
    plan::Plan,
    plan_template::{CardChange, QEMU_MAC},
    plug::{self, Changes, PlugError, Unplugged},
    qemu::qmp::{Cont, EventStream, MigrateIncoming, QmpError},
    running::QemuGuest,
    session::agent::{AgentSession, PortKind, of_session},
};

/// Why there is no guest.
#[derive(Debug)]
pub(crate) enum Unthawed {
    /// No copy of the template went on.
    Copy(Box<FailedCopy>),
    /// It has not got a device that was to be plugged in.
    Unplugged(Unplugged),
    /// There was a guest, and it is lost.
    Lost(Lost),
}

/// A copy of a template that did not go on.
#[derive(Debug)]
pub(crate) struct FailedCopy {
    /// Whose fault it is, as far as what was said tells.
    pub(crate) blame: Blame,
    pub(crate) why: String,
    /// The template, for the one who wants to look at it.
    pub(crate) template: Option<Template>,
}

impl Unthawed {
    fn failed(blame: Blame, why: String) -> Self {
        Self::Copy(Box::new(FailedCopy { blame, why, template: None }))
    }

    /// The same, of this template.
    fn of(self, template: Template) -> Self {
        match self {
            Self::Copy(failed) => Self::Copy(Box::new(FailedCopy { template: Some(template), ..*failed })),
            other => other,
        }
    }
}

/// Makes a guest of its own out of a template. With `again` the logs of this attempt are added to, not begun.
pub(crate) async fn thaw(
    plan: &Plan,
    template: Template,
    again: bool,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<QemuGuest, Unthawed> {
    let owned = plan.clone();
    let launching = blocking(move || (owned.launch_copy(&template), template)).await;
    let (launch, template) = launching.map_err(Unthawed::Lost)?;
    let launch = match launch {
        Ok(launch) => launch,
        // Nothing of the template's content was looked at.
        Err(error) => return Err(Unthawed::failed(Blame::Host, error.to_string()).of(template)),
    };
    let identity = random_bytes().map(|random| identity(&random))?;
    let changes = Changes::of(&launch.config, CardChange::None);
    let resuming = Resuming { plan, session: template.session(), launch, changes, again, is_whole: false };
    let (machine, entered) = match resume(resuming, view, observe).await {
        Ok(resumed) => resumed,
        Err(unthawed) => return Err(unthawed.of(template)),
    };
    finish(machine, entered, plan, identity, template, observe).await
}

/// A copy of a template that is to become a template itself. It keeps the identity with which the template booted.
pub(crate) struct CopyToKeep<'a> {
    /// The copy's machine.
    pub(crate) plan: &'a Plan,
    pub(crate) template: Template,
    /// Where the new one is made.
    pub(crate) making: &'a Making,
    /// Copies of the template's memory and volumes, which the machine may write to.
    pub(crate) ram: File,
    pub(crate) volumes: Vec<File>,
    /// Whether the logs of this attempt are added to, not begun.
    pub(crate) again: bool,
}

/// Makes a guest in which commands can run, to be set up.
pub(crate) async fn thaw_to_set_up(
    copy: CopyToKeep<'_>,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<QemuGuest, Unthawed> {
    let CopyToKeep { plan, template, making: _, ram, volumes, again } = copy;
    let launch =
        plan.launch_on_top(&template, ram, volumes).map_err(|e| Unthawed::failed(Blame::Host, e.to_string()))?;
    let identity = random_bytes().map(|random| Identity { seed: identity(&random).seed, ..unchanged() })?;
    let changes = Changes::default();
    let resuming = Resuming { plan, session: template.session(), launch, changes, again, is_whole: false };
    let (machine, entered) = resume(resuming, view, observe).await?;
    finish(machine, entered, plan, identity, template, observe).await
}

/// Makes a machine out of a base's template, has the plan's devices plugged into it, and leaves it at that.
pub(crate) async fn thaw_to_plug(
    copy: CopyToKeep<'_>,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<(Machine, Entered), Unthawed> {
    let CopyToKeep { plan, template: base, making, ram, volumes, again } = copy;
    let launch = plan.launch_to_plug(&base, making, ram, volumes);
    let launch = launch.map_err(|e| Unthawed::failed(Blame::Host, e.to_string()))?;
    let changes = Changes::of(&launch.config, plan.card_change());
    let resuming = Resuming { plan, session: base.session(), launch, changes, again, is_whole: false };
    let (mut machine, entered) = resume(resuming, view, observe).await?;
    machine.watch.entered(entered.reports());
    Ok((machine, entered))
}

/// Makes a machine that goes on from the state of another of the guest's, in which its memory is.
pub(crate) async fn go_back(
    plan: &Plan,
    session: &Frozen,
    launch: Launch,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<(Machine, Entered), Lost> {
    let resuming = Resuming { plan, session, launch, changes: Changes::default(), again: true, is_whole: true };
    resume(resuming, view, observe).await.map_err(|unthawed| match unthawed {
        Unthawed::Copy(failed) => Cause::NotRestarted(format!("it does not go on from there: {}", failed.why)).into(),
        Unthawed::Unplugged(unplugged) => Cause::Defect(unplugged.why).into(),
        Unthawed::Lost(lost) => lost,
    })
}

/// Gives a copy its identity and mounts its shares.
async fn finish(
    mut machine: Machine,
    entered: Entered,
    plan: &Plan,
    identity: Identity,
    template: Template,
    observe: Observe<'_>,
) -> Result<QemuGuest, Unthawed> {
    machine.watch.entered(entered.reports());
    boot::choices_of_copy(plan, &entered).into_iter().for_each(&mut *observe);
    let limit = machine.limits.setup_of_copy();
    let guest = boot::finish(machine, entered, plan, Some(identity.clone()), limit, observe).await;
    guest.map(|guest| guest.with_template(template, identity)).map_err(Unthawed::Lost)
}

/// A machine that is to go on.
struct Resuming<'a> {
    plan: &'a Plan,
    session: &'a Frozen,
    launch: Launch,
    /// What is to be plugged into it.
    changes: Changes,
    again: bool,
    /// Its memory is in the state.
    is_whole: bool,
}

async fn resume(
    resuming: Resuming<'_>,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<(Machine, Entered), Unthawed> {
    let Resuming { plan, session, launch, changes, again, is_whole } = resuming;
    let Some(state) = launch.config.incoming else {
        return Err(Unthawed::Lost(Cause::Defect("the machine does not wait for a template's state".into()).into()));
    };
    let started = Machine::start(plan, launch, again, view).await;
    let (mut machine, ports) = match started {
        Ok(started) => started,
        Err(StartError::Files(cause)) => return Err(Unthawed::Lost(cause.into())),
        Err(StartError::Spawn(error)) => return Err(Unthawed::failed(of_start(&error), error.to_string())),
    };
    let limits = machine.limits;
    let resumed = machine
        .attend(Phase::Boot, observe, async |qemu, console, tell| {
            let mut events = qemu.qmp().events();
            let refused = |e: QmpError| match e {
                // What it died of will be known in a moment.
                QmpError::Closed { .. } => Lost::crash(CrashKind::Silent, e.to_string(), Phase::Boot),
                e => Cause::QemuRefused(e.to_string()).into(),
            };
            let capabilities = if is_whole { whole_capabilities() } else { capabilities() };
            qemu.qmp().execute(capabilities).await.map_err(refused)?;
            let greeting = greet(session, ports, console, &limits);
            qemu.qmp().execute(MigrateIncoming { uri: state.uri() }).await.map_err(refused)?;
            let limit = if is_whole { limits.whole_state(plan.ram_size()) } else { limits.state() };
            let what = if is_whole { "snapshot" } else { "template" };
            match tokio::time::timeout(limit, loaded(&mut events)).await {
                Ok(true) => {}
                // It ends then, and says why.
                Ok(false) => {
                    return Err(Lost::crash(CrashKind::Silent, format!("QEMU could not load the {what}"), Phase::Boot));
                }
                Err(_) => {
                    let limit = crate::for_people(limit);
                    return Err(Lost::timeout(Phase::Boot, format!("QEMU did not load the {what} within {limit}")));
                }
            }
            // It was stopped when it was frozen.
            qemu.qmp().execute(Cont {}).await.map_err(refused)?;
            tell(EventKind::Phase { phase: Phase::Session });
            tokio::time::timeout(limits.answer_of_copy(), greeting).await.unwrap_or_else(|_| {
                let limit = crate::for_people(limits.answer_of_copy());
                Err(Lost::timeout(Phase::Session, format!("nobody answered in the copy within {limit}")))
            })
        })
        .await;
    let entered = match resumed {
        Ok(entered) => entered,
        Err(lost) => {
            let lost = machine.give_up(lost, Phase::Boot).await;
            return Err(Unthawed::failed(of_loss(&lost.cause), lost.to_string()));
        }
    };
    plugged(machine, entered, &changes, observe).await
}

/// Makes the changes to a machine whose guest has answered.
async fn plugged(
    mut machine: Machine,
    mut entered: Entered,
    changes: &Changes,
    observe: Observe<'_>,
) -> Result<(Machine, Entered), Unthawed> {
    if changes.is_empty() {
        return Ok((machine, entered));
    }
    let limits = machine.limits;
    let plugged = machine
        .attend(Phase::Session, observe, async |qemu, _, _| {
            let Entered::Agent { session, .. } = &mut entered else {
                let why = "the guest has no agent, which could tell when it takes note of them".to_owned();
                return Ok(Err(Unplugged { kind: changes.kind(), why }));
            };
            match plug::plug(changes, qemu.qmp(), session, &limits).await {
                Ok(()) => Ok(Ok(())),
                Err(PlugError::Unplugged(unplugged)) => Ok(Err(unplugged)),
                Err(PlugError::Lost(lost)) => Err(lost),
            }
        })
        .await;
    let unplugged = match plugged {
        Ok(Ok(())) => return Ok((machine, entered)),
        Ok(Err(unplugged)) => {
            machine.qemu.kill().await;
            unplugged
        }
        // The template is as good as before.
        Err(lost) => {
            let why = machine.give_up(lost, Phase::Session).await.to_string();
            Unplugged { kind: changes.kind(), why: format!("the guest was lost to it: {why}") }
        }
    };
    Err(Unthawed::Unplugged(unplugged))
}

/// Takes the agent over, or the shell.
async fn greet(frozen: &Frozen, ports: Ports, console: &Console, limits: &Limits) -> Result<Entered, Lost> {
    let kind = match frozen {
        Frozen::AgentOnVirtio => PortKind::Virtio,
        Frozen::AgentOnSerial => PortKind::Serial,
        Frozen::Shell => {
            let adopted = access::adopt_again(console, &mut limits.line()).await;
            let shell = adopted.map_err(|e| enter::of_shell(&e, Phase::Session))?;
            return Ok(Entered::Shell(Box::new(shell)));
        }
    };
    let Some((kind, port)) = ports.into_iter().find(|(k, _)| *k == kind) else {
        return Err(Cause::Defect("the machine lacks the port of its agent".into()).into());
    };
    let session = AgentSession::resume(kind, port).await.map_err(|e| of_session(e, Phase::Session))?;
    Ok(Entered::Agent { session: Box::new(session), port: kind })
}

/// Waits until the state is there. `false`: it never will be.
async fn loaded(events: &mut EventStream) -> bool {
    while let Some(event) = events.next().await {
        let status = event.data.get("status").and_then(|s| s.as_str());
        match status {
            Some("completed") if event.name == "MIGRATION" => return true,
            Some("failed") if event.name == "MIGRATION" => return false,
            _ => {}
        }
    }
    false
}

type Random = [u8; 32 + 16 + 3];

fn random_bytes() -> Result<Random, Unthawed> {
    let mut random = [0; size_of::<Random>()];
    getrandom::fill(&mut random).map_err(|e| Unthawed::Lost(Cause::NoRandom(e.to_string()).into()))?;
    Ok(random)
}

/// What changes nothing.
pub(crate) fn unchanged() -> Identity {
    Identity { seed: [0; 32], machine_id: [0; 16], host_suffix: String::new(), mac: QEMU_MAC, old_mac: QEMU_MAC }
}

/// Another one for each copy.
fn identity(random: &Random) -> Identity {
    let mut seed = [0; 32];
    seed.copy_from_slice(&random[..32]);
    let mut machine_id = [0; 16];
    machine_id.copy_from_slice(&random[32..48]);
    // As a random UUID has them, which machine-id(5) asks for.
    machine_id[6] = machine_id[6] & 0x0f | 0x40;
    machine_id[8] = machine_id[8] & 0x3f | 0x80;
    let tail = [random[48], random[49], random[50]];
    Identity {
        seed,
        machine_id,
        host_suffix: format!("-{:02x}{:02x}{:02x}", tail[0], tail[1], tail[2]),
        mac: [QEMU_MAC[0], QEMU_MAC[1], QEMU_MAC[2], tail[0], tail[1], tail[2]],
        old_mac: QEMU_MAC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_copies_are_the_same() {
        let another = || identity(&random_bytes().unwrap());
        let (one, two) = (another(), another());
        assert_ne!(one.seed, two.seed);
        assert_ne!(one.machine_id, two.machine_id);
        assert_ne!(one.host_suffix, two.host_suffix);
        assert_ne!(one.mac, two.mac);
        assert_eq!(one.machine_id[6] >> 4, 4);
        assert_eq!(one.mac[0] & 1, 0, "no group address");
    }
}
