//! The tasks behind a console: one drains, one writes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::ConsoleOptions;
use super::alarm::{AlarmLog, Scanner};
use super::buffer::ScanBuffer;
use super::escape::{Parser, Token};
use super::line::LineEditor;
use super::query;

/// Answers to terminal queries that may be sent at once, and how fast more are allowed: a guest that floods us with
/// queries must not make us flood it.
const ANSWERS_BURST: u32 = 32;
const ANSWER_EVERY: Duration = Duration::from_millis(100);

/// Most shells of Belljar's own whose words are known.
const MOST_TAGS: usize = 4;

/// Most bytes that are taken at once; a serial line brings few.
const READ_SIZE: usize = 16 * 1024;

/// Bytes to be typed.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) done: Option<oneshot::Sender<()>>,
}

/// How far the console is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) bytes: u64,
    pub(super) closed: bool,
}

/// What the draining task and the console's holders share.
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) last_line: watch::Sender<String>,
    pub(super) alarms: Arc<AlarmLog>,
}

pub(super) struct State {
    pub(super) buffer: ScanBuffer,
    pub(super) line: LineEditor,
    pub(super) bytes: u64,
    pub(super) last_byte: Instant,
    pub(super) log_fault: Option<LogFault>,
    pub(super) tap: Option<mpsc::Sender<Vec<u8>>>,
    parser: Parser,
    lines: VecDeque<String>,
    /// How many lines there were in all.
    ended: u64,
    lines_limit: usize,
    /// How the words begin that Belljar's own shell says on the line.
    own: Vec<String>,
    scanner: Scanner,
    allowance: u32,
    allowed: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let progress = *self.progress.borrow();
        f.debug_struct("Console")
            .field("bytes", &progress.bytes)
            .field("closed", &progress.closed)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(options: &ConsoleOptions) -> Self {
        Shared {
            state: Mutex::new(State {
                buffer: ScanBuffer::new(options.unread_limit),
                line: LineEditor::new(options.size.0, options.size.1),
                bytes: 0,
                last_byte: Instant::now(),
                log_fault: None,
                tap: None,
                parser: Parser::default(),
                lines: VecDeque::new(),
                ended: 0,
                lines_limit: options.tail_limit,
                own: Vec::new(),
                scanner: Scanner::default(),
                allowance: ANSWERS_BURST,
                allowed: Instant::now(),
            }),
            progress: watch::Sender::new(Progress::default()),
            last_line: watch::Sender::new(String::new()),
            alarms: AlarmLog::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it; and if something did, old text beats no text.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Words `<TAG:...>` are Belljar's own: a line of nothing else is not kept for a person.
    pub(super) fn leave_out(&self, tag: &str) {
        let own = &mut self.lock().own;
        // Those before are of shells that have given way.
        own.truncate(MOST_TAGS - 1);
        own.insert(0, format!("<{tag}:"));
    }

    pub(super) fn tail(&self, n: usize) -> Vec<String> {
        let state = self.lock();
        let open = state.line.current();
        let is_shown = !open.trim().is_empty() && !is_own(&open, &state.own);
        let lines = state.lines.iter().cloned().chain(is_shown.then_some(open));
        let all: Vec<String> = lines.collect();
        all[all.len().saturating_sub(n)..].to_vec()
    }

    /// Line number `at` of all, or the oldest that is still kept if that is gone; with the number after it.
    pub(super) fn line(&self, at: u64) -> Option<(String, u64)> {
        let state = self.lock();
        let oldest = state.ended - state.lines.len() as u64;
        let at = at.max(oldest);
        let line = state.lines.get(usize::try_from(at - oldest).ok()?)?.clone();
        Some((line, at + 1))
    }

    /// Takes a chunk; returns the answers to the queries in it, and the tap.
    pub(super) fn take(&self, chunk: &[u8]) -> (Vec<Vec<u8>>, Option<mpsc::Sender<Vec<u8>>>) {
        let mut state = self.lock();
        let state = &mut *state;
        let mut answers = Vec::new();
        state.bytes += chunk.len() as u64;
        state.last_byte = Instant::now();
        state.refill();
        state.tap.take_if(|tap| tap.is_closed());
        let State { buffer, line, parser, lines, ended, lines_limit, own, scanner, bytes, tap, allowance, .. } = state;
        parser.advance(chunk, &mut |token| {
            match token {
                Token::Text(text) => buffer.push(text),
                Token::Control(b @ (b'\n' | b'\r' | b'\t' | 0x08)) => buffer.push(&[b]),
                _ => {}
            }
            line.feed(&token, &mut |done| {
                if done.trim().is_empty() {
                    return;
                }
                if let Some(kind) = scanner.line(&done) {
                    self.alarms.raise(kind, &done, *bytes);
                }
                if is_own(&done, own) {
                    return;
                }
                if lines.len() >= *lines_limit {
                    lines.pop_front();
                }
                lines.push_back(done);
                *ended += 1;
            });
            if let Some(answer) = query::answer(&token, line.cursor(), line.size())
                && tap.is_none()
                && *allowance > 0
            {
                *allowance -= 1;
                answers.push(answer);
            }
        });
        let open = line.current();
        if let Some(kind) = scanner.open_line(&open) {
            self.alarms.raise(kind, &open, *bytes);
        }
        let show = if open.trim().is_empty() { lines.back().cloned().unwrap_or_default() } else { open };
        self.last_line.send_if_modified(|last| {
            let changed = *last != show;
            if changed {
                *last = show;
            }
            changed
        });
        let bytes = *bytes;
        self.progress.send_modify(|p| p.bytes = bytes);
        (answers, tap.clone())
    }

    fn close(&self) {
        self.progress.send_modify(|p| p.closed = true);
    }
}

/// Whether a line has nothing but words that begin so and end with the next `>`, which may be missing from the last one.
fn is_own(line: &str, begins: &[String]) -> bool {
    let mut rest = line.trim();
    while let Some(word) = begins.iter().find_map(|begin| rest.strip_prefix(begin.as_str())) {
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != ':').unwrap_or(word.len());
        let after = &word[end..];
        rest = after.strip_prefix('>').unwrap_or(after).trim_start();
        if rest.is_empty() {
            return true;
        }
    }
    false
}

impl State {
    fn refill(&mut self) {
        let earned = self.allowed.elapsed().as_millis() / ANSWER_EVERY.as_millis();
        if earned > 0 {
            self.allowed = Instant::now();
            self.allowance =
                self.allowance.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(ANSWERS_BURST);
        }
    }
}

/// Why a console's log is incomplete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFault {
    /// It reached the limit that was set for it, in bytes.
    #[error("the console log reached its limit of {0} bytes")]
    Limit(u64),
    /// It could not be written, for want of space perhaps.
    #[error("writing the console log failed: {0}; it ends at that point")]
    Write(String),
}

/// The raw log, up to a limit.
pub(super) struct CappedLog {
    log: Option<Box<dyn io::Write + Send>>,
    left: u64,
    limit: u64,
}

impl CappedLog {
    pub(super) fn new(log: Box<dyn io::Write + Send>, limit: u64) -> Self {
        CappedLog { log: Some(log), left: limit, limit }
    }

    /// Writes what there is room for. After the first failure nothing more is written: a log with a hole in it misleads.
    fn write(&mut self, chunk: &[u8]) -> Result<(), LogFault> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len());
        let mut result = log.write_all(&chunk[..n]);
        self.left -= n as u64;
        let full = n < chunk.len();
        if full && result.is_ok() {
            result = log.write_all(format!("\n[belljar: the log ends here, at {} bytes]\n", self.limit).as_bytes());
        }
        result = result.and_then(|()| log.flush());
        if full || result.is_err() {
            self.log = None;
        }
        match result {
            Ok(()) if full => Err(LogFault::Limit(self.limit)),
            Ok(()) => Ok(()),
            Err(e) => Err(LogFault::Write(e.to_string())),
        }
    }
}

/// Drains the line until its end.
pub(super) async fn drain(
    mut reader: impl AsyncRead + Unpin,
    mut log: CappedLog,
    shared: Arc<Shared>,
    outgoing: mpsc::WeakSender<Outgoing>,
) {
    let mut chunk = Vec::with_capacity(READ_SIZE);
    loop {
        chunk.clear();
        match reader.read_buf(&mut chunk).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            // A pseudo-terminal whose other side is gone says EIO; a socket says ECONNRESET.
            Err(_) => break,
        }
        if let Err(fault) = log.write(&chunk) {
            shared.lock().log_fault = Some(fault);
        }
        let (answers, tap) = shared.take(&chunk);
        if let Some(outgoing) = outgoing.upgrade() {
            for bytes in answers {
                // When the queue is full, the guest is not reading; it will not miss this.
                let _ = outgoing.try_send(Outgoing { bytes, done: None });
            }
        }
        if let Some(tap) = tap {
            // A receiver that is gone is noticed at the next chunk.
            let _ = tap.send(chunk.clone()).await;
        }
        // So that readers get their turn under a flood.
        tokio::task::yield_now().await;
    }
    shared.close();
}

/// Writes what is queued. Apart from the draining task, since a guest that does not read must not keep us from reading.
pub(super) async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { bytes, done }) = queue.recv().await {
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
        if let Some(done) = done {
            // Whoever sent it may have given up waiting.
            let _ = done.send(());
        }
    }
}
