//! Which machines come up: one that never does is not tried again and again.

use std::{cell::RefCell, sync::Arc};

use belljar_machine::{Cause, Lost, guest::Origin};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cancel::Cancel;

/// A guest that never came up so often is not tried again in this run.
const HOPELESS: u32 = 3;

/// How often each of a plan's machines came up.
pub(crate) struct BootRecord(Vec<RefCell<Boots>>);

/// How often a machine came up.
#[derive(Debug)]
struct Boots {
    worked: bool,
    /// The last one was made fast.
    quick: bool,
    failed: u32,
    /// Another try would end the same way.
    lasting: bool,
    /// Nothing is wrong with it but that this host cannot have it.
    skipped: bool,
    last: String,
    /// A permit for each try that is left while it has not come up; closed when it has, or none is left.
    left: Arc<Semaphore>,
}

impl Default for Boots {
    fn default() -> Self {
        let left = Arc::new(Semaphore::new(HOPELESS as usize));
        Self { worked: false, quick: false, failed: 0, lasting: false, skipped: false, last: String::new(), left }
    }
}

/// The right to boot a machine that has not come up yet; given back when dropped.
pub(crate) struct BootPermit(Option<OwnedSemaphorePermit>);

impl BootRecord {
    /// Of so many machines, of which nothing is known.
    pub(crate) fn new(machines: usize) -> Self {
        Self((0..machines).map(|_| RefCell::default()).collect())
    }

    /// Whether the last guest of this machine was made fast.
    pub(crate) fn is_quick(&self, machine: usize) -> bool {
        self.0.get(machine).is_some_and(|boots| boots.borrow().quick)
    }

    /// Waits for a permit to boot a guest that has not come up yet in this run: there are as many as it may be tried, so that one that
    /// never comes up is not tried by all tests at once. Whoever has one is done with it when the guest is up or lost, for which there
    /// are limits.
    pub(crate) async fn permit(&self, machine: usize, cancel: &mut Cancel) -> BootPermit {
        let Some(left) = self.0.get(machine).map(|boots| Arc::clone(&boots.borrow().left)) else {
            return BootPermit(None);
        };
        tokio::select! {
            biased;
            // Whoever is cancelled finds out by itself.
            _ = cancel.wanted() => BootPermit(None),
            permit = left.acquire_owned() => BootPermit(permit.ok()),
        }
    }

    /// Why this machine is not to be tried again, if it is not.
    pub(crate) fn hopeless(&self, machine: usize) -> Option<Cause> {
        let boots = self.0.get(machine)?.borrow();
        if boots.worked || !(boots.lasting || boots.failed >= HOPELESS) {
            return None;
        }
        Some(if boots.skipped {
            // Those that were tried are told so, too.
            Cause::Skipped(boots.last.clone())
        } else if boots.lasting {
            Cause::NotTried(format!("this guest was not tried again, for it would not come up: {}", boots.last))
        } else {
            Cause::NotTried(format!(
                "this guest was started {} times in this run and never came up, so it was not tried again; the last time: {}",
                boots.failed, boots.last
            ))
        })
    }

    /// Notes that the machine came up, or why it did not.
    pub(crate) fn note(&self, machine: usize, came: Result<Origin, &Lost>, permit: BootPermit) {
        let Some(boots) = self.0.get(machine) else { return };
        let mut boots = boots.borrow_mut();
        let why = match came {
            Ok(origin) => {
                boots.worked = true;
                boots.left.close();
                boots.quick = origin.is_quick();
                return;
            }
            Err(lost) if matches!(lost.cause, Cause::Interrupted { .. }) => return,
            Err(lost) => lost.cause.to_string(),
        };
        boots.failed += 1;
        boots.lasting |= came.as_ref().is_err_and(|lost| lost.lasting);
        boots.skipped |= came.is_err_and(|lost| lost.lasting && matches!(lost.cause, Cause::Skipped(_)));
        boots.last = why.lines().next().unwrap_or_default().to_owned();
        // That was one of its tries, and nobody has it after this one.
        if let Some(permit) = permit.0 {
            permit.forget();
        }
        if boots.failed >= HOPELESS || boots.lasting {
            boots.left.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_cannot_have_is_skipped_by_those_that_come_later_too() {
        let boots = BootRecord::new(2);
        let lasting = |cause| Lost::from(cause).lasting();
        boots.note(0, Err(&lasting(Cause::Skipped("no groups".into()))), BootPermit(None));
        boots.note(1, Err(&lasting(Cause::Description("no image".into()))), BootPermit(None));
        assert!(matches!(boots.hopeless(0), Some(Cause::Skipped(why)) if why == "no groups"));
        assert!(matches!(boots.hopeless(1), Some(Cause::NotTried(why)) if why.ends_with("no image")));
    }
}
