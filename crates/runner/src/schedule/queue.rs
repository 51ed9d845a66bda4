//! What runs next: the order of the plan, held back by places, memory, processors, groups and whoever wants to be alone.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// How often others may go before a job that is too large for what is free just now.
const PASSES: u32 = 16;

/// Something to run, and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Names it.
    pub(crate) cell: usize,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Processors.
    pub(crate) cpus: u32,
    /// The group it counts against, by its place in [`Budget::groups`].
    pub(crate) group: Option<usize>,
    /// Nothing else may run at the same time.
    pub(crate) exclusive: bool,
}

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// Jobs at the same time.
    pub(crate) jobs: u32,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Processors.
    pub(crate) cpus: u32,
    /// Jobs of each group at the same time.
    pub(crate) groups: Vec<u32>,
}

/// Jobs that wait, and what those that run have taken.
#[derive(Debug)]
pub(crate) struct Queue {
    budget: Budget,
    waiting: VecDeque<(Job, u32)>,
    running: HashMap<usize, (Job, u32)>,
    free_slots: BTreeSet<u32>,
}

impl Queue {
    /// All jobs, in the order in which they should start.
    pub(crate) fn new(budget: Budget, jobs: impl IntoIterator<Item = Job>) -> Self {
        let free_slots = (0..budget.jobs.max(1)).collect();
        Self { budget, waiting: jobs.into_iter().map(|j| (j, 0)).collect(), running: HashMap::new(), free_slots }
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The cells that are next in order, as many as asked for; what wants to be alone ends the list.
    pub(crate) fn upcoming(&self, count: usize) -> impl Iterator<Item = usize> {
        self.waiting.iter().take(count).take_while(|(job, _)| !job.exclusive).map(|(job, _)| job.cell)
    }

    /// Memory that no job has taken.
    pub(crate) fn free_memory(&self) -> u64 {
        let taken = self.running.values().fold(0_u64, |sum, (job, _)| sum.saturating_add(job.memory));
        self.budget.memory.saturating_sub(taken)
    }

    /// Starts the next job that may start now: its cell, and its place among those that run.
    ///
    /// A job larger than all there is starts when nothing else runs: it was found possible before, or will say why not.
    pub(crate) fn start(&mut self) -> Option<(usize, u32)> {
        if self.running.values().any(|(job, _)| job.exclusive) {
            return None;
        }
        let slot = *self.free_slots.first()?;
        let mut at = None;
        for (index, (job, passed)) in self.waiting.iter().enumerate() {
            if job.exclusive {
                if self.running.is_empty() {
                    at = Some(index);
                    break;
                }
                if index == 0 {
                    // Its turn has come: the others run out, and nobody goes before it.
                    break;
                }
                continue;
            }
            if job.group.is_some_and(|g| self.of_group(g) >= self.budget.groups.get(g).copied().unwrap_or(1)) {
                continue;
            }
            if self.fits(job) || self.running.is_empty() {
                at = Some(index);
                break;
            }
            if *passed >= PASSES {
                break;
            }
        }
        let at = at?;
        for (job, passed) in self.waiting.iter_mut().take(at) {
            // Only what waits for room is passed by; the others wait for something else.
            *passed += u32::from(!job.exclusive);
        }
        let (job, _) = self.waiting.remove(at)?;
        self.free_slots.remove(&slot);
        let cell = job.cell;
        self.running.insert(cell, (job, slot));
        Some((cell, slot))
    }

    /// Gives back what the job had taken.
    pub(crate) fn end(&mut self, cell: usize) {
        if let Some((_, slot)) = self.running.remove(&cell) {
            self.free_slots.insert(slot);
        }
    }

    fn of_group(&self, group: usize) -> u32 {
        let count = self.running.values().filter(|(job, _)| job.group == Some(group)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn fits(&self, job: &Job) -> bool {
        let (memory, cpus) = self.running.values().fold((0_u64, 0_u32), |(memory, cpus), (job, _)| {
            (memory.saturating_add(job.memory), cpus.saturating_add(job.cpus))
        });
        memory.saturating_add(job.memory) <= self.budget.memory && cpus.saturating_add(job.cpus) <= self.budget.cpus
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(cell: usize) -> Job {
        Job { cell, memory: 1, cpus: 1, group: None, exclusive: false }
    }

    fn budget() -> Budget {
        Budget { jobs: 4, memory: 10, cpus: 10, groups: vec![1] }
    }

    fn started(queue: &mut Queue) -> Vec<usize> {
        std::iter::from_fn(|| queue.start()).map(|(cell, _)| cell).collect()
    }

    #[test]
    fn in_order_as_far_as_there_is_room() {
        let mut queue = Queue::new(budget(), (0..6).map(job));
        assert_eq!(started(&mut queue), [0, 1, 2, 3], "as many as there are places");
        queue.end(1);
        assert_eq!(queue.start(), Some((4, 1)), "in the place that was given back");
    }

    #[test]
    fn a_group_holds_back_its_own_alone() {
        let of_group = |cell| Job { group: Some(0), ..job(cell) };
        let mut queue = Queue::new(budget(), [of_group(0), of_group(1), job(2)]);
        assert_eq!(started(&mut queue), [0, 2]);
        queue.end(0);
        assert_eq!(started(&mut queue), [1]);
    }

    #[test]
    fn who_wants_to_be_alone_is_and_is_not_passed_for_ever() {
        let alone = Job { exclusive: true, ..job(1) };
        let mut queue = Queue::new(budget(), [job(0), alone, job(2), job(3)]);
        assert_eq!(started(&mut queue), [0], "its turn has come: nobody goes before it");
        queue.end(0);
        assert_eq!(started(&mut queue), [1]);
        queue.end(1);
        assert_eq!(started(&mut queue), [2, 3]);
    }

    #[test]
    fn a_large_one_is_passed_only_so_often() {
        let large = Job { memory: 10, ..job(1000) };
        let jobs = std::iter::once(job(0)).chain([large]).chain((1..100).map(job));
        let mut queue = Queue::new(Budget { jobs: 2, ..budget() }, jobs);
        let mut order = started(&mut queue);
        let mut running: VecDeque<usize> = order.iter().copied().collect();
        while let Some(cell) = running.pop_front() {
            queue.end(cell);
            let next = started(&mut queue);
            running.extend(&next);
            order.extend(next);
        }
        assert_eq!(order.len(), 101, "all ran");
        let at = order.iter().position(|c| *c == 1000).unwrap();
        assert!(at <= PASSES as usize + 3, "it ran as number {at}");
    }

    proptest! {
        #[test]
        fn limits_hold_and_everything_runs(
            jobs in prop::collection::vec((1_u64..15, 1_u32..15, prop::option::of(0_usize..2), any::<bool>()), 0..40),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 400),
        ) {
            let budget = Budget { jobs: 3, memory: 10, cpus: 10, groups: vec![1, 2] };
            let jobs: Vec<Job> = jobs.into_iter().enumerate()
                .map(|(cell, (memory, cpus, group, exclusive))| Job { cell, memory, cpus, group, exclusive }).collect();
            let mut queue = Queue::new(budget, jobs.clone());
            let mut running: Vec<usize> = Vec::new();
            let mut ran = 0;
            for end in ends {
                while let Some((cell, _)) = queue.start() {
                    running.push(cell);
                    ran += 1;
                    let of = |f: &dyn Fn(&Job) -> u64| running.iter().map(|c| f(&jobs[*c])).sum::<u64>();
                    prop_assert!(running.len() <= 3);
                    prop_assert!(running.len() == 1 || of(&|j| j.memory) <= 10);
                    prop_assert!(running.len() == 1 || of(&|j| u64::from(j.cpus)) <= 10);
                    prop_assert!(of(&|j| u64::from(j.group == Some(0))) <= 1);
                    prop_assert!(running.len() == 1 || !running.iter().any(|c| jobs[*c].exclusive));
                }
                if running.is_empty() {
                    break;
                }
                let cell = running.swap_remove(end.index(running.len()));
                queue.end(cell);
            }
            prop_assert_eq!(ran, jobs.len());
            prop_assert!(queue.is_empty() && queue.running() == 0);
        }
    }
}
