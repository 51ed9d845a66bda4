//! Frames on their way to Belljar, and what becomes of them.

use std::sync::{Arc, Mutex, PoisonError};

use belljar_proto::{
    frame::{Encoder, Kind},
    message::ToHost,
};

use crate::{channel::Channel, rng::Rng};

/// How frames are spoilt.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    /// `right`, `wrong` or `zero`: the tag after the greeting.
    pub(crate) session: String,
    /// So many random bytes before every frame.
    pub(crate) garbage: u64,
    /// For the garbage.
    pub(crate) seed: u64,
    /// Nothing more is sent after so many frames since the greeting.
    pub(crate) silent_after: Option<u64>,
    /// The port closes in the middle of the frame after so many since the greeting.
    pub(crate) eof_after: Option<u64>,
    /// Every byte in a write of its own.
    pub(crate) split: bool,
    /// Every frame twice.
    pub(crate) duplicate: bool,
}

#[derive(Debug)]
struct Inner {
    encoder: Encoder,
    greeted: bool,
    sent: u64,
    closed: bool,
    rng: Rng,
}

/// The way to Belljar.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    channel: Arc<Channel>,
    manners: Manners,
    inner: Arc<Mutex<Inner>>,
}

impl Port {
    /// On this channel.
    pub(crate) fn new(channel: Arc<Channel>, manners: Manners) -> Self {
        let rng = Rng::new(manners.seed);
        let inner = Inner { encoder: Encoder::new(0), greeted: false, sent: 0, closed: false, rng };
        Self { channel, manners, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Which channel it is.
    pub(crate) fn name(&self) -> &str {
        &self.channel.name
    }

    /// From here on frames carry the session's tag; 0 is none.
    pub(crate) fn begin(&self, session: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.greeted = session != 0;
        inner.encoder = Encoder::new(match self.manners.session.as_str() {
            _ if session == 0 => 0,
            "wrong" => !session,
            "zero" => 0,
            _ => session,
        });
    }

    /// Sends a message.
    pub(crate) fn say(&self, message: &ToHost) -> bool {
        self.frame(|encoder, out| {
            // Only output is long, and that is no message.
            let _short = encoder.message(message, out);
        })
    }

    /// Sends a message under another tag than the session's.
    pub(crate) fn forge(&self, session: u64, message: &ToHost) {
        let mut out = Vec::new();
        if Encoder::new(session).message(message, &mut out).is_ok() {
            self.channel.send(&out);
        }
    }

    /// Sends output of a command.
    pub(crate) fn output(&self, kind: Kind, id: u32, bytes: &[u8]) -> bool {
        self.frame(|encoder, out| encoder.bytes(kind, id, bytes, out))
    }

    /// False when nothing more goes out.
    fn frame(&self, encode: impl FnOnce(&Encoder, &mut Vec<u8>)) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.closed {
            return false;
        }
        let count = inner.greeted.then_some(inner.sent);
        let over = |limit: Option<u64>| count.is_some_and(|sent| limit.is_some_and(|n| sent >= n));
        if over(self.manners.silent_after) {
            return false;
        }
        let mut out = Vec::new();
        for _ in 0..self.manners.garbage {
            // Beginnings of frames are the nastiest garbage.
            let byte = match inner.rng.below(4) {
                0 => 0xB7,
                1 => 0x1A,
                _ => inner.rng.next().to_le_bytes()[0],
            };
            out.push(byte);
        }
        if over(self.manners.eof_after) {
            encode(&inner.encoder, &mut out);
            inner.closed = true;
            self.channel.send_exact(&out[..out.len() / 2]);
            self.channel.close();
            return false;
        }
        let start = out.len();
        encode(&inner.encoder, &mut out);
        if self.manners.duplicate {
            out.extend_from_within(start..);
        }
        if inner.greeted {
            inner.sent += 1;
        }
        if self.manners.split {
            out.chunks(1).all(|byte| self.channel.send_exact(byte))
        } else {
            self.channel.send(&out)
        }
    }
}
