//! Frames over one port: a task that reads, a task that writes, bounded queues to both.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use belljar_proto::frame::{Assembler, Decoder, Encoder, Frame, Kind, MAX_PAYLOAD, from_bytes};
use belljar_proto::message::{ExecId, STDIN_WINDOW, ToAgent, ToHost};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::connect::{BoxedPort, PortKind};
use super::error::SessionError;
use super::reports::Reports;

/// Frames that may wait for the session to take them; then the port is left alone and the guest has to wait.
const INCOMING: usize = 8;
/// Writes that may wait for the guest.
const OUTGOING: usize = 8;
/// Messages of the agent are short; its bulk comes raw.
const MAX_FROM_AGENT: usize = MAX_PAYLOAD;
/// Bytes asked of the port at once.
const READ_SIZE: usize = 32 * 1024;

/// The link of one session.
#[derive(Debug)]
pub(super) struct Link {
    incoming: mpsc::Receiver<Result<Frame, SessionError>>,
    outgoing: mpsc::Sender<Vec<u8>>,
    assembler: Assembler,
    encoder: Encoder,
    pings: u64,
    kind: PortKind,
    reports: Arc<Reports>,
    tag: Arc<Mutex<Tag>>,
    tasks: [JoinHandle<()>; 2],
}

/// Whose frames are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// The session's.
    Of(u64),
    /// The agent is to become another process: the old session's, until the new one announces itself.
    Leaving { old: u64, new: u64 },
    /// Announcements, until the new process has taken the new session's tag.
    Coming { new: u64 },
}

impl Tag {
    /// Takes a frame, or says what is wrong with it. What comes late of the one before, or from somebody who has its tag, is not taken.
    fn take(&mut self, frame: &Frame) -> Result<(), SessionError> {
        match *self {
            Self::Of(tag) if frame.session == tag => Ok(()),
            Self::Leaving { old, .. } if frame.session == old => Ok(()),
            Self::Leaving { new, .. } | Self::Coming { new } if is_announcement(frame) => {
                *self = Self::Coming { new };
                Ok(())
            }
            Self::Coming { new } if frame.session == new => {
                *self = Self::Of(new);
                Ok(())
            }
            _ if is_announcement(frame) => Err(SessionError::Restarted),
            _ => Err(SessionError::WrongSession),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Link {
    /// Takes over a port whose agent is ready; `decoder` holds what came after its answer.
    pub(super) fn start(kind: PortKind, port: BoxedPort, decoder: Decoder, session: u64) -> Self {
        let (reader, writer) = tokio::io::split(port);
        let (to_session, incoming) = mpsc::channel(INCOMING);
        let (outgoing, to_port) = mpsc::channel(OUTGOING);
        let reports = Reports::new(outgoing.downgrade(), kind, session);
        let tag = Arc::new(Mutex::new(Tag::Of(session)));
        Self {
            incoming,
            outgoing,
            assembler: Assembler::new(MAX_FROM_AGENT),
            encoder: Encoder::new(session),
            pings: 0,
            kind,
            reports: Arc::clone(&reports),
            tag: Arc::clone(&tag),
            tasks: [
                tokio::spawn(read(reader, decoder, (tag, reports), to_session.clone())),
                tokio::spawn(write(writer, to_port, to_session)),
            ],
        }
    }

    /// What comes beside the session's conversation.
    pub(super) fn reports(&self) -> &Arc<Reports> {
        &self.reports
    }

    /// The agent is about to become another process, which will be greeted with this tag.
    pub(super) fn leave(&mut self, new: u64) {
        *self.tag.lock().unwrap_or_else(PoisonError::into_inner) = Tag::Leaving { old: self.encoder.session, new };
    }

    /// From here on it is the new process's session. To be called before that can have answered.
    pub(super) fn enter(&mut self, new: u64) {
        self.encoder = Encoder::new(new);
        self.assembler = Assembler::new(MAX_FROM_AGENT);
        self.reports.renewed(new);
    }

    /// Bytes of standard input that may be under way, and the most of them that are sent at once. What is under way
    /// on a slow line is in the way of a signal.
    pub(super) fn stdin_window(&self) -> (usize, usize) {
        match self.kind {
            PortKind::Virtio | PortKind::Socket => (STDIN_WINDOW as usize, 32 * 1024),
            PortKind::Serial => (16 * 1024, 4 * 1024),
        }
    }

    pub(super) fn encode(&self, message: &impl Serialize) -> Result<Vec<u8>, SessionError> {
        let mut frames = Vec::new();
        self.encoder
            .message(message, &mut frames)
            .map_err(|error| SessionError::Protocol { what: format!("refused to send {error}") })?;
        Ok(frames)
    }

    pub(super) fn stdin(&self, id: ExecId, bytes: &[u8]) -> Vec<u8> {
        let mut frames = Vec::new();
        self.encoder.bytes(Kind::Stdin, id, bytes, &mut frames);
        frames
    }

    pub(super) async fn send(&self, frames: Vec<u8>) -> Result<(), SessionError> {
        self.outgoing.send(frames).await.map_err(|_| SessionError::Closed { mid_frame: false })
    }

    /// Waits for room for one [`send`](Self::send); borrows nothing, so that it can wait beside [`recv`](Self::recv).
    pub(super) fn room(&self) -> impl Future<Output = Result<mpsc::OwnedPermit<Vec<u8>>, SessionError>> + use<> {
        let outgoing = self.outgoing.clone();
        async move { outgoing.reserve_owned().await.map_err(|_| SessionError::Closed { mid_frame: false }) }
    }

    /// Asks for a sign of life, unless the guest has not even taken what was sent before.
    pub(super) fn ping(&mut self) {
        self.pings += 1;
        if let Ok(frames) = self.encode(&ToAgent::Ping(self.pings)) {
            let _ = self.outgoing.try_send(frames);
        }
    }

    /// Lets go of the port.
    pub(super) async fn end(&mut self) {
        for task in &mut self.tasks {
            task.abort();
            drop(task.await);
        }
    }

    pub(super) async fn recv(&mut self) -> Result<Frame, SessionError> {
        self.incoming.recv().await.unwrap_or(Err(SessionError::Closed { mid_frame: false }))
    }

    /// The message that a frame completes; `None` for a frame of bulk bytes and for a piece of a message.
    pub(super) fn message(&mut self, frame: &Frame) -> Result<Option<ToHost>, SessionError> {
        match frame.kind {
            Kind::Control | Kind::Part => self.assembler.push(frame).map_err(SessionError::Message),
            Kind::Stdout | Kind::Stderr => Ok(None),
            Kind::Stdin => Err(SessionError::Protocol { what: "standard input from the guest".into() }),
        }
    }
}

async fn read(
    mut port: impl AsyncRead + Unpin,
    mut decoder: Decoder,
    (tag, reports): (Arc<Mutex<Tag>>, Arc<Reports>),
    out: mpsc::Sender<Result<Frame, SessionError>>,
) {
    let mut buffer = Vec::with_capacity(READ_SIZE);
    loop {
        while let Some(next) = decoder.next_frame() {
            let next = next.map_err(SessionError::Garbage).and_then(|frame| {
                tag.lock().unwrap_or_else(PoisonError::into_inner).take(&frame)?;
                Ok(frame)
            });
            let next = match next {
                Ok(frame) => match reports.take(frame) {
                    Some(frame) => Ok(frame),
                    None => continue,
                },
                Err(error) => Err(error),
            };
            let failed = next.is_err();
            reports.hold(true);
            let sent = out.send(next).await;
            reports.hold(false);
            if sent.is_err() || failed {
                return;
            }
        }
        buffer.clear();
        let closed = SessionError::Closed { mid_frame: decoder.pending() > 0 };
        let end = match port.read_buf(&mut buffer).await {
            Ok(0) => closed,
            Ok(_) => {
                decoder.push(&buffer);
                continue;
            }
            // It went away with something of ours unread.
            Err(source) if source.kind() == std::io::ErrorKind::ConnectionReset => closed,
            Err(source) => SessionError::Port { what: "reading", source },
        };
        let _ = out.send(Err(end)).await;
        return;
    }
}

async fn write(
    mut port: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Vec<u8>>,
    out: mpsc::Sender<Result<Frame, SessionError>>,
) {
    while let Some(frames) = frames.recv().await {
        if let Err(source) = port.write_all(&frames).await {
            // What the guest still had to say comes first: the reader reports the end.
            let gone = matches!(source.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset);
            if !gone {
                let what = "writing";
                let _ = out.send(Err(SessionError::Port { what, source })).await;
            }
            return;
        }
    }
}

fn is_announcement(frame: &Frame) -> bool {
    frame.session == 0 && frame.kind == Kind::Control && matches!(from_bytes(&frame.payload), Ok(ToHost::Announce(_)))
}

/// Notices that nothing is heard any more.
///
/// Counts its own ticks and not the clock: when Belljar is stopped and goes on (`SIGSTOP`, a suspended laptop), only one
/// tick has passed, and what the guest said meanwhile is read before the next.
#[derive(Debug)]
pub(super) struct Pulse {
    ticks: Interval,
    unheard: u32,
    last: Instant,
}

/// Ticks within the time of allowed silence.
const TICKS: u32 = 6;

impl Pulse {
    pub(super) fn new(silent_after: Duration) -> Self {
        let every = (silent_after / TICKS).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, unheard: 0, last: Instant::now() }
    }

    pub(super) async fn tick(&mut self) {
        self.ticks.tick().await;
        self.unheard += 1;
    }

    pub(super) fn heard(&mut self) {
        self.unheard = 0;
        self.last = Instant::now();
    }

    /// Whether it has been silent for too long, unless it is known to sleep.
    pub(super) fn check(&mut self, awaited: &str, reports: &Reports) -> Result<(), SessionError> {
        if reports.is_asleep() {
            self.heard();
        }
        if self.unheard < TICKS {
            return Ok(());
        }
        Err(SessionError::Silent { since: self.last.elapsed(), awaited: awaited.into() })
    }
}
