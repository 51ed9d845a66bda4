//! The steps of an attempt, the same for `belljar run` and `belljar test`: a guest is prepared and leased, the command run, the guest
//! closed. Each ends early where the run is to end.

use belljar_machine::{
    Lost,
    backend::{Backends, LeaseRequest, PrepareRequest, PreparedGuest},
    command::GuestCommand,
    guest::{Ending, Guest, Io},
};
use belljar_model::{EventKind, Exit, Phase};
use tokio::time::Instant;

use crate::{
    cancel::Cancel,
    exec::{Limit, exec},
};

/// Looks at what a guest is made of, and makes what it starts from.
///
/// # Errors
/// If there can be no such guest on this host, or the run is to end.
pub(crate) async fn prepare(
    backends: &Backends,
    request: PrepareRequest,
    cancel: &mut Cancel,
) -> Result<Box<dyn PreparedGuest>, Lost> {
    let backend = backends.of(&request.spec.source)?;
    tokio::select! {
        biased;
        why = cancel.wanted() => Err(why.lost(Phase::Prepare)),
        prepared = backend.prepare(request) => prepared,
    }
}

/// Gives a guest in which commands can run. What was chosen when it was prepared is told first.
///
/// # Errors
/// If it is lost on the way, or the run is to end.
pub(crate) async fn lease(
    prepared: &dyn PreparedGuest,
    request: LeaseRequest<'_>,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Box<dyn Guest>, Lost> {
    for choice in prepared.choices() {
        observe(choice.clone());
    }
    tokio::select! {
        biased;
        why = cancel.wanted() => Err(why.lost(Phase::Boot)),
        leased = prepared.lease(request, observe) => leased,
    }
}

/// Runs the command that the attempt is for, and tells of its begin and its end. What runs beside it (a set-up script, a question of
/// Belljar's own) goes through [`exec`] alone.
///
/// # Errors
/// A [`Lost`] for everything that is not the command's own end.
pub(crate) async fn command(
    guest: &mut dyn Guest,
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
/// As [`Guest::close`]; and if the run is to end at once, or has been to end for a while.
pub(crate) async fn close(
    guest: Box<dyn Guest>,
    how: Ending,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<(), Lost> {
    let hurry = how == Ending::Hurry;
    let wanted = async {
        // That end is a short one already, and what it still brings home is for whoever asked for it.
        if hurry { cancel.urgent().await } else { cancel.overdue().await }
    };
    tokio::select! {
        biased;
        why = wanted => Err(why.lost(Phase::Close)),
        closed = guest.close(how, observe) => closed,
    }
}

/// Milliseconds since then, for events.
pub(crate) fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
