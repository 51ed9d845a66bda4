//! What comes over the agent's port beside the session's own conversation: the news of the guest's kernel, signs of life, and what programs
//! in the guest ask for. Whoever watches the guest takes it while the session waits for something else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use belljar_proto::frame::{Encoder, Frame, Kind, from_bytes};
use belljar_proto::message::{KernelLine, KernelNews, Outcome, Question, SyncReport, ToAgent, ToHost};
use tokio::sync::{mpsc, oneshot, watch};

use super::clean_sync;
use super::connect::PortKind;
use super::error::clean;

/// Most news that wait to be read; the agent sends fewer of one command.
const MAX_NEWS: usize = 4096;
/// Most questions of the guest that wait to be taken, and most answers that wait to be sent. The agent asks no more while some hundreds are not answered.
const MAX_ASKS: usize = 2048;
/// How soon it is looked again whether the guest takes answers.
const AGAIN: Duration = Duration::from_millis(5);
/// Numbers of the questions that are asked here begin above this, and those of the session's own pings stay far below or above.
const FIRST: u64 = 1 << 62;
/// And end below this.
const LAST: u64 = 1 << 63;

/// The guest's kernel and its agent, as far as they have made themselves heard.
#[derive(Debug)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    port: mpsc::WeakSender<Vec<u8>>,
    kind: PortKind,
}

#[derive(Debug, Default)]
struct State {
    session: u64,
    /// Frames that came.
    heard: u64,
    asked: u64,
    answered: u64,
    /// The reader waits until somebody takes what it has read.
    held: bool,
    vouches: bool,
    /// The guest has suspended itself.
    asleep: bool,
    news: VecDeque<KernelNews>,
    /// The agent has said that it reads the kernel's record.
    watched: bool,
    /// Some of that was lost.
    gap: bool,
    asks: Vec<(u32, Question)>,
    /// Questions for which there was no room.
    lost: LostAsks,
    /// Who waits for the guest's clock to have jumped, or for why it has not.
    stepped: Option<oneshot::Sender<Option<String>>>,
    /// Answers that the guest has not taken yet; there is somebody who sends them.
    unsent: VecDeque<Vec<u8>>,
    sync: BesideSync,
}

/// A synchronisation of the shares that was asked for beside the session's conversation.
#[derive(Debug, Default)]
enum BesideSync {
    /// None was.
    #[default]
    None,
    /// The agent has not answered yet.
    Awaited,
    /// It has.
    Done(SyncReport),
}

/// Questions that were never looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LostAsks {
    /// Marks.
    pub(crate) marks: u64,
    /// Whatever else there is, of which each may change what a test sees.
    pub(crate) orders: u64,
}

/// What programs in the guest have asked for.
#[derive(Debug, Default)]
pub(crate) struct Asks {
    /// Each with its number.
    pub(crate) asks: Vec<(u32, Question)>,
    /// More came for which there was no room.
    pub(crate) lost: LostAsks,
}

impl Reports {
    pub(super) fn new(port: mpsc::WeakSender<Vec<u8>>, kind: PortKind, session: u64) -> Arc<Self> {
        let state = Mutex::new(State { session, ..State::default() });
        Arc::new(Self { state, changed: watch::Sender::new(0), port, kind })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is half-done while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame of the session; `None`: it was for those who watch.
    pub(super) fn take(&self, frame: Frame) -> Option<Frame> {
        let message = (frame.kind == Kind::Control).then(|| from_bytes::<ToHost>(&frame.payload));
        let kept = {
            let mut state = self.state();
            state.heard += 1;
            match message {
                Some(Ok(ToHost::Kernel(news))) => {
                    state.take(news);
                    None
                }
                Some(Ok(ToHost::Ask { number, question })) => {
                    if state.asks.len() < MAX_ASKS {
                        state.asks.push((number, question));
                    } else if matches!(question, Question::Mark(_)) {
                        state.lost.marks += 1;
                    } else {
                        state.lost.orders += 1;
                    }
                    None
                }
                Some(Ok(ToHost::ClockStepped(why))) => {
                    if let Some(tell) = state.stepped.take() {
                        // Nobody waiting is fine.
                        drop(tell.send(why.map(|why| clean(&why))));
                    }
                    None
                }
                Some(Ok(ToHost::Pong(number))) if (FIRST..LAST).contains(&number) => {
                    state.answered = state.answered.max(number - FIRST);
                    None
                }
                Some(Ok(ToHost::Synced(report))) if matches!(state.sync, BesideSync::Awaited) => {
                    state.sync = BesideSync::Done(clean_sync(report));
                    None
                }
                _ => return Some(frame),
            }
        };
        self.changed.send_modify(|n| *n += 1);
        kept
    }

    /// The session goes on under another tag: with a new process, which introduces itself.
    pub(super) fn renewed(&self, session: u64) {
        let mut state = self.state();
        state.session = session;
        state.vouches = false;
        state.asks.clear();
        state.lost = LostAsks::default();
        state.unsent.clear();
        state.sync = BesideSync::None;
    }

    /// Whether the reader is held up by somebody who does not take what came.
    pub(super) fn hold(&self, held: bool) {
        self.state().held = held;
    }

    /// Asks the agent for a sign of life, after which all that the kernel had said is known. Gives what [`answered`](Self::answered)
    /// reaches then; `None`: the guest has not even taken what was sent before.
    pub(crate) fn ask(&self) -> Option<u64> {
        let (session, ticket) = {
            let state = self.state();
            (state.session, state.asked + 1)
        };
        let mut frames = Vec::new();
        Encoder::new(session).message(&ToAgent::Ping(FIRST + ticket), &mut frames).ok()?;
        self.port.upgrade()?.try_send(frames).ok()?;
        self.state().asked = ticket;
        Some(ticket)
    }

    /// Has something done to the guest's clock; tells when it is, or why not.
    pub(crate) fn change_clock(self: &Arc<Self>, change: &ToAgent) -> oneshot::Receiver<Option<String>> {
        let (tell, told) = oneshot::channel();
        self.state().stepped = Some(tell);
        self.post(change);
        told
    }

    /// What programs in the guest have asked for since the last call.
    pub(crate) fn take_asks(&self) -> Asks {
        let mut state = self.state();
        Asks { asks: std::mem::take(&mut state.asks), lost: std::mem::take(&mut state.lost) }
    }

    /// Answers one of these; later, if the guest has not even taken what was sent before: it asks no more than it has had answered.
    pub(crate) fn answer(self: &Arc<Self>, number: u32, answer: Outcome) {
        self.post(&ToAgent::Answer { number, answer });
    }

    /// Has everything that was written to the shares brought to the host, or packed for it, while the session waits for something else. To be called by one
    /// at a time, and not while the session itself asks for that.
    pub(crate) async fn sync(self: &Arc<Self>) -> SyncReport {
        self.state().sync = BesideSync::Awaited;
        let mut changes = self.changes();
        self.post(&ToAgent::Sync);
        loop {
            {
                let mut state = self.state();
                if let BesideSync::Done(_) = state.sync
                    && let BesideSync::Done(report) = std::mem::take(&mut state.sync)
                {
                    return report;
                }
            }
            if changes.changed().await.is_err() {
                // Whoever watches the guest sees why.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends a message; later, if the guest has not even taken what was sent before.
    fn post(self: &Arc<Self>, message: &ToAgent) {
        let mut state = self.state();
        let mut frames = Vec::new();
        if Encoder::new(state.session).message(message, &mut frames).is_err() {
            return;
        }
        let is_first = state.unsent.is_empty();
        if state.unsent.len() < MAX_ASKS {
            state.unsent.push_back(frames);
        }
        drop(state);
        if is_first && !self.send_answers() {
            let reports = Arc::downgrade(self);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(AGAIN).await;
                    if reports.upgrade().is_none_or(|reports| reports.send_answers()) {
                        return;
                    }
                }
            });
        }
    }

    /// Sends what the port takes; gives whether nothing is left to be sent.
    fn send_answers(&self) -> bool {
        let mut state = self.state();
        while let Some(frames) = state.unsent.pop_front() {
            // Who keeps the port would keep the session.
            let Some(port) = self.port.upgrade() else {
                state.unsent.clear();
                return true;
            };
            match port.try_send(frames) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(frames)) => {
                    state.unsent.push_front(frames);
                    return false;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    state.unsent.clear();
                    return true;
                }
            }
        }
        true
    }

    /// Has all that runs in a container stand still, or go on, and waits until it does; gives whether it does.
    pub(crate) async fn stand_still(&self, wanted: bool) -> bool {
        let (session, ticket) = {
            let mut state = self.state();
            state.asked += 1;
            (state.session, state.asked)
        };
        let encoder = Encoder::new(session);
        let mut frames = Vec::new();
        let said = encoder.message(&ToAgent::StandStill(wanted), &mut frames).is_ok()
            && encoder.message(&ToAgent::Ping(FIRST + ticket), &mut frames).is_ok();
        let mut changes = self.changes();
        let Some(port) = self.port.upgrade().filter(|_| said) else { return false };
        if port.send(frames).await.is_err() {
            return false;
        }
        // Without it the session is seen to be over.
        drop(port);
        while self.answered() < ticket {
            if changes.changed().await.is_err() {
                return false;
            }
        }
        true
    }

    /// The last question that was answered.
    pub(crate) fn answered(&self) -> u64 {
        self.state().answered
    }

    /// How often anything was heard.
    pub(crate) fn heard(&self) -> u64 {
        self.state().heard
    }

    /// Whether somebody on this side keeps the agent's words from being read.
    pub(crate) fn is_held(&self) -> bool {
        self.state().held
    }

    /// Whether all that the kernel says is told here.
    pub(crate) fn vouches(&self) -> bool {
        self.state().vouches
    }

    /// The next of the news that nobody has read.
    pub(crate) fn next_news(&self) -> Option<KernelNews> {
        self.state().news.pop_front()
    }

    /// Which way they come.
    pub(crate) fn kind(&self) -> PortKind {
        self.kind
    }

    /// The guest has suspended itself, or has woken: nothing can be heard of one that sleeps.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.state().asleep = asleep;
    }

    /// See [`set_asleep`](Self::set_asleep).
    pub(crate) fn is_asleep(&self) -> bool {
        self.state().asleep
    }

    /// To wait for more.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl State {
    fn take(&mut self, news: KernelNews) {
        let news = match news {
            KernelNews::Line(line) => KernelNews::Line(KernelLine { text: clean(&line.text), ..line }),
            KernelNews::Unreadable(why) => KernelNews::Unreadable(clean(&why)),
            other => other,
        };
        match &news {
            // A gap is a gap for the rest of the guest's life.
            KernelNews::Watched => {
                self.vouches = !self.gap;
                if std::mem::replace(&mut self.watched, true) {
                    return;
                }
            }
            KernelNews::Lost { .. } => (self.gap, self.vouches) = (true, false),
            KernelNews::Unreadable(_) => self.vouches = false,
            KernelNews::Line(_) | KernelNews::Guard(_) => {}
        }
        if self.news.len() < MAX_NEWS {
            self.news.push_back(news);
        } else {
            (self.gap, self.vouches) = (true, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::console::AskSource;

    fn frame(message: &ToHost) -> Frame {
        let payload = belljar_proto::frame::to_bytes(message).unwrap();
        Frame { kind: Kind::Control, exec: 0, session: 5, payload }
    }

    fn reports() -> (Arc<Reports>, mpsc::Receiver<Vec<u8>>, mpsc::Sender<Vec<u8>>) {
        let (sender, receiver) = mpsc::channel(1);
        (Reports::new(sender.downgrade(), PortKind::Virtio, 5), receiver, sender)
    }

    #[tokio::test]
    async fn orders_that_are_lost_are_no_pass() {
        let (reports, _receiver, _sender) = reports();
        let lost_of = |question: Question, count: usize| {
            for _ in 0..count {
                assert!(reports.take(frame(&ToHost::Ask { number: 1, question: question.clone() })).is_none());
            }
            let (mut marks, mut told) = (crate::watch::Marks::default(), Vec::new());
            marks.answer(&AskSource::Agent(reports.clone()), None, &mut |event| told.push(format!("{event:?}")));
            (marks.lost_orders().map(|lost| (lost.verdict(), lost.cause.to_string())), told)
        };
        let order = Question::Disk("data0 error".into());
        assert!(lost_of(order.clone(), MAX_ASKS).0.is_none());
        let (lost, told) = lost_of(order, MAX_ASKS + 3);
        let (verdict, said) = lost.unwrap();
        assert!(
            matches!(verdict, belljar_model::Verdict::Error(_)) && said.starts_with("3 orders were lost"),
            "{said}"
        );
        assert!(
            told.iter().any(|told| told.contains("3 orders")) && !told.iter().any(|told| told.contains("marks")),
            "{told:?}"
        );
        let (lost, told) = lost_of(Question::Mark("x".into()), MAX_ASKS + 3);
        assert!(lost.is_none() && told.last().unwrap().contains("more than 1000 marks"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_waits_for_a_guest_that_is_slow() {
        let (reports, mut receiver, sender) = reports();
        for number in 1..=600 {
            reports.answer(number, Outcome::Done(String::new()));
        }
        let mut decoder = belljar_proto::frame::Decoder::new();
        for expected in 1..=600 {
            decoder.push(&receiver.recv().await.unwrap());
            let sent = decoder.next_frame().unwrap().unwrap();
            let answer = ToAgent::Answer { number: expected, answer: Outcome::Done(String::new()) };
            assert_eq!(from_bytes::<ToAgent>(&sent.payload).unwrap(), answer);
        }
        // The session's end is not put off by answers that nobody takes.
        (1..=3).for_each(|number| reports.answer(number, Outcome::Full));
        drop(sender);
        while receiver.recv().await.is_some() {}
    }

    #[test]
    fn what_the_guest_asks_for_is_kept_within_bounds_and_is_the_sessions() {
        let (reports, mut receiver, _sender) = reports();
        let ask = |number| frame(&ToHost::Ask { number, question: Question::Mark("x".into()) });
        let most = u32::try_from(MAX_ASKS).unwrap();
        for number in 1..=most + 3 {
            assert!(reports.take(ask(number)).is_none());
        }
        assert!(reports.take(frame(&ToHost::Ask { number: 1, question: Question::Disk("d error".into()) })).is_none());
        let Asks { asks, lost } = reports.take_asks();
        assert_eq!(
            (asks.len(), asks[0].0, asks[MAX_ASKS - 1].0, lost),
            (MAX_ASKS, 1, most, LostAsks { marks: 3, orders: 1 })
        );
        assert!(reports.take_asks().asks.is_empty());
        reports.answer(7, Outcome::Full);
        let mut decoder = belljar_proto::frame::Decoder::new();
        decoder.push(&receiver.try_recv().unwrap());
        let sent = decoder.next_frame().unwrap().unwrap();
        assert_eq!(from_bytes::<ToAgent>(&sent.payload).unwrap(), ToAgent::Answer { number: 7, answer: Outcome::Full });

        assert!(reports.take(ask(1)).is_none());
        reports.renewed(6);
        assert!(reports.take_asks().asks.is_empty(), "of a test that is over");
    }

    #[test]
    fn an_answer_is_told_from_the_sessions_own() {
        let (reports, _receiver, _sender) = reports();
        let ticket = reports.ask().unwrap();
        assert_eq!(reports.ask(), None, "nobody takes what is sent");
        assert!(reports.take(frame(&ToHost::Pong(1))).is_some());
        assert!(reports.take(frame(&ToHost::Pong(u64::MAX - 1))).is_some());
        assert!(reports.answered() < ticket);
        assert!(reports.take(frame(&ToHost::Pong(FIRST + ticket))).is_none());
        assert_eq!((reports.answered(), reports.heard()), (ticket, 3));
    }

    fn line(text: &str) -> KernelLine {
        KernelLine { text: text.into(), devices: Vec::new() }
    }

    #[test]
    fn who_has_missed_something_vouches_for_nothing() {
        let (reports, _receiver, _sender) = reports();
        assert!(!reports.vouches());
        reports.take(frame(&ToHost::Kernel(KernelNews::Watched)));
        assert!(reports.vouches());
        reports.take(frame(&ToHost::Kernel(KernelNews::Line(line("\u{1b}[2JBUG: x")))));
        let news: Vec<_> = std::iter::from_fn(|| reports.next_news()).collect();
        assert_eq!(news, [KernelNews::Watched, KernelNews::Line(line("\u{fffd}[2JBUG: x"))]);
        reports.take(frame(&ToHost::Kernel(KernelNews::Lost { records: 1, tainted: 0 })));
        reports.take(frame(&ToHost::Kernel(KernelNews::Watched)));
        assert!(!reports.vouches());
        assert_eq!(reports.next_news(), Some(KernelNews::Lost { records: 1, tainted: 0 }));
        assert_eq!(reports.next_news(), None, "that the record is read is told once");
    }
}
