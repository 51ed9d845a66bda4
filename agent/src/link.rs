//! Frames over the port, without ever waiting for it.
//!
//! Control frames go before bulk, but for a bulk frame that is already on its way. There is at most one bulk frame, so
//! a host that does not read stops the reading of commands' output, and memory stays bounded.

use std::os::fd::{AsFd, BorrowedFd};

use belljar_proto::frame::{
    Assembler, Decoder, Encoder, Frame, FrameError, HEADER_LEN, Kind, MAX_MESSAGE, MAX_PAYLOAD, MessageError, seal,
};
use belljar_proto::message::{ToAgent, ToHost};
use rustix::io::Errno;

use crate::port::{self, Port};

/// Bytes of control frames above which the port is read no further: whoever asks that much has to take the answers.
const MAX_CONTROL: usize = 256 * 1024;

/// Longest payload of bulk on a serial line, in bytes.
const SERIAL_PAYLOAD: usize = 4096;

/// The port is gone, for now or for good.
#[derive(Debug)]
pub(crate) struct Lost;

/// What came over the link.
pub(crate) enum Incoming {
    /// A message; `session` is the tag of its frame.
    Message { session: u64, message: Box<ToAgent> },
    /// Standard input of a command.
    Stdin(Frame),
    /// Bytes that are no frames.
    Garbage(FrameError),
    /// A frame whose message cannot be read.
    Unreadable { session: u64, error: MessageError },
}

/// The port and what is under way on it.
pub(crate) struct Link {
    port: Port,
    decoder: Decoder,
    assembler: Assembler,
    pub(crate) encoder: Encoder,
    control: Vec<u8>,
    control_sent: usize,
    bulk: Box<[u8]>,
    bulk_sent: usize,
    bulk_end: usize,
}

impl Link {
    pub(crate) fn new(port: Port) -> Self {
        Self {
            port,
            decoder: Decoder::new(),
            assembler: Assembler::new(MAX_MESSAGE),
            encoder: Encoder::default(),
            control: Vec::new(),
            control_sent: 0,
            bulk: vec![0; HEADER_LEN + MAX_PAYLOAD].into_boxed_slice(),
            bulk_sent: 0,
            bulk_end: 0,
        }
    }

    pub(crate) fn kind(&self) -> port::Kind {
        self.port.kind
    }

    /// The port itself, for the process that goes on with it.
    pub(crate) fn port(&self) -> &Port {
        &self.port
    }

    /// Forgets what was under way: the port begins anew.
    pub(crate) fn restart(&mut self) {
        self.decoder = Decoder::new();
        self.assembler = Assembler::new(MAX_MESSAGE);
        self.encoder = Encoder::default();
        self.control.clear();
        self.control_sent = 0;
        self.bulk_sent = 0;
        self.bulk_end = 0;
    }

    /// Queues a message, to go with the next [`flush`](Self::flush).
    pub(crate) fn queue(&mut self, message: &ToHost) {
        // Fails for messages above the limit only, and the agent's are short.
        let _ = self.encoder.message(message, &mut self.control);
    }

    /// Whether everything is sent, and bulk may be read.
    pub(crate) fn is_idle(&self) -> bool {
        self.control.is_empty() && self.bulk_sent == self.bulk_end
    }

    /// Whether more messages may be read.
    pub(crate) fn may_read(&self) -> bool {
        self.control.len() - self.control_sent < MAX_CONTROL
    }

    /// Reads bulk bytes straight into a frame. `read` gets the room and gives how many bytes it filled; for none nothing is sent.
    /// To be used only when [`is_idle`](Self::is_idle).
    pub(crate) fn bulk<E>(
        &mut self,
        kind: Kind,
        exec: u32,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        debug_assert!(self.bulk_sent == self.bulk_end);
        // A serial line takes most of a second for a longest frame, during which no answer gets through.
        let room = if self.port.kind == port::Kind::Serial { SERIAL_PAYLOAD } else { MAX_PAYLOAD };
        let filled = read(&mut self.bulk[HEADER_LEN..HEADER_LEN + room])?;
        if filled > 0 {
            let end = HEADER_LEN + filled;
            seal(&mut self.bulk[..end], kind, exec, self.encoder.session);
            self.bulk_sent = 0;
            self.bulk_end = end;
        }
        Ok(filled)
    }

    /// Sends what the port takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        loop {
            let in_bulk = self.bulk_sent < self.bulk_end;
            let rest =
                if in_bulk { &self.bulk[self.bulk_sent..self.bulk_end] } else { &self.control[self.control_sent..] };
            if rest.is_empty() {
                return Ok(());
            }
            let sent = match rustix::io::write(&self.port.fd, rest) {
                Ok(sent) => sent,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Lost),
            };
            if in_bulk {
                self.bulk_sent += sent;
            } else {
                self.control_sent += sent;
                if self.control_sent == self.control.len() {
                    self.control.clear();
                    self.control_sent = 0;
                }
            }
        }
    }

    /// Takes in what the port has now, up to a bound; [`next`](Self::next) then gives it out.
    pub(crate) fn fill(&mut self) -> Result<(), Lost> {
        // A virtio port gives 4 KiB at a time.
        let mut buffer = [0; 16 * 1024];
        for _ in 0..16 {
            match rustix::io::read(&self.port.fd, &mut buffer) {
                Ok(0) if self.port.kind == port::Kind::Serial => return Ok(()),
                Ok(0) => return Err(Lost),
                Ok(read) => self.decoder.push(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Lost),
            }
        }
        Ok(())
    }

    /// The next of what was taken in.
    pub(crate) fn next(&mut self) -> Option<Incoming> {
        loop {
            let frame = match self.decoder.next_frame()? {
                Ok(frame) => frame,
                Err(error) => return Some(Incoming::Garbage(error)),
            };
            let session = frame.session;
            if frame.kind == Kind::Stdin {
                return Some(Incoming::Stdin(frame));
            }
            match self.assembler.push(&frame) {
                Ok(Some(message)) => return Some(Incoming::Message { session, message: Box::new(message) }),
                Ok(None) => {}
                Err(error) => return Some(Incoming::Unreadable { session, error }),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}
