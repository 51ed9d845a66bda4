//! One chardev: what Belljar sends is kept from the first byte, what goes to Belljar passes through faults.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{journal::Journal, rng::Rng};

/// What befalls the bytes on their way to Belljar.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Kernel messages, and how often in a thousand bytes one comes in between.
    pub(crate) noise: u64,
    /// Text of those messages; none means the built-in ones.
    pub(crate) noise_text: Option<Vec<u8>>,
    /// How many bytes in a thousand are lost.
    pub(crate) lose: u64,
    /// Bytes of one write; 0 means all at once.
    pub(crate) chunk: usize,
}

#[derive(Debug, Default)]
struct Input {
    bytes: Vec<u8>,
    closed: bool,
    /// So many of the next bytes are lost, as a UART loses what comes too early.
    drop: usize,
}

#[derive(Debug)]
struct Output {
    socket: UnixStream,
    faults: Faults,
    rng: Rng,
    messages: u64,
}

/// A chardev.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Its id.
    pub(crate) name: String,
    socket: UnixStream,
    output: Mutex<Output>,
    input: Mutex<Input>,
    arrived: Condvar,
    reading: Once,
    journal_kind: String,
}

/// Whether the machine has ended: nothing more is heard of it, whatever its threads still do.
static OVER: AtomicBool = AtomicBool::new(false);

/// The machine has ended.
pub(crate) fn fall_silent() {
    OVER.store(true, Ordering::Release);
}

/// Messages as a kernel writes them in the middle of anything.
const NOISE: [&str; 4] = [
    "random: crng init done",
    "clocksource: Switched to clocksource tsc",
    "systemd[1]: Started Daily apt download activities.",
    "EXT4-fs (vda1): re-mounted. Opts: errors=remount-ro",
];

impl Channel {
    /// On this socket.
    pub(crate) fn new(name: &str, socket: UnixStream) -> std::io::Result<Arc<Self>> {
        let output = Output { socket: socket.try_clone()?, faults: Faults::default(), rng: Rng::new(1), messages: 0 };
        Ok(Arc::new(Self {
            name: name.into(),
            socket,
            output: Mutex::new(output),
            input: Mutex::new(Input::default()),
            arrived: Condvar::new(),
            reading: Once::new(),
            journal_kind: format!("in:{name}"),
        }))
    }

    /// The socket itself, for one that reads on its own.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sets the faults from now on.
    pub(crate) fn set_faults(&self, faults: Faults, seed: u64) {
        let mut out = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        out.faults = faults;
        out.rng = Rng::new(seed);
    }

    /// Loses the next bytes from Belljar.
    pub(crate) fn drop_input(&self, count: usize) {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).drop += count;
    }

    /// Sends bytes through the faults; false if Belljar is gone.
    pub(crate) fn send(&self, bytes: &[u8]) -> bool {
        if OVER.load(Ordering::Acquire) {
            return false;
        }
        let mut out = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let spoilt = out.spoil(bytes);
        let size = if out.faults.chunk == 0 { spoilt.len().max(1) } else { out.faults.chunk };
        spoilt.chunks(size).all(|chunk| out.socket.write_all(chunk).is_ok())
    }

    /// Sends bytes as they are; false if Belljar is gone.
    pub(crate) fn send_exact(&self, bytes: &[u8]) -> bool {
        if OVER.load(Ordering::Acquire) {
            return false;
        }
        let mut out = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        out.socket.write_all(bytes).is_ok()
    }

    /// Closes it.
    pub(crate) fn close(&self) {
        let _already = self.socket.shutdown(Shutdown::Both);
    }

    /// Starts to take what Belljar sends.
    pub(crate) fn listen(self: &Arc<Self>, journal: Arc<Journal>) {
        self.reading.call_once(|| {
            let channel = Arc::clone(self);
            thread::spawn(move || channel.read_all(&journal));
        });
    }

    fn read_all(&self, journal: &Journal) {
        let mut chunk = [0; 4096];
        let mut socket = &self.socket;
        loop {
            let count = match socket.read(&mut chunk) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            journal.bytes(&self.journal_kind, &chunk[..count]);
            let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = input.drop.min(count);
            input.drop -= lost;
            input.bytes.extend_from_slice(&chunk[lost..count]);
            input.closed = count == 0;
            self.arrived.notify_all();
            if count == 0 {
                return;
            }
        }
    }

    /// Waits for bytes after `from`; none if the channel closed or the time passed.
    pub(crate) fn receive(&self, from: usize, deadline: Option<Instant>) -> Option<Vec<u8>> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if input.bytes.len() > from {
                return Some(input.bytes[from..].to_vec());
            }
            if input.closed {
                return None;
            }
            input = match deadline {
                None => self.arrived.wait(input).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.arrived.wait_timeout(input, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Waits for a text after `from`; gives the place after it.
    pub(crate) fn find(&self, text: &[u8], from: usize, within: Duration) -> Option<usize> {
        let deadline = Instant::now() + within;
        let mut seen = from;
        loop {
            let new = self.receive(seen, Some(deadline))?;
            seen += new.len();
            let input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
            let start = from.min(input.bytes.len());
            let found = input.bytes[start..].windows(text.len().max(1)).position(|w| w == text);
            if let Some(at) = found {
                return Some(start + at + text.len());
            }
        }
    }

    /// Whether Belljar has closed it.
    pub(crate) fn is_closed(&self) -> bool {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// How many bytes have come so far.
    pub(crate) fn received(&self) -> usize {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).bytes.len()
    }
}

impl Output {
    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (noise, lose) = (self.faults.noise, self.faults.lose);
        if noise == 0 && lose == 0 {
            return bytes.to_vec();
        }
        let mut spoilt = Vec::with_capacity(bytes.len() * 2);
        for &byte in bytes {
            if noise > 0 && self.rng.chance(noise) {
                self.messages += 1;
                let built_in = NOISE[self.rng.below(NOISE.len())].as_bytes();
                let text = self.faults.noise_text.as_deref().unwrap_or(built_in);
                spoilt.extend_from_slice(format!("[{:5}.{:06}] ", self.messages, self.rng.below(1_000_000)).as_bytes());
                spoilt.extend_from_slice(text);
                spoilt.extend_from_slice(b"\r\n");
            }
            if lose == 0 || !self.rng.chance(lose) {
                spoilt.push(byte);
            }
        }
        spoilt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<Channel>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        (Channel::new("console", ours).expect("channel"), theirs)
    }

    #[test]
    fn early_bytes_are_lost_and_the_rest_is_found() {
        let (channel, mut belljar) = pair();
        channel.drop_input(3);
        channel.listen(Arc::new(Journal::default()));
        belljar.write_all(b"xyzhello world").expect("write");
        let after = channel.find(b"hello", 0, Duration::from_secs(5)).expect("found");
        assert_eq!(after, 5);
        assert_eq!(channel.find(b" world", after, Duration::from_secs(5)), Some(11));
        drop(belljar);
        assert_eq!(channel.find(b"more", 11, Duration::from_secs(5)), None);
    }

    #[test]
    fn noise_leaves_the_bytes_in_order() {
        let (channel, _belljar) = pair();
        channel.set_faults(Faults { noise: 200, ..Faults::default() }, 5);
        let mut out = channel.output.lock().expect("lock");
        let spoilt = out.spoil(b"abcdefghijklmnop");
        assert!(spoilt.len() > 16, "some message came");
        let text = String::from_utf8(spoilt).expect("text");
        let rest: String = text.split("\r\n").map(|l| l.split('[').next().unwrap_or("")).collect();
        assert_eq!(rest, "abcdefghijklmnop");
    }
}
