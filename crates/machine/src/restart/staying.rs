//! A machine that goes on while what runs in it begins anew: with another kernel (kexec), or under the same one (a soft reboot). Nothing of it is
//! plugged, and no disk is closed; the shares are mounted anew, and of the old guest nobody is asked any more.

use std::time::Duration;

use belljar_guest_spec::machine_order::{Down, Restart};
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{Identity, Quiesce, ShutdownHow};

use super::{Restarts, again, of_second_boot};
use crate::{
    Cause, Lost,
    access::rungs,
    boot::{Entered, Machine, SetClock, and_of_agent, finish_setup},
    get_in::{await_boot, get_in},
    guest::{Observe, Views},
    plan::Plan,
    running::{QemuGuest, TAIL},
    session::{
        Session,
        agent::{AgentSession, of_session},
    },
    share,
    watch::control,
};

/// How long a kernel may take to be loaded, and a service manager to take its order; the agent gives up before.
const ASKING: Duration = Duration::from_secs(150);

impl QemuGuest {
    /// Brings what was written to the shares to the host, has the guest let go of them, and has it end.
    pub(super) async fn let_go(&mut self, restart: &Restart, observe: Observe<'_>) -> Result<(), Lost> {
        let how = match restart.how {
            Down::Kexec { loaded } => ShutdownHow::Kexec { loaded },
            _ => ShutdownHow::SoftReboot,
        };
        self.settle(observe).await?;
        let plan = self.plan_of_restarts()?;
        let (shares, host) = (plan.sources(), plan.host.clone());
        let limits = self.machine.limits;
        let quiesce = Quiesce {
            unmount: vec![share::CONTROL_PATH.into()],
            overlay: !shares.is_empty(),
            shares,
            sync: true,
            end_holders: false,
        };
        self.machine.watch.ports.let_go();
        let Self { machine, session, .. } = &mut *self;
        let agent = agent_of(session)?;
        let asked = machine
            .attend(Phase::Command, observe, async |_, _, _| {
                let quiesced = tokio::time::timeout(limits.sync(), agent.quiesce(quiesce)).await;
                // What is held by somebody is detached, and goes with who holds it.
                quiesced
                    .map_err(|_| late("unmount its shares", limits.sync()))?
                    .map_err(|e| of_session(e, Phase::Command))?;
                let asked = tokio::time::timeout(ASKING, agent.shutdown(how)).await;
                asked.map_err(|_| late("begin to go down", ASKING))?.map_err(|e| of_session(e, Phase::Command))
            })
            .await;
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                observe(control(&restart.to_string(), &why, true));
                return Err(Lost::from(Cause::NotRestarted(format!("{restart}: {why}"))).lasting());
            }
            Err(lost) => return Err(self.explain(lost, Phase::Command).await),
        }
        self.machine.served.end().await;
        self.machine.fill_again().await?;
        // A copy of a template has not needed it.
        self.plan_of_restarts()?.put_agent_again().map_err(|e| {
            Cause::host_file("put the agent where the guest finds it", &e, "the run's directory must be writable")
        })?;
        self.machine.served.begin_again(&host).map_err(no_line)?;
        Ok(())
    }

    /// Waits for what comes in its place, and mounts the shares there.
    pub(super) async fn begin_again(&mut self, restart: &Restart, observe: Observe<'_>) -> Result<(), Lost> {
        observe(EventKind::Phase { phase: Phase::Boot });
        let plan = self.plan_of_restarts()?.clone();
        let begun = match restart.how {
            Down::SoftReboot => self.await_programs(&plan, observe).await,
            _ => self.await_kernel(&plan, observe).await,
        };
        if let Err(lost) = begun {
            let lost = self.explain(lost, Phase::Boot).await;
            let tail = if lost.tail.is_empty() { self.machine.console.tail(TAIL) } else { lost.tail.clone() };
            return Err(of_second_boot(and_of_agent(lost, &tail)).with_tail(tail));
        }
        observe(EventKind::Phase { phase: Phase::Command });
        Ok(())
    }

    /// All programs but the agent begin anew.
    async fn await_programs(&mut self, plan: &Plan, observe: Observe<'_>) -> Result<(), Lost> {
        let Self { machine, session, .. } = &mut *self;
        let limits = machine.limits;
        let mut patience = limits.boot(machine.qemu.cpu_clock());
        let agent = agent_of(session)?;
        machine
            .attend(Phase::Boot, observe, async |_, console, tell| {
                await_boot(agent, (console, &mut patience), &limits, tell).await
            })
            .await?;
        // It is the same kernel, which knows who it is, and what time.
        set_up(machine, session, plan, (None, SetClock::No), limits.setup(&patience), observe).await
    }

    /// Another kernel comes, and another agent with it.
    async fn await_kernel(&mut self, plan: &Plan, observe: Observe<'_>) -> Result<(), Lost> {
        let identity = self.identity.as_ref().map(|identity| of_same_card(identity, plan)).transpose()?;
        let Self { machine, session, .. } = &mut *self;
        let limits = machine.limits;
        let mut patience = limits.boot(machine.qemu.cpu_clock());
        agent_of(session)?.leave().await;
        machine.watch.begin_again();
        let ports = machine.ports().map_err(no_line)?;
        let by_itself = rungs::INITRD.agent.map(|agent| (&rungs::INITRD, agent));
        let entered = machine
            .attend(Phase::Boot, observe, async |qemu, console, tell| {
                let mut came = false;
                get_in(plan, ports, (qemu, console), &mut patience, &limits, by_itself, (tell, &mut came)).await
            })
            .await?;
        let Entered::Agent { session: new, .. } = entered else {
            let seen = "the kernel that was started by kexec let nobody in but a shell on the console";
            return Err(Lost::crash(CrashKind::BootFailed, seen, Phase::Boot));
        };
        *session = new;
        set_up(machine, session, plan, (identity, SetClock::Yes), limits.setup(&patience), observe).await
    }

    /// Mounts the shares again in the same machine, whose guest has let go of them.
    pub(super) async fn mount_again(&mut self, plan: &Plan, observe: Observe<'_>) -> Result<(), Lost> {
        self.machine.served.end().await;
        self.machine.fill_again().await?;
        self.machine.served.begin_again(&plan.host).map_err(no_line)?;
        let Self { machine, session, .. } = &mut *self;
        let limit = machine.limits.setup_of_copy();
        match set_up(machine, session, plan, (None, SetClock::No), limit, observe).await {
            Ok(()) => Ok(()),
            Err(lost) => Err(self.explain(lost, Phase::Session).await),
        }
    }

    pub(super) fn view_of_restarts(&self) -> Option<Views> {
        self.restarts.as_ref().and_then(|restarts| restarts.view.clone())
    }

    pub(super) fn plan_of_restarts(&self) -> Result<&Plan, Lost> {
        let nobody = || Cause::Defect("a machine is to begin again that nobody knows the plan of".to_owned());
        Ok(self.restarts.as_ref().map(Restarts::plan).ok_or_else(nobody)?)
    }
}

/// Mounts the shares once more.
async fn set_up(
    machine: &mut Machine,
    session: &mut Box<dyn Session>,
    plan: &Plan,
    (identity, clock): (Option<Identity>, SetClock),
    limit: Duration,
    observe: Observe<'_>,
) -> Result<(), Lost> {
    let limits = machine.limits;
    let (content, unpacking) = machine.content();
    let agent = agent_of(session)?;
    let carried = machine
        .attend(Phase::Session, observe, async |_, _, tell| {
            finish_setup(agent, (plan, identity, content), clock, &limits, limit + unpacking, tell).await
        })
        .await?;
    machine.shared(plan, &**session, carried, observe);
    Ok(())
}

/// What a copy of a template is told again by another kernel in the same machine: its card has the template's address.
fn of_same_card(identity: &Identity, plan: &Plan) -> Result<Identity, Lost> {
    Ok(Identity { old_mac: identity.old_mac, ..again(identity, plan.root_is_in_memory())? })
}

pub(super) fn agent_of(session: &mut Box<dyn Session>) -> Result<&mut AgentSession, Lost> {
    let nobody = || Cause::Defect("a guest without an agent is to begin again".to_owned());
    Ok(session.agent().ok_or_else(nobody)?)
}

pub(super) fn late(what: &str, limit: Duration) -> Lost {
    Lost::timeout(Phase::Command, format!("the guest did not {what} within {}", crate::for_people(limit)))
}

fn no_line(error: std::io::Error) -> Cause {
    Cause::host_file("take the ports of the guest again", &error, "there may be too many open files")
}
