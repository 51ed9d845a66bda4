//! One command in a guest, within its limit, unless the run is to end.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use belljar_machine::{
    Cause, Lost,
    command::GuestCommand,
    for_people,
    guest::{Guest, Io},
    session::agent::{LATE_BYTES, LATE_MOST, LATE_QUIET, OutputEnd, OutputSink, SinkFuture},
};
use belljar_model::{EventKind, Exit, Phase};
use tokio::time::Instant;

use crate::cancel::Cancel;

/// Lines of what the guest said last that are shown where a command was given up.
const TAIL: usize = 15;

/// What is said where somebody interrupts the keeping of what a guest's kernel has left.
const MEMORY_IS_LOST: &str = "the guest's memory is not kept: that was interrupted";

/// How long the agent may listen to what an ended command left behind, and say so.
const LINGER: Duration = LATE_MOST.saturating_add(Duration::from_secs(60));

/// Passes output on, and hears how it ends.
struct Listener<'a> {
    sink: &'a mut dyn OutputSink,
    /// The command has ended; its output has not.
    lingers: Arc<AtomicBool>,
    left: Option<OutputEnd>,
    away: Arc<Mutex<Away>>,
}

/// For how long the guest has been down to come up again: that time is no command's.
#[derive(Debug, Default)]
struct Away {
    before: Duration,
    since: Option<Instant>,
}

impl Away {
    fn begin(&mut self) {
        self.since = Some(Instant::now());
    }

    fn end(&mut self) {
        self.before = self.so_far();
        self.since = None;
    }

    fn so_far(&self) -> Duration {
        self.before + self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// How often a limit is looked at again while the guest is down.
const AGAIN: Duration = Duration::from_millis(200);

/// Waits for something that may take so long; the time in which the guest was down does not count.
async fn within<T>(after: Duration, away: &Mutex<Away>, running: impl Future<Output = T>) -> Option<T> {
    let begun = Instant::now();
    let mut running = std::pin::pin!(running);
    loop {
        let (away, is_down) = {
            let away = away.lock().unwrap_or_else(PoisonError::into_inner);
            (away.so_far(), away.since.is_some())
        };
        let left = (after + away).saturating_sub(begun.elapsed());
        if left.is_zero() {
            return None;
        }
        let wait = if is_down { left.max(AGAIN) } else { left };
        if let Ok(done) = tokio::time::timeout(wait, &mut running).await {
            return Some(done);
        }
    }
}

impl OutputSink for Listener<'_> {
    fn started(&mut self, pid: u32) {
        self.sink.started(pid);
    }

    fn lingers(&mut self) {
        self.lingers.store(true, Ordering::Relaxed);
        self.sink.lingers();
    }

    fn left_open(&mut self, how: OutputEnd) {
        self.left = Some(how);
        self.sink.left_open(how);
    }

    fn restarts(&mut self, is_up: bool) {
        self.lingers.store(false, Ordering::Relaxed);
        self.left = None;
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if is_up {
            away.end();
        } else {
            away.begin();
        }
        drop(away);
        self.sink.restarts(is_up);
    }

    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.sink.stdout(bytes)
    }

    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.sink.stderr(bytes)
    }
}

/// What a person is told of processes that were left behind with the output open.
fn left_open(how: OutputEnd) -> String {
    let seen = match how {
        OutputEnd::Whole => return String::new(),
        OutputEnd::LeftOpen => format!("said nothing for {}", for_people(LATE_QUIET)),
        OutputEnd::LeftBusy => format!("said nothing for {}, but were at work all the time", for_people(LATE_MOST)),
        OutputEnd::Cut => {
            format!(
                "were still writing after {} or {} MiB, so that it is cut off",
                for_people(LATE_MOST),
                LATE_BYTES >> 20
            )
        }
    };
    format!(
        "the command has ended, and processes that it left behind with its output open {seen}; what they write from now on is lost \
         (start what is to live on with >/dev/null 2>&1)"
    )
}

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
    guest: &mut dyn Guest,
    command: GuestCommand,
    io: Io<'_>,
    limit: Limit,
    cancel: &mut Cancel,
    observe: &mut dyn FnMut(EventKind),
) -> Result<Exit, Lost> {
    let Io { stdin, sink, control } = io;
    let lingers = Arc::new(AtomicBool::new(false));
    let away = Arc::new(Mutex::new(Away::default()));
    let mut listener = Listener { sink, lingers: lingers.clone(), left: None, away: away.clone() };
    let ended = {
        let stdin = stdin.map(|s| s as _);
        let running = guest.exec(command, Io { stdin, sink: &mut listener, control }, observe);
        let mut running = std::pin::pin!(running);
        let limited = async {
            let Some(after) = limit.after else { return Ok(running.await) };
            if let Some(ended) = within(after, &away, &mut running).await {
                return Ok(ended);
            }
            if !lingers.load(Ordering::Relaxed) {
                return Err(after);
            }
            // It has ended in time; what it left behind has limits of its own.
            Ok(tokio::time::timeout(LINGER, running).await.unwrap_or_else(|_| {
                let limit = for_people(LINGER);
                let why = format!("the command had ended, but the guest did not say how within another {limit}");
                Err(Lost::timeout(Phase::Command, why))
            }))
        };
        tokio::select! {
            biased;
            why = cancel.wanted() => Err(why.lost(Phase::Command)),
            ended = limited => match ended {
                Ok(ended) => ended,
                Err(after) => {
                    let (given, name) = (for_people(after), limit.name);
                    Err(Lost::timeout(Phase::Command, format!("the command was given {given} ({name}) and had not ended")))
                }
            },
        }
    };
    if let Some(how) = listener.left {
        observe(EventKind::Warning { message: left_open(how) });
    }
    let mut lost = match ended {
        Ok(exit) => return Ok(exit),
        Err(lost) => lost,
    };
    if let Cause::Timeout { suspended, .. } = &mut lost.cause {
        *suspended = guest.suspended();
        // What the guest was at is what a person will ask first.
        lost.tail = guest.last_lines(TAIL);
        // The command may have ended long ago.
        lost = guest.silenced().unwrap_or(lost);
    }
    if lost.cause.crash_kind().is_some() {
        // What it has come to is known, however long this takes.
        let interrupted = lost.clone().and_advice(MEMORY_IS_LOST.to_owned());
        lost = tokio::select! {
            biased;
            kept = guest.keep_memory(lost) => kept,
            _ = cancel.wanted() => interrupted,
        };
    }
    if lost.cause.crash_kind().is_none() && !lost.cause.is_programs_own() {
        tokio::select! {
            biased;
            _ = cancel.urgent() => {}
            () = guest.kill_command(observe) => {}
        }
    }
    Err(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_the_guest_is_down_is_no_part_of_a_limit() {
        let away = Mutex::new(Away::default());
        let lock = || away.lock().unwrap();
        let running = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            for _ in 0..2 {
                lock().begin();
                tokio::time::sleep(Duration::from_secs(100)).await;
                lock().end();
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        let begun = Instant::now();
        assert_eq!(within(Duration::from_secs(7), &away, running).await, Some(()));
        assert_eq!(begun.elapsed(), Duration::from_secs(206));

        // What it takes itself is.
        let away = Mutex::new(Away::default());
        let running = async {
            away.lock().unwrap().begin();
            tokio::time::sleep(Duration::from_secs(50)).await;
            away.lock().unwrap().end();
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        assert_eq!(within(Duration::from_secs(7), &away, running).await, None);
        assert!((57..58).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
