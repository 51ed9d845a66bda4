//! Bytes to messages. QEMU writes one JSON object a line.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::QmpEvent;

/// The longest message that is taken, in bytes. The largest that QEMU sends, its own schema, is under 1 MiB.
pub const MAX_MESSAGE: usize = 8 << 20;

/// One message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first one.
    Greeting(Greeting),
    /// A command's result.
    Return {
        /// The number given with the command.
        id: Option<u64>,
        /// The result, often `{}`.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// The number given with the command; none if QEMU could not even read it.
        id: Option<u64>,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// Told unasked.
    Event(QmpEvent),
}

/// What QEMU says when the channel opens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Greeting {
    /// As `query-version` answers.
    pub version: super::Version,
    /// Optional parts of the protocol, such as `oob`.
    #[serde(default)]
    pub capabilities: Vec<Value>,
}

/// What came is not QMP. The channel cannot be used after it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A line without an end.
    #[error("a message is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// A line that is no JSON object, or is nested too deeply.
    #[error("a message is not JSON: {reason}: {line:?}")]
    NotJson {
        /// The parser's words.
        reason: String,
        /// How the line begins.
        line: String,
    },
    /// An object that is no message.
    #[error("a message is of no known kind: {line:?}")]
    Unknown {
        /// How the line begins.
        line: String,
    },
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    qmp: Option<Greeting>,
    // `Option<Value>` takes `null` for absent: nothing that QEMU returns is a bare null.
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<ErrorBody>,
    #[serde(default)]
    id: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<super::QmpTimestamp>,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// Takes bytes as they come and gives messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Everything before this was given out.
    start: usize,
    /// No line ends before this, so that a long line is searched once.
    searched: usize,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what came. After a failure bytes are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole message; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// Where a line is no message; the same error again ever after.
    #[expect(clippy::should_implement_trait, reason = "an iterator that ends and goes on would mislead")]
    pub fn next(&mut self) -> Result<Option<Message>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = Vec::new();
        })
    }

    fn advance(&mut self) -> Result<Option<Message>, DecodeError> {
        loop {
            let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) else {
                self.searched = self.buffer.len();
                let waiting = self.buffer.len() - self.start;
                return if waiting > MAX_MESSAGE { Err(DecodeError::TooLong) } else { Ok(None) };
            };
            let end = self.searched + length;
            let line = &self.buffer[self.start..end];
            (self.start, self.searched) = (end + 1, end + 1);
            if line.len() > MAX_MESSAGE {
                return Err(DecodeError::TooLong);
            }
            if !line.trim_ascii().is_empty() {
                return parse(line).map(Some);
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Message, DecodeError> {
    let head = || String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
    let parsed: Line = serde_json::from_slice(line)
        .map_err(|error| DecodeError::NotJson { reason: error.to_string(), line: head() })?;
    let id = parsed.id.as_ref().and_then(Value::as_u64);
    if let Some(name) = parsed.event {
        let timestamp = parsed.timestamp.unwrap_or_default();
        return Ok(Message::Event(QmpEvent { name, data: parsed.data, timestamp }));
    }
    if let Some(ErrorBody { class, desc }) = parsed.error {
        return Ok(Message::Error { id, class, desc });
    }
    if let Some(value) = parsed.value {
        return Ok(Message::Return { id, value });
    }
    if let Some(greeting) = parsed.qmp {
        return Ok(Message::Greeting(greeting));
    }
    Err(DecodeError::Unknown { line: head() })
}
