//! How a run is asked to end early.

use tokio::sync::watch;

/// How urgently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    None,
    Gently(i32),
    Now(i32),
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
        self.0.send_modify(|wish| {
            *wish = match *wish {
                Wish::None => Wish::Gently(number),
                Wish::Gently(_) | Wish::Now(_) => Wish::Now(number),
            }
        });
    }
}

impl Cancel {
    /// Resolves with the signal's number once an end is wanted; never if nobody can ask any more.
    pub async fn wanted(&mut self) -> i32 {
        match self.0.wait_for(|wish| *wish != Wish::None).await.map(|wish| *wish) {
            Ok(Wish::Gently(number) | Wish::Now(number)) => number,
            Ok(Wish::None) | Err(_) => std::future::pending().await,
        }
    }

    /// Resolves once an end at once is wanted.
    pub async fn urgent(&mut self) -> i32 {
        match self.0.wait_for(|wish| matches!(wish, Wish::Now(_))).await.map(|wish| *wish) {
            Ok(Wish::Now(number)) => number,
            Ok(_) | Err(_) => std::future::pending().await,
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
        assert_eq!(cancel.wanted().await, 2);
        let urgent = tokio::select! { biased; n = other.urgent() => Some(n), () = std::future::ready(()) => None };
        assert_eq!(urgent, None);
        canceller.signal(15);
        assert_eq!(other.urgent().await, 15);
    }
}
