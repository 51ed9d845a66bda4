//! The serial line: always drained, logged raw, and read by patterns.
//!
//! A [`Console`] owns the host's end of a guest's serial line. A task of its own drains the line whether or not anybody
//! is interested, writes every byte to the log before anything looks at it, answers what programs ask of a terminal, and
//! keeps the last lines, the unread text and the [alarms](Alarms). Memory is bounded whatever the guest sends.
//!
//! Nothing here knows where the line comes from; QEMU's is one end of a socket pair.

mod alarm;
mod buffer;
mod escape;
#[doc(hidden)]
pub mod fuzz;
mod line;
mod matcher;
mod patience;
mod pump;
mod query;
pub mod sanitize;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use alarm::{Alarm, AlarmKind, Alarms, Phase, Severity};
pub(crate) use alarm::{Scanner, kernel_kind};
pub use matcher::{Marker, Pattern};
pub use patience::{Limit, Overdue, Patience};

use matcher::{Found, Matcher};
use pump::{Outgoing, Shared};

pub use pump::LogFault;

/// Longest line that may be sent, in bytes. A terminal drops what goes past 4095; some line editors stop sooner.
pub const LINE_MAX: usize = 1000;

/// How many of the last lines an error carries.
const TAIL: usize = 15;

/// What can be set about a console.
#[derive(Clone, Copy, Debug)]
pub struct ConsoleOptions {
    /// Bytes of raw log; what comes after is counted, not kept.
    pub log_limit: u64,
    /// Bytes of unread text; the oldest is given up first.
    pub unread_limit: usize,
    /// Lines kept for [`ConsoleView::tail`].
    pub tail_limit: usize,
    /// Rows and columns that programs are told when they ask the terminal for its size.
    pub size: (u16, u16),
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        ConsoleOptions { log_limit: 256 << 20, unread_limit: 2 << 20, tail_limit: 500, size: (24, 80) }
    }
}

/// A text that was awaited and came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Index of the pattern in what was given to [`Console::expect`].
    pub pattern: usize,
    /// The unread text before it, without escape sequences.
    pub before: Vec<u8>,
    /// The payload of a marker.
    pub payload: Vec<u8>,
    /// Bytes before it that were given up for want of room ([`ConsoleOptions::unread_limit`]).
    pub lost: usize,
}

/// What was awaited did not come.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExpectError {
    /// Not in time.
    #[error("{what} did not come on the serial console: {overdue}{}", show_tail(tail))]
    Overdue {
        /// What was awaited.
        what: String,
        /// How long.
        overdue: Overdue,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The line was closed: the guest is gone.
    #[error("the serial console was closed while {what} was awaited{}", show_tail(tail))]
    Closed {
        /// What was awaited.
        what: String,
        /// The last lines of the console.
        tail: Vec<String>,
    },
}

impl ExpectError {
    /// The last lines of the console when it happened.
    pub fn tail(&self) -> &[String] {
        match self {
            ExpectError::Overdue { tail, .. } | ExpectError::Closed { tail, .. } => tail,
        }
    }
}

/// The last lines of a console, for the end of an error message.
pub(crate) fn show_tail(tail: &[String]) -> String {
    let mut out = String::new();
    if tail.is_empty() {
        out.push_str("; the console has shown nothing");
    } else {
        out.push_str("; the console's last lines:");
        for line in tail {
            out.push_str("\n  | ");
            out.push_str(line);
        }
    }
    out
}

/// Why nothing could be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// A line would be cut by the guest's terminal.
    #[error("a line of {0} bytes is too long for the guest's terminal ({LINE_MAX} at most)")]
    LineTooLong(usize),
    /// The line was closed: the guest is gone.
    #[error("the serial console was closed while we were typing")]
    Closed,
}

/// What woke a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// More came.
    Bytes,
    /// Nothing came for as long as asked.
    Rest,
}

/// The host's end of a serial line, for the one who reads and types. Dropping it closes the line.
pub struct Console {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.shared.fmt(f)
    }
}

struct Inner {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    tasks: [tokio::task::AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl Console {
    /// Takes over a serial line and starts draining it at once. `log` gets every byte as it came.
    ///
    /// Must be called within a tokio runtime.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, log: impl io::Write + Send + 'static) -> Self {
        Self::with_options(io, log, ConsoleOptions::default())
    }

    /// [`Console::new`] with other limits.
    pub fn with_options(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        log: impl io::Write + Send + 'static,
        options: ConsoleOptions,
    ) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let (outgoing, queue) = mpsc::channel(64);
        let shared = Arc::new(Shared::new(&options));
        let log = pump::CappedLog::new(Box::new(log), options.log_limit);
        let tasks = [
            tokio::spawn(pump::drain(reader, log, Arc::clone(&shared), outgoing.downgrade())).abort_handle(),
            tokio::spawn(pump::write(writer, queue)).abort_handle(),
        ];
        Console { inner: Arc::new(Inner { shared, outgoing, tasks }) }
    }

    /// A second hand on the same line. Only one of them may be reading at a time.
    pub(crate) fn share(&self) -> Self {
        Console { inner: Arc::clone(&self.inner) }
    }

    /// Lines of nothing but words `<TAG:...>`, which are Belljar's own, are not kept for a person.
    pub(crate) fn leave_out(&self, tag: &str) {
        self.inner.shared.leave_out(tag);
    }

    /// A watcher, which can neither read nor type.
    pub fn view(&self) -> ConsoleView {
        ConsoleView { shared: Arc::clone(&self.inner.shared) }
    }

    /// Waits for the first of several patterns, and marks everything up to its end as read.
    ///
    /// Every byte that comes renews `patience`.
    ///
    /// # Errors
    ///
    /// When patience runs out or the line is closed; the text stays unread.
    pub async fn expect(&mut self, patterns: &[Pattern], patience: &mut Patience) -> Result<Match, ExpectError> {
        loop {
            if let Some(found) = self.expect_unless_quiet(patterns, |_| Duration::MAX, patience).await? {
                return Ok(found);
            }
        }
    }

    /// [`Console::expect`] that also comes back, with nothing, when nothing was sent for as long as `quiet` says of the
    /// unread text, counted from now on.
    ///
    /// # Errors
    ///
    /// As [`Console::expect`].
    pub async fn expect_unless_quiet(
        &mut self,
        patterns: &[Pattern],
        quiet: impl Fn(&[u8]) -> Duration,
        patience: &mut Patience,
    ) -> Result<Option<Match>, ExpectError> {
        let what = || patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let mut matcher = Matcher::new(patterns);
        let mut lost = 0;
        let began = Instant::now();
        loop {
            let (seen, wait, prompt_at_rest) = {
                let mut state = self.inner.shared.lock();
                let gone = state.buffer.take_lost();
                if gone > 0 {
                    lost += gone;
                    matcher.forget(gone);
                }
                if let Some(found) = matcher.feed(state.buffer.unread()) {
                    return Ok(Some(take(&mut state.buffer, found, lost)));
                }
                let silence = state.last_byte.elapsed();
                let at_rest = matcher.at_rest(state.buffer.unread());
                if let Some((found, rest)) = &at_rest
                    && silence >= *rest
                {
                    let found = found.clone();
                    return Ok(Some(take(&mut state.buffer, found, lost)));
                }
                let until_quiet = quiet(state.buffer.unread()).saturating_sub(silence.min(began.elapsed()));
                let until_rest = at_rest.map(|(_, rest)| rest.saturating_sub(silence));
                (
                    state.bytes,
                    until_rest.unwrap_or(Duration::MAX).min(until_quiet),
                    until_rest.is_some_and(|r| r <= until_quiet),
                )
            };
            if self.wait(seen, wait, patience, what).await? == Wake::Rest && !prompt_at_rest {
                return Ok(None);
            }
        }
    }

    /// Waits until more than `seen` bytes came, or none came for `rest` from now on.
    pub(crate) async fn wait(
        &mut self,
        seen: u64,
        rest: Duration,
        patience: &mut Patience,
        what: impl Fn() -> String,
    ) -> Result<Wake, ExpectError> {
        let mut progress = self.inner.shared.progress.subscribe();
        let quiet = async {
            match Instant::now().checked_add(rest) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let came = async {
            // An error means that the other side is gone, which `closed` tells as well.
            let now = progress.wait_for(|p| p.bytes > seen || p.closed).await;
            now.is_ok_and(|p| p.bytes > seen)
        };
        tokio::select! {
            biased;
            came = came => {
                if came {
                    patience.renew();
                    Ok(Wake::Bytes)
                } else {
                    Err(ExpectError::Closed { what: what(), tail: self.tail(TAIL) })
                }
            }
            () = quiet => Ok(Wake::Rest),
            overdue = patience.run_out() => Err(ExpectError::Overdue { what: what(), overdue, tail: self.tail(TAIL) }),
        }
    }

    /// Types these bytes and returns when they have left for the guest.
    ///
    /// The guest's terminal holds 4095 bytes that no program has read yet and drops the rest, so whoever sends several
    /// lines waits for a sign between them.
    ///
    /// # Errors
    ///
    /// When a line is longer than [`LINE_MAX`], or the serial line is closed.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        if let Some(long) = bytes.split(|b| *b == b'\n' || *b == b'\r').map(<[u8]>::len).find(|n| *n > LINE_MAX) {
            return Err(SendError::LineTooLong(long));
        }
        self.send_raw(bytes).await
    }

    /// Types these bytes whatever they are; for a person at a terminal.
    ///
    /// # Errors
    ///
    /// When the serial line is closed.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let (done, sent) = oneshot::channel();
        let outgoing = Outgoing { bytes: bytes.to_vec(), done: Some(done) };
        self.inner.outgoing.send(outgoing).await.map_err(|_| SendError::Closed)?;
        sent.await.map_err(|_| SendError::Closed)
    }

    /// From now on also hands every raw byte to this receiver, for a terminal of a person's own. While it is held, queries
    /// are left to that terminal, and a reader that stops reading stops the guest's output, as on any terminal.
    /// A later tap replaces an earlier one.
    pub fn tap(&mut self) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(16);
        self.inner.shared.lock().tap = Some(sender);
        receiver
    }

    /// A copy of the text nobody has read yet, without escape sequences.
    pub(crate) fn unread(&self) -> Vec<u8> {
        self.inner.shared.lock().buffer.unread().to_vec()
    }

    /// Marks everything that came so far as read.
    pub fn skip_unread(&mut self) {
        let mut state = self.inner.shared.lock();
        let n = state.buffer.unread().len();
        state.buffer.consume(n);
        state.buffer.take_lost();
    }

    /// The open line as it is shown now: the prompt, if there is one.
    pub fn open_line(&self) -> String {
        self.inner.shared.lock().line.current()
    }

    /// Whether what was shown last was put at a place on the screen: an installer, a menu, an editor.
    pub(crate) fn is_full_screen(&self) -> bool {
        self.inner.shared.lock().line.is_full_screen()
    }

    /// See [`ConsoleView::tail`].
    pub fn tail(&self, n: usize) -> Vec<String> {
        self.inner.shared.tail(n)
    }

    /// See [`ConsoleView::bytes_seen`].
    pub fn bytes_seen(&self) -> u64 {
        self.inner.shared.lock().bytes
    }

    /// See [`ConsoleView::alarms`].
    pub fn alarms(&self) -> Alarms {
        Alarms::new(&self.inner.shared.alarms)
    }
}

fn take(buffer: &mut buffer::ScanBuffer, found: Found, lost: usize) -> Match {
    let before = buffer.unread()[..found.start].to_vec();
    buffer.consume(found.end);
    Match { pattern: found.pattern, before, payload: found.payload, lost }
}

/// Watches a console: progress displays, error reports, the supervisor of a guest. Goes on showing the last state when
/// the console is gone.
#[derive(Clone, Debug)]
pub struct ConsoleView {
    shared: Arc<Shared>,
}

impl ConsoleView {
    /// The last `n` lines, oldest first, the open one included, blank ones left out; fit to be shown.
    pub fn tail(&self, n: usize) -> Vec<String> {
        self.shared.tail(n)
    }

    /// How many bytes the guest has sent.
    pub fn bytes_seen(&self) -> u64 {
        self.shared.lock().bytes
    }

    /// The line a person would look at: the open one unless it is blank, else the last one.
    pub fn last_line(&self) -> watch::Receiver<String> {
        self.shared.last_line.subscribe()
    }

    /// A reader of whole lines, from the oldest that is still kept on; fit to be shown.
    pub fn lines(&self) -> Lines {
        Lines { shared: Arc::clone(&self.shared), at: 0 }
    }

    /// A reader of alarms, from the first one on.
    pub fn alarms(&self) -> Alarms {
        Alarms::new(&self.shared.alarms)
    }

    /// Why the log is incomplete, if it is.
    pub fn log_fault(&self) -> Option<LogFault> {
        self.shared.lock().log_fault.clone()
    }

    /// Returns when the guest has closed its end.
    pub async fn closed(&self) {
        let mut progress = self.shared.progress.subscribe();
        // The sender lives as long as `self`.
        let _ = progress.wait_for(|p| p.closed).await;
    }
}

/// Reads a console line by line. A reader that is too slow misses the oldest lines.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
    at: u64,
}

impl Lines {
    /// The next line that has ended and is not blank; `None` when the guest has closed its end and all was read.
    pub async fn next(&mut self) -> Option<String> {
        let mut progress = self.shared.progress.subscribe();
        loop {
            let closed = progress.borrow_and_update().closed;
            if let Some((line, next)) = self.shared.line(self.at) {
                self.at = next;
                return Some(line);
            }
            if closed {
                return None;
            }
            // The sender lives as long as `self`.
            let _ = progress.changed().await;
        }
    }
}

#[cfg(test)]
mod tests;
