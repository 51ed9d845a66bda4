//! How a run is asked to end early.

use std::time::Duration;

use belljar_machine::{Cause, Lost, for_people};
use belljar_model::Phase;
use tokio::sync::watch;

/// How long a guest that is being ended in order is still waited for when a person or a CI server wants the end.
const HEED: Duration = Duration::from_secs(5);

/// Why a run is to end early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A person or a CI server sent this signal.
    Signal(i32),
    /// The run as a whole was given this much time.
    OutOfTime(Duration),
}

impl Why {
    /// What it makes of something that was going on, in this phase.
    #[must_use]
    pub fn lost(self, phase: Phase) -> Lost {
        match self {
            Self::Signal(number) => Cause::Interrupted { signal: number }.into(),
            Self::OutOfTime(limit) => {
                Lost::timeout(phase, format!("the run as a whole was given {} (global-timeout)", for_people(limit)))
            }
        }
    }
}

/// How urgently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    None,
    Gently(Why),
    Now(Why),
}

/// Held by whoever hears the signals.
#[derive(Debug)]
pub struct Canceller(watch::Sender<Wish>);

/// Held by whoever has to end.
#[derive(Clone, Debug)]
pub struct Cancel(watch::Receiver<Wish>);

/// A connected pair.
#[must_use]
pub fn channel() -> (Canceller, Cancel) {
    let (sender, receiver) = watch::channel(Wish::None);
    (Canceller(sender), Cancel(receiver))
}

impl Canceller {
    /// The first call asks for an orderly end, every later one for an end at once.
    pub fn signal(&self, number: i32) {
        let why = Why::Signal(number);
        self.0.send_modify(|wish| {
            *wish = match *wish {
                Wish::None | Wish::Gently(Why::OutOfTime(_)) => Wish::Gently(why),
                Wish::Gently(Why::Signal(_)) | Wish::Now(_) => Wish::Now(why),
            }
        });
    }

    /// Asks for an orderly end, unless one is wanted already.
    pub fn out_of_time(&self, limit: Duration) {
        self.0.send_if_modified(|wish| {
            let first = *wish == Wish::None;
            if first {
                *wish = Wish::Gently(Why::OutOfTime(limit));
            }
            first
        });
    }
}

impl Cancel {
    /// Resolves once an end is wanted; never if nobody can ask any more.
    pub async fn wanted(&mut self) -> Why {
        match self.0.wait_for(|wish| *wish != Wish::None).await.map(|wish| *wish) {
            Ok(Wish::Gently(why) | Wish::Now(why)) => why,
            Ok(Wish::None) | Err(_) => std::future::pending().await,
        }
    }

    /// Resolves once an end at once is wanted.
    pub async fn urgent(&mut self) -> Why {
        match self.0.wait_for(|wish| matches!(wish, Wish::Now(_))).await.map(|wish| *wish) {
            Ok(Wish::Now(why)) => why,
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }

    /// Resolves once an end at once is wanted, or an orderly one has been by a signal for five seconds: what is waited for with nothing else to be done
    /// about it, such as a share's server that stands still, must not make that person ask twice.
    pub async fn overdue(&mut self) -> Why {
        let signalled = |wish: &Wish| matches!(wish, Wish::Gently(Why::Signal(_)) | Wish::Now(_));
        match self.0.wait_for(signalled).await.map(|wish| *wish) {
            Ok(Wish::Now(why)) => why,
            Ok(Wish::Gently(why)) => tokio::select! {
                biased;
                why = self.urgent() => why,
                () = tokio::time::sleep(HEED) => why,
            },
            Ok(Wish::None) | Err(_) => std::future::pending().await,
        }
    }

    /// Whether an end is wanted by now, and why.
    #[must_use]
    pub fn is_wanted(&self) -> Option<Why> {
        match *self.0.borrow() {
            Wish::None => None,
            Wish::Gently(why) | Wish::Now(why) => Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn once_is_gentle_twice_is_urgent() {
        let (canceller, mut cancel) = channel();
        let mut other = cancel.clone();
        canceller.signal(2);
        assert_eq!(cancel.wanted().await, Why::Signal(2));
        let urgent = tokio::select! { biased; n = other.urgent() => Some(n), () = std::future::ready(()) => None };
        assert_eq!(urgent, None);
        canceller.signal(15);
        assert_eq!(other.urgent().await, Why::Signal(15));
    }

    #[tokio::test(start_paused = true)]
    async fn one_signal_is_heeded_after_a_while_and_the_clock_is_not() {
        let (canceller, cancel) = channel();
        let soon = |mut cancel: Cancel| async move { tokio::time::timeout(HEED * 2, cancel.overdue()).await };
        assert!(soon(cancel.clone()).await.is_err(), "nobody asked");
        canceller.out_of_time(HEED);
        assert!(soon(cancel.clone()).await.is_err(), "the clock asked");
        canceller.signal(2);
        let begun = tokio::time::Instant::now();
        assert_eq!(soon(cancel.clone()).await, Ok(Why::Signal(2)));
        assert_eq!(begun.elapsed(), HEED);
        canceller.signal(15);
        let begun = tokio::time::Instant::now();
        assert_eq!(soon(cancel).await, Ok(Why::Signal(15)));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_clock_asks_once_and_a_person_after_it_is_not_urgent_yet() {
        let (canceller, cancel) = channel();
        let limit = Duration::from_secs(5);
        canceller.out_of_time(limit);
        assert_eq!(cancel.is_wanted(), Some(Why::OutOfTime(limit)));
        canceller.signal(2);
        canceller.out_of_time(limit);
        assert_eq!(cancel.is_wanted(), Some(Why::Signal(2)));
        let mut urgent = cancel.clone();
        let urgent = tokio::select! { biased; n = urgent.urgent() => Some(n), () = std::future::ready(()) => None };
        assert_eq!(urgent, None);
    }
}
