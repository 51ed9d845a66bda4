//! A guest that tests have, until its end is told.

use std::path::PathBuf;

use belljar_machine::{
    Lost,
    guest::{Ending, Guest},
    tree,
};
use belljar_model::{EventKind, test_run as events};

use super::clocks::ClockGuard;
use crate::{attempt, cancel::Cancel, event_writer::EventWriter};

/// A running guest.
///
/// What is to be true of all that a test has (that it has come to rest, that it is still there) is asked here, not of the guest within.
pub(crate) struct LeasedGuest {
    pub(crate) guest: Box<dyn Guest>,
    pub(crate) instance: u64,
    /// Its directory in the run's.
    pub(crate) dir: PathBuf,
    /// How many tries it has seen.
    pub(crate) tries: u32,
    /// What of it goes when it has ended, by the names in its directory.
    pub(super) scratch: &'static [&'static str],
    pub(super) log: EventWriter,
    pub(super) clock: ClockGuard,
}

impl LeasedGuest {
    /// Tells that the guest was lost before any test was in it; dropping it kills what is left of it.
    pub(crate) fn lost(self, lost: &Lost) {
        tell_end(&self.log, self.instance, Some(lost));
    }

    /// As [`Guest::warm_up`].
    pub(super) async fn warm_up(&mut self, observe: &mut dyn FnMut(EventKind)) -> Result<(), Lost> {
        self.guest.warm_up(observe).await
    }

    /// As [`Guest::check`].
    pub(super) async fn check(&mut self, observe: &mut dyn FnMut(EventKind)) -> Result<(), Lost> {
        self.guest.check(observe).await
    }

    /// As [`Guest::keep_processes`].
    pub(crate) async fn keep_processes(&mut self, observe: &mut dyn FnMut(EventKind)) -> Result<(), Lost> {
        self.guest.keep_processes(observe).await
    }

    /// As [`Guest::renew`].
    pub(crate) async fn renew(&mut self, observe: &mut dyn FnMut(EventKind)) -> Result<Option<String>, Lost> {
        self.guest.renew(observe).await
    }

    /// As [`Guest::settle`].
    pub(crate) async fn settle(&mut self, observe: &mut dyn FnMut(EventKind)) -> Result<(), Lost> {
        self.guest.settle(observe).await
    }

    /// Ends the guest.
    ///
    /// # Errors
    /// As the guest's own [`close`](Guest::close).
    pub(crate) async fn close(
        self,
        how: Ending,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<(), Lost> {
        self.end(how, None, cancel, observe).await
    }

    /// Ends a guest that is of no use any more. If it died, that is what is told of its end.
    pub(crate) async fn give_up(self, lost: &Lost, cancel: &mut Cancel, observe: &mut dyn FnMut(EventKind)) {
        let died = lost.cause.crash_kind().map(|_| lost);
        // Its end adds nothing to what is known.
        drop(self.end(Ending::Hurry, died, cancel, observe).await);
    }

    async fn end(
        self,
        how: Ending,
        died: Option<&Lost>,
        cancel: &mut Cancel,
        observe: &mut dyn FnMut(EventKind),
    ) -> Result<(), Lost> {
        let closed = attempt::close(self.guest, how, cancel, observe).await;
        drop(self.clock);
        for name in self.scratch {
            drop(tree::remove(&self.dir.join(name)));
        }
        tell_end(&self.log, self.instance, died.or(closed.as_ref().err()));
        closed
    }
}

/// Tells the end of a guest, and what went wrong with it.
pub(super) fn tell_end(log: &EventWriter, instance: u64, lost: Option<&Lost>) {
    let message = lost.map(|lost| lost.cause.to_string());
    let message = message.map(|m| events::keep_start(&m, events::MAX_MESSAGE).to_owned());
    log.emit(EventKind::GuestEnded(events::GuestEnded { instance, message, peak_memory: None }));
}
