//! Orders that a test's machine gets from outside while the test runs: those that its settings have, each when it is time.

use std::{cell::RefCell, collections::VecDeque, convert::Infallible};

use belljar_guest_spec::scheduled::{ScheduledOrder, When};
use belljar_machine::{Cause, Lost, orders::Orders};
use belljar_model::{EventKind, Exit};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::door::Door;

/// What is to happen while a command runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OrdersFor<'a> {
    /// When it is time.
    pub(crate) schedule: &'a [ScheduledOrder],
    /// Where people ask for more, and by what name they know the command.
    pub(crate) door: Option<(&'a Door, &'a str)>,
}

/// What became of the orders of one command.
#[derive(Debug)]
pub(crate) struct Given(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    /// Their time has not come.
    waiting: Vec<ScheduledOrder>,
    /// Their time has come.
    due: VecDeque<ScheduledOrder>,
    /// What could not be carried out, and why.
    refused: Vec<String>,
}

impl Given {
    pub(crate) fn new(schedule: &[ScheduledOrder]) -> Self {
        Self(RefCell::new(State { waiting: schedule.to_vec(), ..State::default() }))
    }

    /// Gives each order when it is time. `marks` are those that the command sets.
    pub(crate) async fn carry_out(&self, orders: Option<Orders>, marks: mpsc::UnboundedReceiver<String>) -> Infallible {
        let is_due = Notify::new();
        tokio::select! {
            never = self.look_at_the_time(marks, &is_due) => never,
            never = self.give_all(orders.as_ref(), &is_due) => never,
        }
    }

    async fn look_at_the_time(&self, mut marks: mpsc::UnboundedReceiver<String>, is_due: &Notify) -> Infallible {
        let begun = Instant::now();
        loop {
            let next = self.next();
            tokio::select! {
                biased;
                // They go on for as long as the command runs.
                Some(mark) = marks.recv() => self.becomes_due(|when| matches!(when, When::Mark(name) if *name == mark)),
                () = tokio::time::sleep_until(next.map_or(begun, |after| begun + after)), if next.is_some() => {
                    let so_far = begun.elapsed();
                    self.becomes_due(|when| matches!(when, When::After(after) if *after <= so_far));
                }
                else => std::future::pending().await,
            }
            is_due.notify_one();
        }
    }

    /// One after another, in the order of their times.
    async fn give_all(&self, orders: Option<&Orders>, is_due: &Notify) -> Infallible {
        loop {
            while !self.0.borrow().due.is_empty() {
                self.give_first(orders).await;
            }
            is_due.notified().await;
        }
    }

    /// The time of the next one.
    fn next(&self) -> Option<std::time::Duration> {
        let state = self.0.borrow();
        state
            .waiting
            .iter()
            .filter_map(|order| if let When::After(after) = order.when { Some(after) } else { None })
            .min()
    }

    fn becomes_due(&self, is_due: impl Fn(&When) -> bool) {
        let mut state = self.0.borrow_mut();
        let (mut due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.waiting).into_iter().partition(|order| is_due(&order.when));
        due.sort_by(|a, b| a.when.cmp(&b.when));
        state.waiting = waiting;
        state.due.extend(due);
    }

    /// Gives the first one that is due, and waits for what comes of it.
    async fn give_first(&self, orders: Option<&Orders>) {
        let Some(order) = self.0.borrow().due.front().cloned() else { return };
        let given = match orders {
            Some(orders) => orders.give(&order.order).await,
            None => Err("this guest is no machine".to_owned()),
        };
        let mut state = self.0.borrow_mut();
        state.due.pop_front();
        if let Err(why) = given {
            state.refused.push(format!("{order}: {why}"));
        }
    }

    /// What the command's end is worth. A pass without what was ordered is none.
    ///
    /// # Errors
    /// When an order was not carried out and the command passed.
    pub(crate) fn judge(&self, exit: Exit, observe: &mut dyn FnMut(EventKind)) -> Result<Exit, Lost> {
        let state = self.0.borrow();
        let late = state.due.iter().map(|order| format!("{order}: it was not done when the test ended"));
        let never = state.waiting.iter().map(|order| match &order.when {
            When::After(_) => format!("{order}: the test ended before"),
            When::Mark(_) => format!("{order}: the test did not set the mark"),
        });
        let mut all: Vec<String> = state.refused.iter().cloned().chain(late).chain(never).collect();
        let Some(first) = all.first().cloned() else { return Ok(exit) };
        let more = all.len() - 1;
        all.clear();
        let what = if more == 0 { first } else { format!("{first}; and {more} more") };
        if exit == Exit::Code(0) {
            return Err(Lost::from(Cause::OrderNotCarriedOut(what)).lasting());
        }
        observe(EventKind::Warning { message: format!("not all that was ordered for the test was done: {what}") });
        Ok(exit)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn schedule(all: &[&str]) -> Vec<ScheduledOrder> {
        all.iter().map(|text| ScheduledOrder::parse(text).unwrap()).collect()
    }

    /// Runs a schedule for ten seconds without a guest that could do anything, with a mark after three.
    async fn refused(all: &[&str]) -> Given {
        let given = Given::new(&schedule(all));
        let (tell, marks) = mpsc::unbounded_channel();
        let command = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            tell.send("ready".to_owned()).unwrap();
            tokio::time::sleep(Duration::from_secs(7)).await;
        };
        tokio::select! {
            () = command => {}
            never = given.carry_out(None, marks) => match never {},
        }
        given
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_given_when_it_is_time() {
        let given =
            refused(&["+20s nmi", "mark:ready link down", "+5s link up", "+1s unplug nic", "mark:other nmi"]).await;
        let state = given.0.borrow();
        let orders: Vec<_> = state.refused.iter().map(|why| why.split(": ").next().unwrap_or_default()).collect();
        // A mark's has a colon of its own.
        assert_eq!(orders, ["+1s unplug nic", "mark:ready link down", "+5s link up"]);
        let waiting: Vec<_> = state.waiting.iter().map(ToString::to_string).collect();
        assert_eq!(waiting, ["+20s nmi", "mark:other nmi"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_without_what_was_ordered_is_none() {
        let told = |given: &Given, exit| {
            let mut warned = Vec::new();
            let judged = given.judge(exit, &mut |kind| warned.push(kind));
            (judged.map_err(|lost| lost.cause.to_string()), warned.len())
        };
        let none = refused(&[]).await;
        assert_eq!(told(&none, Exit::Code(0)), (Ok(Exit::Code(0)), 0));
        let late = refused(&["+20s nmi"]).await;
        let (judged, _) = told(&late, Exit::Code(0));
        assert!(judged.unwrap_err().ends_with("+20s nmi: the test ended before"));
        assert_eq!(told(&late, Exit::Code(3)), (Ok(Exit::Code(3)), 1), "what the test says is more");
        let unmarked = refused(&["mark:x nmi", "+1s nmi"]).await;
        let (judged, _) = told(&unmarked, Exit::Code(0));
        let why = judged.unwrap_err();
        assert!(why.contains("+1s nmi: this guest is no machine; and 1 more"), "{why}");
    }
}
