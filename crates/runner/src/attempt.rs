//! The steps of an attempt, the same for `belljar run` and `belljar test`: the plan is made, a guest leased, the command run, the guest
//! closed. Each ends early where the run is to end.

use belljar_guest_spec::GuestSpec;
use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Ending, Guest, Io},
    host::HostContext,
    lease as machines,
    plan::{self, Plan},
    spec::ShareSpec,
};
use belljar_model::{EventKind, Exit, Phase};
use tokio::time::Instant;

use crate::{
    cancel::Cancel,
    exec::{Limit, exec},
};

/// Makes the plan of a guest: looks at what it is made of, and writes what it boots from.
///
/// # Errors
/// If there can be no such guest on this host, or the run is to end.
pub(crate) async fn prepare(
    guest: GuestSpec,
    share: ShareSpec,
    host: HostContext,
    cancel: &mut Cancel,
) -> Result<Plan, Lost> {
    let preparing = tokio::task::spawn_blocking(move || plan::prepare(&guest, &share, host));
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

/// Gives a guest in which commands can run. What the plan chose is told first.
///
/// # Errors
/// If it is lost on the way, or the run is to end.
pub(crate) async fn lease(
    wanted: machines::LeaseRequest<'_>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Guest, Lost> {
    for choice in wanted.plan.choices() {
        observe(choice.clone());
    }
    tokio::select! {
        biased;
        why = cancel.wanted() => Err(why.lost(Phase::Boot)),
        leased = machines::lease(wanted, observe) => leased,
    }
}

/// Runs the command that the attempt is for, and tells of its begin and its end. What runs beside it (a set-up script, a question of
/// Belljar's own) goes through [`exec`] alone.
///
/// # Errors
/// A [`Lost`] for everything that is not the command's own end.
pub(crate) async fn command(
    guest: &mut Guest,
    command: GuestCommand,
    io: Io<'_>,
    limit: Limit,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Exit, Lost> {
    observe(EventKind::Phase { phase: Phase::Command });
    observe(EventKind::CommandStarted { pid: None });
    let started = Instant::now();
    let exit = exec(guest, command, io, limit, cancel, observe).await?;
    observe(EventKind::CommandEnded { exit, millis: millis(started) });
    Ok(exit)
}

/// Ends the guest.
///
/// # Errors
/// As [`Guest::close`]; and if the run is to end at once.
pub(crate) async fn close(
    guest: Guest,
    how: Ending,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(), Lost> {
    tokio::select! {
        biased;
        why = cancel.urgent() => Err(why.lost(Phase::Close)),
        closed = guest.close(how, observe) => closed,
    }
}

/// Milliseconds since then, for events.
pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
