//! Getting into a guest that boots, by the plan's ways in, until something in it answers.

use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{Announce, BOOT_REST, BootSign};

use crate::{
    Cause, Lost,
    access::{
        self, AccessError, AccessEvent, AccessOptions, Act, Shell,
        rungs::{self, Rung},
    },
    boot::{Entered, Ports, Tell},
    console::{Console, ConsoleView, ExpectError, Overdue, Patience},
    enter,
    limits::Limits,
    plan::Plan,
    qemu::process::Qemu,
    session::agent::{AgentSession, Liveness, PortKind, of_session},
    ssh,
};

/// How many seconds what has the agent may take to be there in a guest whose SSH server answers: its driver may not be loaded yet.
const SSH_SECONDS: u32 = 20;

fn agent(session: AgentSession, announce: &Announce, port: PortKind, tell: Tell<'_>) -> Entered {
    tell(EventKind::Choice {
        what: "session".into(),
        chosen: match port {
            PortKind::Virtio => "agent on the virtio port".into(),
            PortKind::Serial => "agent on the second serial port".into(),
            PortKind::Socket => "agent on a socket".into(),
        },
        why: format!("it announced itself there first, from Linux {} on {}", announce.kernel, announce.machine),
    });
    Entered::Agent { session: Box::new(session), port }
}

/// Patience that every byte on the console renews.
async fn run_out(patience: &mut Patience, view: &ConsoleView) -> Overdue {
    let mut last = view.last_line();
    loop {
        tokio::select! {
            overdue = patience.run_out() => return overdue,
            changed = last.changed() => match changed {
                Ok(()) => patience.renew(),
                Err(_) => return patience.run_out().await,
            }
        }
    }
}

/// Gets in by the plan's rungs: the agent comes by itself, or there is a shell on the serial line, and from there the agent if it can run.
/// `came`: one of them was there, whatever came of it. `by_itself` is by which of them the agent comes of its own accord, if by one.
pub(crate) async fn get_in(
    plan: &Plan,
    ports: Ports,
    (qemu, console): (&Qemu, &mut Console),
    patience: &mut Patience,
    limits: &Limits,
    mut by_itself: Option<(&Rung, rungs::Agent)>,
    (tell, came): (Tell<'_>, &mut bool),
) -> Result<Entered, Lost> {
    let mut connecting = std::pin::pin!(AgentSession::connect(ports));
    let progress = ssh::Progress::default();
    let with_progress = |lost: Lost| match progress.said() {
        Some(said) => lost.and_advice(format!("over SSH: {said}")),
        None => lost,
    };
    let mut over_ssh = std::pin::pin!(over_ssh(plan, qemu, limits, &progress));
    let first = tokio::select! {
        biased;
        connected = &mut connecting, if by_itself.is_some() => Err(connected),
        failed = &mut over_ssh, if plan.ssh.is_some() => return Err(failed),
        shell = shell_on_console(plan, console, patience, tell) => match shell {
            // The last way in goes on.
            Err(lost) if plan.ssh.is_some() && matches!(lost.cause, Cause::Access(_)) => {
                let view = console.view();
                tokio::select! {
                    connected = &mut connecting => Err(connected),
                    failed = &mut over_ssh => return Err(failed),
                    overdue = run_out(patience, &view) => {
                        return Err(with_progress(lost.and_advice(format!("nobody got in over SSH either: {overdue}"))));
                    }
                }
            }
            // Nobody can log in, and the agent may come all the same.
            Err(lost) if by_itself.is_some() && plan.login.is_none() && matches!(lost.cause, Cause::Access(_)) => {
                let left = patience.remaining();
                // The other way needs time, too.
                let left = if plan.way_back.is_there() { left / 2 } else { left };
                let limit = limits.other_rung().min(left);
                let connected = tokio::time::timeout(limit, &mut connecting).await;
                Err(connected.map_err(|_| lost)?)
            }
            shell => Ok(shell.map_err(with_progress)?),
        },
    };
    if let (Err(_), Some(of_ssh)) = (&first, rungs::SSH.agent)
        && progress.has_asked()
    {
        by_itself = Some((&rungs::SSH, of_ssh));
    }
    *came = !matches!(first, Err(Err(_)));
    let mut shell = match first {
        Ok(shell) => shell,
        Err(connected) => {
            progress.close(qemu.qmp()).await;
            let (session, announce, port) = connected.map_err(|e| of_session(e, Phase::Boot))?;
            let Some((rung, of_it)) = by_itself else { return Ok(agent(session, &announce, port, tell)) };
            return agent_by_itself(rung, of_it, (session, &announce, port), (console, patience), limits, tell).await;
        }
    };
    progress.close(qemu.qmp()).await;
    tell(EventKind::Phase { phase: Phase::Session });
    let program = (&plan.config.program, plan.platform());
    match enter::start_agent(&mut shell, plan.agent, program, plan.control_kind(), limits, tell).await? {
        enter::AgentStart::Started => {
            // The console is the kernel's again: its faults have to be seen.
            shell.restore_messages(&mut limits.line()).await.map_err(|e| enter::of_shell(&e, Phase::Session))?;
            match tokio::time::timeout(limits.agent_start(), connecting).await {
                Ok(connected) => {
                    let (session, announce, port) = connected.map_err(|e| of_session(e, Phase::Session))?;
                    expect_system(plan, &announce)?;
                    Ok(agent(session, &announce, port, tell))
                }
                Err(_) => Err(Lost::timeout(
                    Phase::Session,
                    format!(
                        "the agent started in the guest, but did not announce itself on its port within {}",
                        crate::for_people(limits.agent_start())
                    ),
                )),
            }
        }
        enter::AgentStart::CannotRun { why, port_taken } => {
            // One that came by itself in this moment has the port.
            if port_taken
                && by_itself.is_some()
                && let Ok(connected) = tokio::time::timeout(limits.agent_start(), connecting).await
            {
                let (session, announce, port) = connected.map_err(|e| of_session(e, Phase::Session))?;
                shell.restore_messages(&mut limits.line()).await.map_err(|e| enter::of_shell(&e, Phase::Session))?;
                expect_system(plan, &announce)?;
                return Ok(agent(session, &announce, port, tell));
            }
            tell(EventKind::Choice { what: "session".into(), chosen: "sh on the console".into(), why });
            Ok(Entered::Shell(Box::new(shell)))
        }
    }
}

/// Has the agent started over SSH, if that is a way in; ends only with what goes wrong.
async fn over_ssh(plan: &Plan, qemu: &Qemu, limits: &Limits, progress: &ssh::Progress) -> Lost {
    let Some(ssh) = &plan.ssh else { return std::future::pending().await };
    let script = enter::fetch(plan.config.program.source(), "serve", SSH_SECONDS);
    match ssh::enter(ssh, qemu.qmp(), &script, (&plan.host, &plan.dir), limits, progress).await {
        Ok(()) => {
            tokio::time::sleep(limits.agent_start()).await;
            let limit = crate::for_people(limits.agent_start());
            Lost::timeout(
                Phase::Session,
                format!("the agent was started over SSH, but did not announce itself within {limit}"),
            )
        }
        Err(cause) => Lost::from(cause),
    }
}

/// Refuses the shell of an initramfs where the system is known to be on the guest's disk: it would be taken for the system.
fn expect_system(plan: &Plan, announce: &Announce) -> Result<(), Lost> {
    if !(plan.root_is_on_disk && announce.in_initramfs) {
        return Ok(());
    }
    let seen = "the guest did not get to the system on its disk: a shell answered, but it is one of its initramfs";
    let advice = "the console's lines before it say what was missing, often the driver of the disk (--boot-bus) or the right root= on the kernel's line; \
                  a kernel and an initramfs that are to be all of the guest are given with --kernel and --initrd";
    Err(Lost::crash(CrashKind::BootFailed, seen.to_owned(), Phase::Boot).with_advice(advice))
}

/// Takes the agent that came of its own accord, and waits for the end of the boot where it came before that.
async fn agent_by_itself(
    rung: &Rung,
    of_it: rungs::Agent,
    (mut session, announce, port): (AgentSession, &Announce, PortKind),
    (console, patience): (&Console, &mut Patience),
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<Entered, Lost> {
    let why = format!("it {}", of_it.which);
    tell(EventKind::Choice { what: "access".into(), chosen: rung.name.into(), why });
    if of_it.before_boot {
        session.set_liveness(Liveness { silent_after: limits.silence() });
        await_boot(&mut session, (console, patience), limits, tell).await?;
    }
    Ok(agent(session, announce, port, tell))
}

/// Waits for the end of the boot, by what the agent sees of it.
pub(crate) async fn await_boot(
    session: &mut AgentSession,
    (console, patience): (&Console, &mut Patience),
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<(), Lost> {
    let view = console.view();
    let sign = tokio::select! {
        sign = session.await_boot(limits.whole_boot()) => sign.map_err(|e| of_session(e, Phase::Boot))?,
        overdue = run_out(patience, &view) => {
            let said = format!("the agent is there, but the guest's boot did not come to its end: {overdue}");
            return Err(Lost::timeout(Phase::Boot, said));
        }
    };
    let seen = match sign {
        BootSign::Login(program) => format!("{program} waits for somebody to log in"),
        BootSign::Rest => {
            format!("no program waits for a login, but none was started for {} s either", BOOT_REST.as_secs())
        }
        BootSign::Emergency(program) => {
            let seen = format!("the guest's init gave up, and started {program} for a person to mend things with");
            let advice = "its console shows why; the console log is in the guest's directory";
            return Err(Lost::crash(CrashKind::BootFailed, seen, Phase::Boot).with_advice(advice));
        }
        BootSign::Limit => {
            let said = "the agent is there, but the guest's boot did not come to its end".to_owned();
            return Err(Lost::timeout(Phase::Boot, said));
        }
    };
    tell(EventKind::Choice { what: "booted".into(), chosen: "yes".into(), why: seen });
    Ok(())
}

/// Climbs to a shell on the serial line; where no rung leads there, waits as long as there is patience.
async fn shell_on_console(
    plan: &Plan,
    console: &mut Console,
    patience: &mut Patience,
    tell: Tell<'_>,
) -> Result<Shell, Lost> {
    let only_agent = plan.agent_by_itself().filter(|_| plan.rungs.iter().all(|rung| rung.rules.is_empty()));
    let (rungs, credentials) = (plan.rungs.clone(), plan.login.clone());
    let options = AccessOptions { rungs, credentials, ..AccessOptions::default() };
    let mut booted = false;
    access::climb(console, &options, patience, &mut |event| {
        // Something that can be typed at ends the boot.
        if matches!(event, AccessEvent::Did { act: Act::TypeUser | Act::Probe, .. })
            && !std::mem::replace(&mut booted, true)
        {
            tell(EventKind::Phase { phase: Phase::Access });
        }
        if let Some(kind) = enter::event_of(&event) {
            tell(kind);
        }
    })
    .await
    .map_err(|error| match (only_agent, error) {
        (Some((_, of_it)), AccessError::Expect(ExpectError::Overdue { overdue, tail, .. })) => {
            let what = format!("the agent, which {}, did not announce itself on its port", of_it.awaited);
            Lost::timeout(Phase::Boot, format!("{what}: {overdue}")).with_tail(tail)
        }
        (Some((_, of_it)), error @ AccessError::NoShell { .. }) => {
            let what = format!("the agent, which {}, did not announce itself on its port", of_it.awaited);
            Lost::timeout(Phase::Boot, format!("{what}, and {error}"))
        }
        (_, error) => enter::lost_of_access(error, plan.platform()),
    })
}
