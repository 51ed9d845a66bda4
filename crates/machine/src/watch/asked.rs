//! What programs in the guest ask for while a command runs.

use std::time::Duration;

use belljar_guest_spec::{
    Guards,
    machine_order::{Down, MachineOrder},
};
use belljar_model::EventKind;
use belljar_proto::message::{Leftovers, MAX_QUESTION, Outcome, Question};

use super::{Expectation, Watch, power::Power};
use crate::{
    balloon::GivenBack,
    console::sanitize::sanitize_line,
    desk::{Asker, Desk},
    guest::Observe,
    lost::{Cause, Lost},
    orders::HostOrder,
    session::{agent::Asks, console::AskSource},
};

/// Most marks of one command that are recorded.
pub(crate) const MOST_MARKS: usize = 1000;

/// How long what a command has ordered, without waiting for it, may take after its end.
const FINISHING: Duration = Duration::from_secs(10);

/// How often it is looked whether what goes on beside the others is done.
const AGAIN: Duration = Duration::from_millis(20);

/// How many marks the command has set.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    set: usize,
    cut: bool,
    /// Orders that were never carried out, for there were too many.
    lost: u64,
}

impl Watch {
    /// A command begins, with all marks before it. The machine may not be restarted for it for this reason, if for any. `guards` is what is to be
    /// looked for meanwhile, if anything is.
    pub(crate) fn begin_command(&mut self, refusal: Option<String>, guards: Option<&Guards>) {
        self.guarding.begin(guards);
        self.marks = Marks::default();
        self.desk.begin_command();
        self.power.begin(refusal);
        // By a command that somebody gave up waiting for.
        self.expected.take(Expectation::Restart);
    }

    /// Does what was asked for up to now, and answers.
    pub(crate) fn answer_asks(&mut self, observe: Observe<'_>) {
        if let Some(source) = self.ask_source() {
            let must_not_sleep = self.must_not_sleep();
            let machine = Asked { desk: &mut self.desk, power: &mut self.power, must_not_sleep };
            self.marks.answer(&source, Some(machine), observe);
        }
        while let Some(done) = self.desk.news() {
            observe(done);
        }
    }

    /// What programs in the guest ask by.
    fn ask_source(&self) -> Option<AskSource> {
        let by_agent = self.reports.clone().map(AskSource::Agent);
        by_agent.or_else(|| self.shell_asks.clone().map(AskSource::Shell))
    }

    /// Who asked for the machine to go down, by a question of this number, is told that it does, and what runs is ended. `disks_held`: lab disks answer no
    /// more.
    pub(crate) fn tell_of_end(&self, number: u32, disks_held: bool) {
        if let Some(source) = self.ask_source() {
            source.answer(number, Outcome::GoesDown);
        }
        if let Some(asks) = self.shell_asks.as_ref().filter(|_| self.reports.is_none()) {
            asks.go_down(disks_held);
        }
    }

    /// Does what somebody outside asks for, and answers.
    pub(super) fn take_order(&mut self, order: HostOrder) {
        let HostOrder { text, answer } = order;
        let asker = Asker::Outside { answer, reports: self.reports.clone() };
        match text.trim().split_once(char::is_whitespace) {
            Some(("disk", text)) => self.desk.take(asker, text.trim().to_owned()),
            _ => {
                let must_not_sleep = self.must_not_sleep();
                let mut machine = Asked { desk: &mut self.desk, power: &mut self.power, must_not_sleep };
                machine.machine(asker, text.trim());
            }
        }
    }

    /// Whether the guest has no agent, and its orders and results go over a share.
    fn must_not_sleep(&self) -> bool {
        self.reports.is_none() && self.shell_asks.as_ref().is_some_and(|asks| asks.must_not_sleep())
    }

    /// What the machine is told up to now is part of the guest, as the daemons of its set-up are.
    ///
    /// # Errors
    /// When a disk cannot be told.
    pub(crate) async fn keep_orders(&mut self) -> Result<(), Lost> {
        self.desk.all_done().await;
        self.desk.keep().await;
        self.desk.lab().keep().await.map_err(|why| Cause::ShareServer(why).into())
    }

    /// Ends what an earlier test has ordered, and tells of it; gives why the guest is of no more use, if something of that kind stays.
    ///
    /// # Errors
    /// When that cannot be done.
    pub(crate) async fn end_orders(&mut self, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        self.answer_asks(observe);
        self.desk.end_command();
        let lost = |why| Lost::from(Cause::ShareServer(why));
        // First, for what is under way may wait for a disk that hangs.
        let was = self.desk.lab().renew().await.map_err(lost)?;
        self.desk.all_done().await;
        let was = self.desk.lab().renew().await.map_err(lost)?.or(was);
        if let Some(was) = was {
            let message = format!("an earlier test left lab disks otherwise than they were, which was ended: {was}");
            observe(EventKind::Warning { message });
        }
        let changed = self.desk.changed().await;
        if let Some(what) = changed {
            return Ok(Some(format!("an earlier test left its machine otherwise than it was: {what}")));
        }
        if self.desk.plug_in().await.map_err(lost)? {
            let message = "an earlier test left the network card's cable plugged out; it was plugged in".to_owned();
            observe(EventKind::Warning { message });
        }
        match self.desk.give_back().await.map_err(lost)? {
            GivenBack::Nothing => {}
            GivenBack::All => {
                let message = "an earlier test left memory taken from the guest, which was given back".to_owned();
                observe(EventKind::Warning { message });
            }
            GivenBack::Lacking(bytes) => {
                return Ok(Some(format!(
                    "an earlier test left memory taken from its guest, which has not taken {bytes} bytes of it back"
                )));
            }
        }
        Ok(None)
    }

    /// Why the guest is of no more use, if that is so for what an earlier test has made of its lab disks: the next test's faults would be those of whatever
    /// uses one, or what uses one may not have survived the faults of the earlier one.
    pub(crate) fn disks_left(&self, found: &Leftovers) -> Option<String> {
        let lab = self.desk.lab();
        let used = lab.in_use(&found.disks).map(|used| format!("an earlier test has left lab disks in use: {used}"));
        let changed = || {
            let changed = lab.changed(&found.changed)?;
            Some(format!("an earlier test has left lab disks otherwise than they were: {changed}"))
        };
        let broken = || {
            let broken = lab.take_broken(&found.kept)?;
            Some(format!(
                "an earlier test made lab disks fail that were in use before it, which what uses them may not have survived: {broken}"
            ))
        };
        used.or_else(changed).or_else(broken)
    }

    /// The command has ended: what it has ordered is done, for a while at most, and what is not is told, and is not done any more.
    pub(crate) async fn finish_orders(&mut self, observe: Observe<'_>) {
        if self.desk.under_way() == 0 {
            return;
        }
        let desk = &self.desk;
        let finishing = async {
            desk.all_done().await;
            // Such as a device that the guest is asked to let go of, which holds up nothing else.
            while desk.under_way() > 0 {
                tokio::time::sleep(AGAIN).await;
            }
        };
        let is_done = tokio::time::timeout(FINISHING, finishing).await.is_ok();
        self.answer_asks(observe);
        if !is_done {
            let message = format!(
                "{} orders of the command were not done when it had ended and {} had passed, and are not done any more; who wants to know that one is \
                 done waits for its answer, as belljar-ctl does",
                self.desk.under_way(),
                crate::for_people(FINISHING)
            );
            observe(EventKind::Warning { message });
            self.desk.end_command();
        }
    }

    /// What the result of a command cannot be believed for: what it ordered was not done.
    pub(crate) fn lost_orders(&self) -> Option<Lost> {
        self.marks.lost_orders()
    }

    /// Whether the network card's cable is plugged out by order.
    pub(crate) fn is_cable_out(&self) -> bool {
        self.desk.is_cable_out()
    }

    /// What was done to the clock of the machine that this one takes the place of is done to this one's.
    pub(crate) fn inherit_clock(&mut self, before: &Self) {
        self.desk.inherit_clock(&before.desk);
    }

    /// Why what the machine is now would not come back with another that goes on from its state, if so.
    pub(crate) async fn not_kept(&self) -> Option<String> {
        self.desk.not_kept().await
    }

    /// From now on the guest may go down by itself, as it was announced.
    pub(crate) fn prepare(&mut self, observe: Observe<'_>) {
        let Some((asker, restart)) = self.power.prepare() else { return };
        if !self.expected.has(Expectation::Restart) {
            self.expected.announce(Expectation::Restart);
        }
        let text = restart.to_string();
        self.desk.record(control(&text, "it may go down by itself now", false)).into_iter().for_each(observe);
        asker.answer(Outcome::Done(String::new()));
    }

    /// What was announced is refused.
    pub(crate) fn withdraw(&mut self, why: &str, observe: Observe<'_>) {
        let Some((asker, restart)) = self.power.withdraw() else { return };
        let why = sanitize_line(why.as_bytes());
        self.desk.record(control(&restart.to_string(), &why, true)).into_iter().for_each(observe);
        asker.answer(Outcome::Refused(why));
    }
}

/// What of a machine may be asked for something.
pub(crate) struct Asked<'a> {
    desk: &'a mut Desk,
    power: &'a mut Power,
    must_not_sleep: bool,
}

impl Asked<'_> {
    /// Does something to the machine, or sees to it that it is done, and answers.
    fn machine(&mut self, asker: Asker, text: &str) {
        let outcome = match MachineOrder::parse(text) {
            Err(why) => Outcome::Refused(why),
            Ok(MachineOrder::Restart(restart)) => {
                let keeps = matches!(restart.how, Down::Snapshot(_) | Down::Return(_));
                let number = if let Asker::Guest { number, .. } = &asker { *number } else { 0 };
                match (self.power.want(number, restart), &asker) {
                    (Err(why), _) => Outcome::Refused(why),
                    // It is answered when the time has come to end what runs.
                    (Ok(()), Asker::Guest { .. }) => return,
                    (Ok(()), Asker::Outside { .. }) if keeps => Outcome::Done("the test is started again".to_owned()),
                    (Ok(()), Asker::Outside { .. }) => Outcome::GoesDown,
                }
            }
            Ok(MachineOrder::Prepare(restart)) => match self.power.may_announce() {
                Err(why) => Outcome::Refused(why),
                // It is answered when what was written is on the host.
                Ok(()) => return self.power.announce(asker, restart),
            },
            Ok(MachineOrder::Wakeup(_)) if self.must_not_sleep => Outcome::Refused(
                "there is no agent in this guest, and its orders, output and results go over a share (9p or virtiofs), which does not survive a suspend: \
                 it would wake, and the test would never end"
                    .to_owned(),
            ),
            Ok(order) => return self.desk.take_machine(asker, order, text),
        };
        asker.answer(outcome);
    }
}

/// That something happens to the machine.
pub(crate) fn control(order: &str, outcome: &str, refused: bool) -> EventKind {
    EventKind::Control {
        device: "machine".to_owned(),
        order: sanitize_line(order.as_bytes()),
        outcome: outcome.to_owned(),
        refused,
    }
}

impl Marks {
    /// Does what programs in the guest have asked for up to now, and answers; without a machine there is nothing else that it could be done to.
    pub(crate) fn answer(&mut self, source: &AskSource, mut machine: Option<Asked<'_>>, observe: Observe<'_>) {
        let Asks { asks, lost } = source.take_asks();
        let mut cut = lost.marks > 0;
        self.lost += lost.orders;
        for (number, question) in asks {
            let outcome = match (question, &mut machine) {
                (Question::Mark(text), _) if self.set < MOST_MARKS => {
                    self.set += 1;
                    observe(EventKind::Mark { text: clean(&text) });
                    Outcome::Done(String::new())
                }
                (Question::Mark(_), _) => {
                    cut = true;
                    Outcome::Full
                }
                (Question::Disk(text), Some(machine)) => {
                    machine.desk.take(Asker::Guest { number, source: source.clone() }, text);
                    continue;
                }
                (Question::Machine(text), Some(machine)) => {
                    machine.machine(Asker::Guest { number, source: source.clone() }, &text);
                    continue;
                }
                (Question::Machine(_), None) => {
                    Outcome::Refused("a container is no machine that could go down; take a machine".to_owned())
                }
                (Question::Disk(_), None) => {
                    Outcome::Refused("a container has no disks of its own; take a machine".to_owned())
                }
            };
            source.answer(number, outcome);
        }
        if lost.orders > 0 {
            let message = format!("{} orders came faster than they were done, and are lost", self.lost);
            observe(EventKind::Warning { message });
        }
        if cut && !std::mem::replace(&mut self.cut, true) {
            let message = format!("the command sets more than {MOST_MARKS} marks: the rest is not recorded");
            observe(EventKind::Warning { message });
        }
    }
}

impl Marks {
    /// What the result of a command cannot be believed for.
    pub(crate) fn lost_orders(&self) -> Option<Lost> {
        (self.lost > 0).then(|| Cause::OrdersLost(self.lost).into())
    }
}

/// A mark as it may stand in the log and on a terminal. The guest's agent keeps to the limit; whoever speaks in its place may not.
fn clean(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=text.len().min(MAX_QUESTION)).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_short_line() {
        assert_eq!(clean(" a\u{1b}[31m\nb "), "a [31m b");
        assert_eq!(clean(&"ä".repeat(MAX_QUESTION)).len(), MAX_QUESTION);
    }
}
