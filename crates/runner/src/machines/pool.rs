//! Guests made ahead: a test that starts finds its guest up, with the shares mounted.
//!
//! Only guests that are made fast, such as clones, are made ahead (a boot that runs beside the tests would slow them down), only as many as tests that wait for
//! one, and only within the memory that is left: one for each test that runs, and more where tests end sooner than a clone is made, as far
//! as there are processors ([`Pace`]). One that a test waits for already is not warmed up first. What is not needed any more is killed.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use belljar_machine::{Cause, Lost};
use belljar_model::{EventKind, test_run as events};
use belljar_suite::plan::{Plan, Unit};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use super::{Kind, LeasedGuest, Machines};
use crate::{cancel::Cancel, event_writer::EventWriter};

/// A guest that is being made, or waits.
pub(crate) struct Warm {
    pub(crate) instance: u64,
    slot: u32,
    guest: JoinHandle<Result<LeasedGuest, Lost>>,
    told: Rc<RefCell<Vec<EventKind>>>,
    /// A test has it, or is about to.
    wanted: Rc<Cell<bool>>,
}

/// How long it takes to make a guest, and how long tests are in theirs: the last ones count most.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    made: Cell<Option<Duration>>,
    used: Cell<Option<Duration>>,
}

impl Pace {
    fn note(mean: &Cell<Option<Duration>>, new: Duration) {
        mean.set(Some(mean.get().map_or(new, |mean| (mean * 3 + new) / 4)));
    }

    /// A test was in its guest for so long.
    pub(crate) fn note_used(&self, time: Duration) {
        Self::note(&self.used, time);
    }

    /// How many guests to have ahead of `running` tests: as many as end while one guest is made, but no more than there are processors to
    /// make them, and never fewer than run.
    pub(crate) fn ahead(&self, running: usize, processors: usize) -> usize {
        let (Some(made), Some(used)) = (self.made.get(), self.used.get()) else { return running };
        let each = made.as_millis().div_ceil(used.as_millis().max(1));
        let ends = usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(running);
        running.max(ends.min(processors))
    }
}

/// The guests made ahead.
pub(crate) struct Pool {
    machines: Rc<Machines>,
    log: EventWriter,
    cancel: Cancel,
    warm: RefCell<BTreeMap<Kind, VecDeque<Warm>>>,
    /// Those that a unit will have, by its id.
    reserved: RefCell<HashMap<String, Warm>>,
    /// Told when one was taken.
    taken: Notify,
    pub(crate) pace: Rc<Pace>,
}

impl Pool {
    /// An empty one, which `machines` will fill.
    pub(crate) fn new(machines: Rc<Machines>, log: EventWriter, cancel: Cancel) -> Self {
        Self {
            machines,
            log,
            cancel,
            warm: RefCell::default(),
            reserved: RefCell::default(),
            taken: Notify::new(),
            pace: Rc::default(),
        }
    }

    /// Keeps the one that was begun first for a unit that is about to run.
    pub(crate) fn reserve_for(&self, unit: &Unit) {
        if let Some(warm) = self.first(&self.machines.kind_for(unit)) {
            self.reserved.borrow_mut().insert(unit.id.clone(), warm);
        }
    }

    /// Takes the one that is kept for this unit, or else the one that was begun first.
    pub(crate) fn take(&self, unit: &Unit) -> Option<Warm> {
        let reserved = self.reserved.borrow_mut().remove(&unit.id);
        reserved.or_else(|| {
            let warm = self.first(&self.machines.kind_for(unit))?;
            self.taken.notify_one();
            Some(warm)
        })
    }

    fn first(&self, kind: &Kind) -> Option<Warm> {
        let warm = self.warm.borrow_mut().get_mut(kind)?.pop_front()?;
        warm.wanted.set(true);
        Some(warm)
    }

    /// Resolves when one was taken, and there may be room for another.
    pub(crate) async fn changed(&self) {
        self.taken.notified().await;
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.warm.borrow().values().map(VecDeque::len).sum()
    }

    /// Makes what the units that wait will need, as far as `room` for further guests reaches. `first_slot` is the first place
    /// that no test has.
    pub(crate) fn fill(&self, plan: &Rc<Plan>, waiting: &[usize], room: usize, first_slot: u32) {
        let mut wanted: BTreeMap<Kind, (usize, usize)> = BTreeMap::new();
        for unit in waiting {
            let kind = self.machines.kind_for(&plan.units[*unit]);
            wanted.entry(kind).or_insert((0, *unit)).0 += 1;
        }
        let mut room = room;
        for (kind, (count, unit)) in wanted {
            let there = self.warm.borrow().get(&kind).map_or(0, VecDeque::len);
            for _ in there..count {
                if room == 0 || !self.machines.is_quick(kind.machine) {
                    break;
                }
                room -= 1;
                let warm = self.begin(plan, unit, first_slot);
                self.warm.borrow_mut().entry(kind.clone()).or_default().push_back(warm);
            }
        }
    }

    fn begin(&self, plan: &Rc<Plan>, unit: usize, first_slot: u32) -> Warm {
        let taken: Vec<u32> =
            self.warm.borrow().values().flatten().chain(self.reserved.borrow().values()).map(|w| w.slot).collect();
        let slot = (first_slot..).find(|s| !taken.contains(s)).unwrap_or(first_slot);
        let instance = self.machines.next_instance();
        let told = Rc::new(RefCell::new(Vec::new()));
        let (machines, plan, telling) = (Rc::clone(&self.machines), Rc::clone(plan), Rc::clone(&told));
        let mut cancel = self.cancel.clone();
        let wanted = Rc::new(Cell::new(false));
        let (is_wanted, pace) = (Rc::clone(&wanted), Rc::clone(&self.pace));
        let guest = tokio::task::spawn_local(async move {
            let unit = &plan.units[unit];
            let mut observe = |kind| telling.borrow_mut().push(kind);
            let since = Instant::now();
            let mut leased = machines.set_up(unit, instance, slot, &mut cancel, &mut observe).await?;
            Pace::note(&pace.made, since.elapsed());
            if is_wanted.get() {
                // What warms it up would only keep the test waiting, which does the same.
                return Ok(leased);
            }
            match leased.warm_up(&mut observe).await {
                Ok(()) => Ok(leased),
                Err(lost) => {
                    leased.lost(&lost);
                    Err(lost)
                }
            }
        });
        Warm { instance, slot, guest, told, wanted }
    }

    /// Kills what nobody will take.
    pub(crate) async fn clear(&self) {
        let warm = std::mem::take(&mut *self.warm.borrow_mut());
        self.drop_all(warm.into_values().flatten()).await;
    }

    /// Kills what nobody took, at the end of the run.
    pub(crate) async fn close(&self) {
        self.clear().await;
        let reserved = std::mem::take(&mut *self.reserved.borrow_mut());
        self.drop_all(reserved.into_values()).await;
    }

    async fn drop_all(&self, warm: impl Iterator<Item = Warm>) {
        for warm in warm {
            warm.guest.abort();
            // A guest that did not come up has told its own end.
            if let Ok(Err(_)) = warm.guest.await {
                continue;
            }
            self.log.emit(EventKind::GuestEnded(events::GuestEnded {
                instance: warm.instance,
                message: Some("not needed any more".to_owned()),
                peak_memory: None,
            }));
        }
    }
}

/// Aborts a task that nobody waits for any more.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Warm {
    /// Waits until it is ready. What it had to say is said to `observe`.
    pub(crate) async fn ready(self, observe: &mut dyn FnMut(EventKind)) -> Result<LeasedGuest, Lost> {
        let abort = Abort(self.guest.abort_handle());
        let made = self.guest.await;
        drop(abort);
        for kind in self.told.borrow_mut().drain(..) {
            observe(kind);
        }
        let mut leased = match made {
            Ok(made) => made?,
            Err(panic) => {
                let what = format!("Belljar's own work on a guest broke off: {panic}");
                return Err(Cause::Defect(what).into());
            }
        };
        // It may have died while it waited, and its clock is as old as it.
        match leased.check(observe).await {
            Ok(()) => Ok(leased),
            Err(lost) => {
                leased.lost(&lost);
                Err(lost)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_ahead_as_end_while_one_is_made() {
        let pace = |made: u64, used: u64| Pace {
            made: Cell::new(Some(Duration::from_millis(made))),
            used: Cell::new(Some(Duration::from_millis(used))),
        };
        assert_eq!(Pace::default().ahead(3, 8), 3, "before anything is known");
        assert_eq!(pace(500, 2000).ahead(2, 8), 2, "long tests need one each");
        assert_eq!(pace(500, 100).ahead(1, 2), 2, "as far as there are processors");
        assert_eq!(pace(500, 100).ahead(1, 16), 5);
        assert_eq!(pace(500, 100).ahead(4, 2), 4, "never fewer than run");
        assert_eq!(pace(500, 0).ahead(1, 4), 4);
    }

    #[test]
    fn the_last_ones_count_most() {
        let pace = Pace::default();
        for millis in [1000, 1000, 200, 200, 200, 200, 200, 200, 200, 200] {
            pace.note_used(Duration::from_millis(millis));
        }
        let mean = pace.used.get().unwrap().as_millis();
        assert!((200..300).contains(&mean), "{mean}");
    }
}
