//! One command in a guest, within its limit, unless the run is to end.

use std::time::Duration;

use belljar_machine::{
    Lost,
    command::GuestCommand,
    for_people,
    guest::{Guest, Io},
};
use belljar_model::{EventKind, Exit, Phase, Verdict};

use crate::cancel::Cancel;

/// Lines of the console that are shown where a command was given up.
const TAIL: usize = 15;

/// How long a command may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// This long; none is for ever.
    pub(crate) after: Option<Duration>,
    /// What the user knows it by.
    pub(crate) name: &'static str,
}

/// Runs `command` to its end. What it leaves running when it is given up is killed.
///
/// # Errors
/// A [`Lost`] for everything that is not the command's own end.
pub(crate) async fn exec(
    guest: &mut Guest,
    command: GuestCommand,
    io: Io<'_>,
    limit: Limit,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Exit, Lost> {
    let ended = {
        let running = guest.exec(command, io, observe);
        let limited = async {
            match limit.after {
                Some(after) => tokio::time::timeout(after, running).await.map_err(|_| after),
                None => Ok(running.await),
            }
        };
        tokio::select! {
            biased;
            why = cancel.wanted() => Err(why.lost(Phase::Command)),
            ended = limited => match ended {
                Ok(ended) => ended,
                Err(after) => Err(Lost {
                    verdict: Verdict::Timeout(Phase::Command),
                    message: Some(format!(
                        "the command was given {} ({}) and had not ended",
                        for_people(after),
                        limit.name
                    )),
                    tail: Vec::new(),
                    lasting: false,
                }),
            },
        }
    };
    let mut lost = match ended {
        Ok(exit) => return Ok(exit),
        Err(lost) => lost,
    };
    if matches!(lost.verdict, Verdict::Timeout(_)) {
        if let Some(slept) = guest.suspended() {
            let said = lost.message.unwrap_or_default();
            lost.message =
                Some(format!("{said}; the guest suspended itself {} ago and has not woken", for_people(slept)));
        }
        // What the guest was at is what a person will ask first.
        lost.tail = guest.console_tail(TAIL);
    }
    if !matches!(lost.verdict, Verdict::Crash(_) | Verdict::Fail(_)) {
        tokio::select! {
            biased;
            _ = cancel.urgent() => {}
            () = guest.kill_command(observe) => {}
        }
    }
    Err(lost)
}
