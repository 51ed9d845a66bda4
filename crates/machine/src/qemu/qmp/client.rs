//! Commands out, replies in.
//!
//! Two tasks own the socket's halves: one reads and sorts, one writes whole lines. A caller who gives up half-way
//! leaves no half-written line and no reply that another caller takes for its own.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::command::{Capabilities, GetFd};
use super::event::Hub;
use super::{Decoder, EventStream, Greeting, Message, QmpCommand, QmpError};

/// How long a command may take when nothing else is said. QEMU answers in microseconds; an overloaded host may not.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Lines on their way to a QEMU that does not read.
const OUTBOX: usize = 64;

type Answer = Result<Value, QmpError>;

#[derive(Debug)]
struct Pending {
    waiting: HashMap<u64, (String, oneshot::Sender<Answer>)>,
    next_id: u64,
    /// Why the channel ended, once it has.
    ended: Option<Ended>,
}

#[derive(Clone, Debug)]
enum Ended {
    Eof,
    Broken(QmpError),
}

impl Ended {
    fn for_command(&self, command: &str) -> QmpError {
        match self {
            Self::Eof => QmpError::Closed { command: command.to_owned() },
            Self::Broken(error) => error.clone(),
        }
    }
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    hub: Hub,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: &Ended) {
        let waiting = {
            let mut pending = self.lock();
            pending.ended.get_or_insert_with(|| why.clone());
            std::mem::take(&mut pending.waiting)
        };
        for (command, answer) in waiting.into_values() {
            let _ = answer.send(Err(why.for_command(&command)));
        }
        self.hub.close();
    }
}

/// A conversation with one QEMU. Clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Outgoing>,
    greeting: Arc<Greeting>,
    timeout: Duration,
}

/// A line, and a descriptor that goes with it.
#[derive(Debug)]
struct Outgoing {
    line: Vec<u8>,
    fd: Option<OwnedFd>,
}

#[derive(Serialize)]
struct Line<'a, C> {
    execute: &'a str,
    arguments: &'a C,
    id: u64,
}

impl Qmp {
    /// Takes the greeting and leaves the negotiation mode. The stream has every event since.
    ///
    /// Must be called within a tokio runtime; QEMU's end or the last clone's ends the tasks.
    ///
    /// # Errors
    ///
    /// When the channel closes, the deadline passes, or what answers is not QMP.
    pub async fn connect(stream: UnixStream, within: Duration) -> Result<(Self, EventStream), QmpError> {
        let deadline = Instant::now() + within;
        let shared = Arc::new(Shared {
            pending: Mutex::new(Pending { waiting: HashMap::new(), next_id: 1, ended: None }),
            hub: Hub::default(),
        });
        let events = shared.hub.subscribe();
        let (read, write) = stream.into_split();
        let (outbox, lines) = mpsc::channel(OUTBOX);
        let (greeting_to, greeting) = oneshot::channel();
        tokio::spawn(read_all(read, shared.clone(), greeting_to));
        tokio::spawn(write_all(write, lines));

        let greeting = match timeout_at(deadline, greeting).await {
            Ok(Ok(greeting)) => Arc::new(greeting),
            Ok(Err(_)) => {
                let ended = shared.lock().ended.clone().unwrap_or(Ended::Eof);
                return Err(ended.for_command("(greeting)"));
            }
            Err(_) => return Err(QmpError::Timeout { command: "(greeting)".to_owned(), after: within }),
        };
        let qmp = Self { shared, outbox, greeting, timeout: DEFAULT_TIMEOUT };
        qmp.execute_within(Capabilities {}, deadline.saturating_duration_since(Instant::now())).await?;
        Ok((qmp, events))
    }

    /// What QEMU said first.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// This conversation with another default deadline for commands.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The events from now on. The stream from [`Qmp::connect`] has them from the start.
    #[must_use]
    pub fn events(&self) -> EventStream {
        self.shared.hub.subscribe()
    }

    /// Executes a command within the default deadline.
    ///
    /// # Errors
    ///
    /// See [`QmpError`].
    pub async fn execute<C: QmpCommand>(&self, command: C) -> Result<C::Reply, QmpError> {
        self.execute_within(command, self.timeout).await
    }

    /// Executes a command. On a timeout QEMU may still carry it out.
    ///
    /// # Errors
    ///
    /// See [`QmpError`].
    pub async fn execute_within<C: QmpCommand>(&self, command: C, within: Duration) -> Result<C::Reply, QmpError> {
        self.send(command, None, within).await
    }

    /// Hands a descriptor over, under this name.
    ///
    /// # Errors
    ///
    /// See [`QmpError`].
    pub async fn hand_over(&self, fdname: &'static str, fd: OwnedFd) -> Result<(), QmpError> {
        self.send(GetFd { fdname }, Some(fd), self.timeout).await.map(drop)
    }

    /// Executes a command that takes a descriptor.
    ///
    /// # Errors
    ///
    /// See [`QmpError`].
    pub async fn lend<C: QmpCommand>(&self, command: C, fd: OwnedFd, within: Duration) -> Result<C::Reply, QmpError> {
        self.send(command, Some(fd), within).await
    }

    async fn send<C: QmpCommand>(
        &self,
        command: C,
        fd: Option<OwnedFd>,
        within: Duration,
    ) -> Result<C::Reply, QmpError> {
        let name = command.name().to_owned();
        let (to, answer) = oneshot::channel();
        let id = {
            let mut pending = self.shared.lock();
            if let Some(ended) = &pending.ended {
                return Err(ended.for_command(&name));
            }
            let id = pending.next_id;
            pending.next_id += 1;
            pending.waiting.insert(id, (name.clone(), to));
            id
        };
        // Whatever way this call ends, also by being dropped, nobody waits for this number any more.
        let _forget = Forget { shared: &self.shared, id };

        let line = Line { execute: &name, arguments: &command, id };
        let mut line = serde_json::to_vec(&line)
            .map_err(|source| QmpError::Encode { command: name.clone(), source: Arc::new(source) })?;
        line.push(b'\n');

        let exchange = async {
            if self.outbox.send(Outgoing { line, fd }).await.is_err() {
                // The reader knows why, and tells.
            }
            answer.await
        };
        match timeout_at(Instant::now() + within, exchange).await {
            Ok(Ok(Ok(value))) => serde_json::from_value(value)
                .map_err(|source| QmpError::Reply { command: name, source: Arc::new(source) }),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(QmpError::Closed { command: name }),
            Err(_) => Err(QmpError::Timeout { command: name, after: within }),
        }
    }
}

struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.id);
    }
}

async fn read_all(mut socket: OwnedReadHalf, shared: Arc<Shared>, greeting: oneshot::Sender<Greeting>) {
    let mut greeting = Some(greeting);
    let ended = read_until_end(&mut socket, &shared, &mut greeting).await;
    // First the reason, then the news that no greeting comes.
    shared.end(&ended);
}

async fn read_until_end(
    socket: &mut OwnedReadHalf,
    shared: &Shared,
    greeting: &mut Option<oneshot::Sender<Greeting>>,
) -> Ended {
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match socket.read(&mut buffer).await {
            Ok(0) => return Ended::Eof,
            Ok(n) => decoder.push(&buffer[..n]),
            // A peer that is killed with our bytes unread resets the connection.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ended::Eof,
            Err(error) => return Ended::Broken(QmpError::Io(Arc::new(error))),
        }
        loop {
            match decoder.next() {
                Ok(Some(message)) => dispatch(message, shared, greeting),
                Ok(None) => break,
                Err(error) => return Ended::Broken(error.into()),
            }
        }
    }
}

fn dispatch(message: Message, shared: &Shared, greeting: &mut Option<oneshot::Sender<Greeting>>) {
    // An answer to a call that was given up is nobody's.
    let take = |id: Option<u64>| id.and_then(|id| shared.lock().waiting.remove(&id));
    match message {
        Message::Greeting(words) => {
            if let Some(to) = greeting.take() {
                let _ = to.send(words);
            }
        }
        Message::Event(event) => shared.hub.publish(&event),
        Message::Return { id, value } => {
            if let Some((_, answer)) = take(id) {
                let _ = answer.send(Ok(value));
            }
        }
        Message::Error { id, class, desc } => {
            if let Some((command, answer)) = take(id) {
                let _ = answer.send(Err(QmpError::Refused { command, class, desc }));
            }
        }
    }
}

async fn write_all(socket: OwnedWriteHalf, mut lines: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { line, fd }) = lines.recv().await {
        // The reader sees the end too, and says why.
        if write_line(&socket, &line, fd).await.is_err() {
            return;
        }
    }
}

/// Writes a line; the descriptor goes with its first byte.
async fn write_line(socket: &OwnedWriteHalf, mut line: &[u8], mut fd: Option<OwnedFd>) -> io::Result<()> {
    while !line.is_empty() {
        socket.writable().await?;
        let sent = socket.as_ref().try_io(Interest::WRITABLE, || send_with(socket.as_ref(), line, fd.as_ref()));
        match sent {
            Ok(sent) => {
                fd = None;
                line = &line[sent..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_with(socket: &UnixStream, line: &[u8], fd: Option<&OwnedFd>) -> io::Result<usize> {
    let fds = fd.map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds.as_slice())) && fd.is_some() {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
}
