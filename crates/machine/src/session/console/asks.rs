//! What programs in a guest without the agent ask for, between the session, which finds it in the guest and brings the answers there, and whoever watches
//! the guest, who has it done while a command runs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use belljar_proto::message::{Outcome, Question, SyncFault};
use tokio::sync::{oneshot, watch};

use crate::session::agent::Asks;

/// Questions that are not answered, above which no more are taken while the command runs: what asks for more waits in the guest.
const MAX_UNANSWERED: usize = 256;
/// Questions that are not answered, above which those are lost that a command leaves behind at its end.
const MAX_LEFT: usize = 2048;

/// Questions of the guest on their way to who answers them, and the way back.
#[derive(Debug)]
pub(crate) struct ShellAsks {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    asks: Asks,
    /// Under which name the answer to each question is awaited.
    names: HashMap<u32, String>,
    answers: VecDeque<(String, Outcome)>,
    next: u32,
    /// The command is to be ended, for the machine goes down.
    goes_down: bool,
    /// With that, disks answer no more.
    disks_held: bool,
    /// The command was not told to end yet.
    kill: bool,
    /// Who waits for what was written to be on the host.
    sync: Option<oneshot::Sender<Option<SyncFault>>>,
    beats: u64,
    /// Orders, answers and results go over a share.
    by_share: bool,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is answered later.
    Later,
    /// The same, and that may take very long.
    MuchLater,
    /// It is answered: it asks for nothing.
    Refused,
    /// It is lost, for there were too many.
    Lost,
}

impl Default for ShellAsks {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl ShellAsks {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is half-done while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let given = change(&mut self.state());
        self.changed.send_modify(|n| *n += 1);
        given
    }

    /// A command begins: what was under way for the one before is nobody's.
    /// `by_share`: it asks over a share, and its results go there.
    pub(super) fn begin(&self, by_share: bool) {
        let mut state = self.state();
        // Numbers go on: the answer to a question of the command before must not be taken for another's.
        *state = State { next: state.next, beats: state.beats, by_share, ..State::default() };
    }

    /// Whether the guest would be lost if it suspended itself: a share does not survive that, and whoever touches it then waits for ever.
    pub(crate) fn must_not_sleep(&self) -> bool {
        self.state().by_share
    }

    /// Whether one more question is taken now.
    pub(super) fn has_room(&self) -> bool {
        self.state().names.len() < MAX_UNANSWERED
    }

    /// Somebody in the guest asks for what this line says, and awaits the answer under this name.
    pub(super) fn ask(&self, name: String, line: &[u8]) -> Taken {
        let line = String::from_utf8_lossy(line);
        self.change(|state| match Question::parse(&line) {
            Err(why) => {
                state.answers.push_back((name, Outcome::Refused(why)));
                Taken::Refused
            }
            Ok(question) if state.names.len() >= MAX_LEFT => {
                match question {
                    Question::Mark(_) => state.asks.lost.marks += 1,
                    _ => state.asks.lost.orders += 1,
                }
                Taken::Lost
            }
            Ok(question) => {
                state.next = state.next.wrapping_add(1);
                let taken = if matches!(question, Question::Machine(_)) { Taken::MuchLater } else { Taken::Later };
                state.names.insert(state.next, name);
                state.asks.asks.push((state.next, question));
                taken
            }
        })
    }

    /// Somebody in the guest asks for something that cannot be taken, for this reason.
    pub(super) fn refuse(&self, name: String, why: String) {
        self.change(|state| state.answers.push_back((name, Outcome::Refused(why))));
    }

    /// So many more orders will never be carried out.
    pub(super) fn lose(&self, orders: u64) {
        self.change(|state| state.asks.lost.orders += orders);
    }

    /// The answers that nobody has brought to the guest yet.
    pub(super) fn take_answers(&self) -> VecDeque<(String, Outcome)> {
        std::mem::take(&mut self.state().answers)
    }

    /// What was asked for since the last call.
    pub(crate) fn take_asks(&self) -> Asks {
        let mut state = self.state();
        std::mem::take(&mut state.asks)
    }

    /// Answers one of these.
    pub(crate) fn answer(&self, number: u32, answer: Outcome) {
        self.change(|state| {
            // Of a command that has ended.
            let Some(name) = state.names.remove(&number) else { return };
            // Who has the machine go down does not live to hear of it.
            if answer != Outcome::GoesDown {
                state.answers.push_back((name, answer));
            }
        });
    }

    /// The machine goes down: the command is to be ended, and what it has said to be brought here. `disks_held`: lab disks answer no more.
    pub(crate) fn go_down(&self, disks_held: bool) {
        self.change(|state| (state.goes_down, state.disks_held, state.kill) = (true, disks_held, true));
    }

    /// Whether the command is to be ended, and was not told so yet; once.
    pub(super) fn take_kill(&self) -> bool {
        std::mem::take(&mut self.state().kill)
    }

    /// Whether lab disks answer no more, so that nothing may be awaited that they would have to do.
    pub(super) fn are_disks_held(&self) -> bool {
        self.state().disks_held
    }

    /// Has everything that was written to the shares brought to the host while a command runs; tells what could not be.
    pub(crate) fn sync(&self) -> oneshot::Receiver<Option<SyncFault>> {
        let (tell, told) = oneshot::channel();
        self.change(|state| state.sync = Some(tell));
        told
    }

    /// Who waits for that; once.
    pub(super) fn take_sync(&self) -> Option<oneshot::Sender<Option<SyncFault>>> {
        self.state().sync.take()
    }

    /// The shell has answered.
    pub(super) fn beat(&self) {
        self.state().beats += 1;
    }

    /// How often the shell has answered.
    pub(crate) fn beats(&self) -> u64 {
        self.state().beats
    }

    /// To wait for more.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when the session has something to do for somebody else.
    pub(super) async fn attention(&self) {
        let mut changes = self.changes();
        loop {
            {
                let state = self.state();
                if state.kill || state.sync.is_some() {
                    return;
                }
            }
            // Who changes it is here.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Where programs in a guest are asked from, and answered.
#[derive(Clone, Debug)]
pub(crate) enum AskSource {
    /// The agent.
    Agent(Arc<crate::session::agent::Reports>),
    /// The shell on the console.
    Shell(Arc<ShellAsks>),
}

impl AskSource {
    /// What was asked for since the last call.
    pub(crate) fn take_asks(&self) -> Asks {
        match self {
            Self::Agent(reports) => reports.take_asks(),
            Self::Shell(asks) => asks.take_asks(),
        }
    }

    /// Answers one of these.
    pub(crate) fn answer(&self, number: u32, answer: Outcome) {
        match self {
            Self::Agent(reports) => reports.answer(number, answer),
            Self::Shell(asks) => asks.answer(number, answer),
        }
    }

    /// The agent, where there is one.
    pub(crate) fn agent(&self) -> Option<Arc<crate::session::agent::Reports>> {
        match self {
            Self::Agent(reports) => Some(reports.clone()),
            Self::Shell(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::agent::LostAsks;

    #[test]
    fn answers_go_to_who_asked_and_to_nobody_else() {
        let asks = ShellAsks::default();
        asks.begin(false);
        assert_eq!(asks.ask("a".into(), b"mark one\n"), Taken::Later);
        assert_eq!(asks.ask("b".into(), b"reboot here\n"), Taken::MuchLater);
        assert_eq!(asks.ask("c".into(), b"explode\n"), Taken::Refused);
        let asked = asks.take_asks().asks;
        let numbers: Vec<u32> = asked.iter().map(|(number, _)| *number).collect();
        assert_eq!(asked[0].1, Question::Mark("one".into()));
        asks.answer(numbers[0], Outcome::Done("x".into()));
        asks.answer(numbers[0], Outcome::Done("twice".into()));
        asks.answer(numbers[1], Outcome::GoesDown);
        let answers: Vec<_> =
            asks.take_answers().into_iter().map(|(name, answer)| (name, answer.to_answer())).collect();
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert!(answers[0].0 == "c" && answers[0].1.starts_with("error\n"), "{answers:?}");
        assert_eq!(answers[1], ("a".to_owned(), "ok\nx\n".to_owned()));
        // What a command asked is not answered to the next one.
        asks.ask("late".into(), b"nmi\n");
        let late = asks.take_asks().asks[0].0;
        asks.begin(false);
        asks.ask("new".into(), b"nmi\n");
        asks.answer(late, Outcome::Done(String::new()));
        assert!(asks.take_answers().is_empty());
    }

    #[test]
    fn what_is_too_much_is_counted_as_lost() {
        let asks = ShellAsks::default();
        asks.begin(false);
        for number in 0..MAX_LEFT {
            assert_eq!(asks.has_room(), number < MAX_UNANSWERED);
            assert_eq!(asks.ask(format!("n{number}"), b"disk d error"), Taken::Later);
        }
        assert_eq!(asks.ask("x".into(), b"disk d error"), Taken::Lost);
        assert_eq!(asks.ask("y".into(), b"mark m"), Taken::Lost);
        asks.lose(2);
        let Asks { asks: asked, lost } = asks.take_asks();
        assert_eq!((asked.len(), lost), (MAX_LEFT, LostAsks { marks: 1, orders: 3 }));
        assert_eq!(asks.take_asks().lost, LostAsks::default());
    }

    #[tokio::test]
    async fn a_machine_that_goes_down_ends_the_command_once() {
        let asks = ShellAsks::default();
        asks.begin(false);
        assert!(!asks.take_kill() && !asks.are_disks_held());
        asks.go_down(true);
        asks.attention().await;
        assert!(asks.take_kill() && !asks.take_kill() && asks.are_disks_held());
        let told = asks.sync();
        asks.attention().await;
        asks.take_sync().unwrap().send(None).unwrap();
        assert_eq!(told.await.unwrap(), None);
        asks.begin(false);
        assert!(!asks.are_disks_held());
    }
}
