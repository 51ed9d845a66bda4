//! What carries out: cells of units, their repetitions and tries, and the verdict on each.
//!
//! ```text
//! cell ── unit ── attempt ──┬── machines, pool   a guest
//!                           ├── gather           what the test left
//!                           └── judge            the verdict
//! ```
//!
//! It decides on nothing beyond a unit: what begins, and what an end means for the run, the dispatcher says.

mod attempt;
mod collect;
mod files;
mod gather;
mod judge;
mod junit;
pub(crate) mod listing;
mod requires;
mod unit;

use belljar_machine::guest::Ending;
use belljar_model::test_run::UnitEnded;
use belljar_suite::plan::Plan;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{attempt::Attempts, unit::Units};
use crate::machines::LeasedGuest;

/// What a cell says to the dispatcher.
pub(crate) enum Message {
    /// A unit is next: may it begin?
    Next(oneshot::Sender<bool>),
    /// A unit has ended.
    Ended(UnitEnded),
}

/// Carries out the cells of a plan.
pub(crate) struct Executor {
    units: Units,
    dispatcher: mpsc::UnboundedSender<Message>,
}

impl Executor {
    /// One that tells the holder of the other end how units end.
    pub(crate) fn new(units: Units, dispatcher: mpsc::UnboundedSender<Message>) -> Self {
        Self { units, dispatcher }
    }

    /// Runs the units of a cell, one after another, as far as the dispatcher lets them.
    pub(crate) async fn run_cell(&self, plan: &Plan, cell: usize, slot: u32) {
        let shared = plan.cells[cell].shared;
        let mut leased: Option<LeasedGuest> = None;
        for unit in &plan.units[plan.cells[cell].units.clone()] {
            if !self.may_begin().await {
                break;
            }
            if let Some(ended) = self.units.run(unit, slot, shared.then_some(&mut leased)).await {
                // Whoever does not listen any more has ended the run.
                drop(self.dispatcher.send(Message::Ended(ended)));
            }
        }
        if let Some(leased) = leased {
            let mut cancel = self.units.attempts.cancel.clone();
            // Each test's result was secured when it ended; what the guest does last is told with its end.
            let mut nobody = |_| ();
            drop(leased.close(Ending::Kill, &mut cancel, &mut nobody).await);
        }
    }

    async fn may_begin(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        drop(self.dispatcher.send(Message::Next(reply)));
        answer.await.unwrap_or(false)
    }
}
