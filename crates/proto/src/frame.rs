//! Frames: how messages and bulk bytes travel over a port.
//!
//! A port is a byte stream (a virtio port or a serial line) that may hold rubbish: what an earlier owner
//! left, half a frame from before a resume, bytes lost by a UART. A frame is therefore found by its
//! magic and believed by its checksum only.
//!
//! # Format, version 1
//!
//! ```text
//! offset  size  what
//!      0     2  magic, B7 1A
//!      2     1  version of this format, 1
//!      3     1  kind: 0 control, 1 stdout, 2 stderr, 3 stdin, 4 part of a control message
//!      4     4  exec id, little endian; 0 where no command is meant
//!      8     8  session tag, little endian; 0 before the session
//!     16     4  length of the payload, little endian, at most 65536
//!     20     4  CRC-32 (IEEE) of bytes 0..20 and of the payload, little endian
//!     24     …  payload
//! ```
//!
//! The payload of a control frame is one message ([`crate::message`]) in postcard. A message that is longer than one
//! frame goes as `part` frames, its last piece as a `control` frame; the receiver sets the limit
//! ([`Assembler`]). The other kinds carry raw bytes of the command named by the exec id.
//!
//! The checksum guards against loss and chance, not against malice: whoever holds the port can forge frames. What ties
//! a result to an attempt is the session tag and the nonce within the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = [0xB7, 0x1A];
/// Version of the frame format, third byte of every frame.
pub const FORMAT: u8 = 1;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 24;
/// Longest payload of one frame, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Longest message that the agent accepts, in bytes. Above the kernel's usual limit for arguments and environment
/// (2 MiB), so that the kernel's own `E2BIG` is what a person sees.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// What a frame's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A whole message, or the last piece of one.
    Control = 0,
    /// Bytes of a command's standard output.
    Stdout = 1,
    /// Bytes of a command's standard error.
    Stderr = 2,
    /// Bytes for a command's standard input.
    Stdin = 3,
    /// A piece of a message, not the last.
    Part = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Control,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Stdin,
            4 => Self::Part,
            _ => return None,
        })
    }
}

/// One frame as received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// Which command, 0 for none.
    pub exec: u32,
    /// Tag of the session, 0 before it.
    pub session: u64,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Why bytes at some place are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    /// They do not begin with [`MAGIC`].
    #[error("no magic")]
    Magic,
    /// Another version of the format.
    #[error("frame format {0} instead of {FORMAT}")]
    Format(u8),
    /// No such kind.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// Longer than [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes, more than {MAX_PAYLOAD}")]
    Length(u32),
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
}

/// Bytes that were passed over to get to the next frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{skipped} bytes on the port are not frames ({first})")]
pub struct FrameError {
    /// How many bytes.
    pub skipped: u64,
    /// What was wrong at the first of them.
    pub first: Defect,
}

/// Finds frames in a byte stream.
///
/// Give it bytes with [`push`](Self::push), then take everything with [`next_frame`](Self::next_frame) until it returns
/// `None`; after that it holds less than one longest frame.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    skipped: u64,
    first: Option<Defect>,
}

enum Look {
    More,
    Bad(Defect),
    Good { kind: Kind, end: usize },
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes taken in and not yet given out or passed over.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// The next frame, or how many bytes had to be passed over, or `None` where more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`] says that bytes were passed over; the decoder goes on after them.
    pub fn next_frame(&mut self) -> Option<Result<Frame, FrameError>> {
        loop {
            let rest = &self.buffer[self.start..];
            match look(rest) {
                Look::Bad(defect) => {
                    // The first byte is wrong whatever the reason; a frame may begin inside what looked like one.
                    let skip = rest[1..].iter().position(|&byte| byte == MAGIC[0]).map_or(rest.len(), |at| at + 1);
                    self.start += skip;
                    self.skipped += skip as u64;
                    self.first.get_or_insert(defect);
                }
                Look::More => return self.take_error().map(Err),
                Look::Good { kind, end } => {
                    if let Some(error) = self.take_error() {
                        return Some(Err(error));
                    }
                    let rest = &self.buffer[self.start..];
                    let frame = Frame {
                        kind,
                        exec: u32_at(rest, 4),
                        session: u64_at(rest, 8),
                        payload: rest[HEADER_LEN..end].to_vec(),
                    };
                    self.start += end;
                    return Some(Ok(frame));
                }
            }
        }
    }

    fn take_error(&mut self) -> Option<FrameError> {
        let first = self.first.take()?;
        Some(FrameError { skipped: std::mem::take(&mut self.skipped), first })
    }
}

/// What the bytes at hand begin with.
fn look(bytes: &[u8]) -> Look {
    for (at, magic) in MAGIC.iter().enumerate() {
        match bytes.get(at) {
            None => return Look::More,
            Some(byte) if byte != magic => return Look::Bad(Defect::Magic),
            Some(_) => {}
        }
    }
    match bytes.get(2) {
        None => return Look::More,
        Some(&FORMAT) => {}
        Some(&other) => return Look::Bad(Defect::Format(other)),
    }
    let kind = match bytes.get(3) {
        None => return Look::More,
        Some(&byte) => match Kind::from_byte(byte) {
            Some(kind) => kind,
            None => return Look::Bad(Defect::Kind(byte)),
        },
    };
    if bytes.len() < 20 {
        return Look::More;
    }
    let length = u32_at(bytes, 16);
    if length as usize > MAX_PAYLOAD {
        return Look::Bad(Defect::Length(length));
    }
    let end = HEADER_LEN + length as usize;
    if bytes.len() < end {
        return Look::More;
    }
    if checksum(&bytes[..20], &bytes[HEADER_LEN..end]) != u32_at(bytes, 20) {
        return Look::Bad(Defect::Checksum);
    }
    Look::Good { kind, end }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Writes the header of a frame whose payload is already in place: `buffer` is [`HEADER_LEN`] bytes of room and then the
/// payload. Saves a copy where bytes are read straight from a pipe.
///
/// # Panics
/// If `buffer` is shorter than a header, or its payload longer than [`MAX_PAYLOAD`].
pub fn seal(buffer: &mut [u8], kind: Kind, exec: u32, session: u64) {
    let (header, payload) = buffer.split_at_mut(HEADER_LEN);
    assert!(payload.len() <= MAX_PAYLOAD, "payload too long");
    let length = payload.len() as u32;
    header[0..2].copy_from_slice(&MAGIC);
    header[2] = FORMAT;
    header[3] = kind as u8;
    header[4..8].copy_from_slice(&exec.to_le_bytes());
    header[8..16].copy_from_slice(&session.to_le_bytes());
    header[16..20].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&header[..20], payload);
    header[20..24].copy_from_slice(&sum.to_le_bytes());
}

/// Makes frames of one session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoder {
    /// Goes into every frame; 0 before the session.
    pub session: u64,
}

impl Encoder {
    /// Frames with this session tag.
    #[must_use]
    pub fn new(session: u64) -> Self {
        Self { session }
    }

    /// Appends raw bytes as one frame, or as several where they are longer than [`MAX_PAYLOAD`].
    /// No bytes make no frame.
    pub fn bytes(&self, kind: Kind, exec: u32, bytes: &[u8], out: &mut Vec<u8>) {
        for chunk in bytes.chunks(MAX_PAYLOAD) {
            self.one(kind, exec, chunk, out);
        }
    }

    /// Appends a message.
    ///
    /// # Errors
    /// [`MessageError::TooLong`] above [`MAX_MESSAGE`] bytes; nothing is appended then.
    pub fn message<T: Serialize>(&self, message: &T, out: &mut Vec<u8>) -> Result<(), MessageError> {
        let bytes = to_bytes(message)?;
        let mut rest = bytes.as_slice();
        while rest.len() > MAX_PAYLOAD {
            let (part, tail) = rest.split_at(MAX_PAYLOAD);
            self.one(Kind::Part, 0, part, out);
            rest = tail;
        }
        self.one(Kind::Control, 0, rest, out);
        Ok(())
    }

    fn one(&self, kind: Kind, exec: u32, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.reserve(HEADER_LEN + payload.len());
        out.resize(start + HEADER_LEN, 0);
        out.extend_from_slice(payload);
        seal(&mut out[start..], kind, exec, self.session);
    }
}

/// A message that could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than the receiver takes.
    #[error("a message of more than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The bytes are no message.
    #[error("a message that cannot be read: {0}")]
    Malformed(postcard::Error),
    /// Bytes are left over after the message.
    #[error("a message with {0} bytes too many")]
    Trailing(usize),
    /// The frame carries bulk bytes, not a message.
    #[error("a {0:?} frame where a message was expected")]
    NotControl(Kind),
}

/// A message as bytes, for a frame or a file.
///
/// # Errors
/// [`MessageError::TooLong`] above [`MAX_MESSAGE`] bytes.
pub fn to_bytes<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let bytes = postcard::to_allocvec(message).map_err(MessageError::Malformed)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(MessageError::TooLong { limit: MAX_MESSAGE });
    }
    Ok(bytes)
}

/// The message in these bytes, all of them.
///
/// # Errors
/// [`MessageError::Malformed`] or [`MessageError::Trailing`].
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    let (message, rest) = postcard::take_from_bytes(bytes).map_err(MessageError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(MessageError::Trailing(rest.len())) }
}

/// Puts messages together from control and part frames.
#[derive(Debug)]
pub struct Assembler {
    limit: usize,
    parts: Vec<u8>,
}

impl Assembler {
    /// Takes messages of up to this many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, parts: Vec::new() }
    }

    /// Takes in a control or part frame; gives a message with its last piece.
    ///
    /// # Errors
    /// [`MessageError`]; the pieces so far are forgotten.
    pub fn push<T: DeserializeOwned>(&mut self, frame: &Frame) -> Result<Option<T>, MessageError> {
        if self.parts.len() + frame.payload.len() > self.limit {
            self.parts = Vec::new();
            return Err(MessageError::TooLong { limit: self.limit });
        }
        match frame.kind {
            Kind::Part => {
                self.parts.extend_from_slice(&frame.payload);
                Ok(None)
            }
            Kind::Control if self.parts.is_empty() => from_bytes(&frame.payload).map(Some),
            Kind::Control => {
                let mut bytes = std::mem::take(&mut self.parts);
                bytes.extend_from_slice(&frame.payload);
                from_bytes(&bytes).map(Some)
            }
            other => Err(MessageError::NotControl(other)),
        }
    }
}

#[cfg(test)]
mod tests;
