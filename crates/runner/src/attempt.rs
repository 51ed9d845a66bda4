//! The steps of an attempt, the same for `belljar run` and `belljar test`: a guest is prepared and leased, the command run, the guest
//! closed. Each ends early where the run is to end.

use belljar_machine::{
    Lost,
    backend::{Backends, LeaseRequest, PrepareRequest, PreparedGuest},
    command::GuestCommand,
    guest::{Ending, Guest, Io},
};
use belljar_model::{EventKind, Exit, Phase, Verdict, event::FindingOutcome};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    cancel::Cancel,
    exec::{Limit, exec},
    orders::{Given, OrdersFor},
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

/// How a command has ended.
#[derive(Clone, Debug)]
pub(crate) struct CommandEnd {
    /// By its own word.
    pub(crate) exit: Exit,
    /// What guards have seen that fails it, if they have.
    pub(crate) tripped: Option<Box<Tripped>>,
}

/// What fails a command that would pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tripped {
    guard: String,
    first: String,
    more: u64,
}

impl Tripped {
    /// Takes note of a finding that fails a command.
    fn note(tripped: &mut Option<Self>, event: &EventKind) {
        let EventKind::Finding { guard, text, outcome: FindingOutcome::Fail, .. } = event else { return };
        match tripped {
            Some(tripped) => tripped.more += 1,
            None => *tripped = Some(Self { guard: guard.clone(), first: text.clone(), more: 0 }),
        }
    }

    /// The verdict on a command that has this one without its guards, with what there is to say.
    pub(crate) fn verdict(
        tripped: Option<&Self>,
        verdict: Verdict,
        message: Option<String>,
    ) -> (Verdict, Option<String>) {
        match (verdict, tripped) {
            (Verdict::Pass, Some(tripped)) => (Verdict::Fail(Exit::Code(0)), Some(tripped.to_string())),
            (verdict, _) => (verdict, message),
        }
    }
}

impl std::fmt::Display for Tripped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { guard, first, more } = self;
        write!(f, "it succeeded, but the guard {guard} fails it: {first}")?;
        match more {
            0 => {}
            1 => f.write_str("; one more finding is in the event log")?,
            more => write!(f, "; {more} more findings are in the event log")?,
        }
        write!(
            f,
            ". If that may be: guards = {{ {guard} = \"warn\" }}, or allow = [...] with a reason (--guard {guard}=warn)"
        )
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
    orders: OrdersFor<'_>,
    limit: Limit,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<CommandEnd, Lost> {
    observe(EventKind::Phase { phase: Phase::Command });
    observe(EventKind::CommandStarted { pid: None });
    let started = Instant::now();
    let handle = guest.orders();
    let _entered = orders.door.zip(handle.clone()).map(|((door, name), handle)| door.enter(name, handle));
    let given = Given::new(orders.schedule);
    let mut tripped = None;
    let exit = {
        let (tell, marks) = mpsc::unbounded_channel();
        let mut noting = |event: EventKind| {
            Tripped::note(&mut tripped, &event);
            if let EventKind::Mark { text } = &event {
                // It is there as long as this is.
                drop(tell.send(text.clone()));
            }
            observe(event);
        };
        tokio::select! {
            biased;
            exit = exec(guest, command, io, limit, cancel, &mut noting) => exit?,
            never = given.carry_out(handle, marks) => match never {},
        }
    };
    observe(EventKind::CommandEnded { exit, millis: millis(started) });
    let exit = given.judge(exit, observe)?;
    Ok(CommandEnd { exit, tripped: tripped.map(Box::new) })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: FindingOutcome, text: &str) -> EventKind {
        EventKind::Finding { guard: "coredump".into(), text: text.into(), outcome, reason: None }
    }

    #[test]
    fn only_what_fails_fails_and_only_what_would_pass() {
        let mut tripped = None;
        for outcome in [FindingOutcome::Warn, FindingOutcome::Allowed] {
            Tripped::note(&mut tripped, &finding(outcome, "x"));
        }
        assert_eq!(Tripped::verdict(tripped.as_ref(), Verdict::Pass, None), (Verdict::Pass, None));
        for text in ["a was killed", "b", "c"] {
            Tripped::note(&mut tripped, &finding(FindingOutcome::Fail, text));
        }
        let (verdict, message) = Tripped::verdict(tripped.as_ref(), Verdict::Pass, None);
        assert_eq!(verdict, Verdict::Fail(Exit::Code(0)));
        let message = message.unwrap();
        assert!(message.contains("the guard coredump fails it: a was killed; 2 more"), "{message}");
        let own = || (Verdict::Fail(Exit::Code(3)), Some("own".to_owned()));
        assert_eq!(Tripped::verdict(tripped.as_ref(), own().0, own().1), own());
        let skip = || Verdict::Skip("why".into());
        assert_eq!(Tripped::verdict(tripped.as_ref(), skip(), None), (skip(), None));
    }
}
