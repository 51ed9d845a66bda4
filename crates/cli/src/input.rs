//! Our standard input, read without the terminal stopping us for it.
//!
//! A process that reads from its terminal while it is in the background is stopped (`SIGTTIN`), whether or not it needs what it
//! reads; and a command in a guest may never read at all. So the reading thread has that signal blocked: the kernel then answers
//! with an error (`EIO`) instead, and the thread waits until it is in the foreground.

use std::{
    io::{self, Read},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// How often it is looked whether we are in the foreground: nobody is told of that.
const LOOK: Duration = Duration::from_millis(200);

/// Standard input. Nothing is read before somebody wants to.
pub(crate) struct Input {
    pieces: Option<mpsc::Receiver<io::Result<Vec<u8>>>>,
    started: bool,
    rest: Vec<u8>,
    taken: usize,
}

impl Input {
    /// Ours.
    pub(crate) fn new() -> Self {
        Self { pieces: None, started: false, rest: Vec::new(), taken: 0 }
    }

    fn start(&mut self) {
        let (sender, receiver) = mpsc::channel(1);
        self.pieces = Some(receiver);
        // A thread of its own: one that waits for a person cannot be called back, and must not keep a runtime from ending.
        thread::spawn(move || read_all(&sender));
    }
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.started {
            self.started = true;
            self.start();
        }
        if self.taken == self.rest.len() {
            let Some(pieces) = &mut self.pieces else { return Poll::Ready(Ok(())) };
            match std::task::ready!(pieces.poll_recv(cx)) {
                Some(Ok(piece)) => (self.rest, self.taken) = (piece, 0),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    self.pieces = None;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let this = &mut *self;
        let count = buf.remaining().min(this.rest.len() - this.taken);
        buf.put_slice(&this.rest[this.taken..this.taken + count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

fn read_all(sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTTIN);
    // Where it could not be blocked, all that is lost is that we may be stopped.
    let _ = blocked.thread_block();
    let mut chunk = vec![0; CHUNK];
    loop {
        let piece = match io::stdin().lock().read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => Ok(chunk[..count].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) && is_in_background(io::stdin()) => {
                thread::sleep(LOOK);
                continue;
            }
            // A terminal that is gone, as after a hang-up that we were told to outlive.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) && is_device() => return,
            // Whoever left a pipe or a socket in non-blocking mode.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let stdin = io::stdin();
                let mut ready = [rustix::event::PollFd::new(&stdin, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut ready, None);
                continue;
            }
            Err(error) => Err(error),
        };
        let is_end = piece.is_err();
        if sender.blocking_send(piece).is_err() || is_end {
            return;
        }
    }
}

/// Whether this is our controlling terminal, and belongs to another job at the moment.
pub(crate) fn is_in_background(terminal: impl AsFd) -> bool {
    // Of a group outside of our PID namespace the system says 0, which rustix does not expect.
    let own = || std::fs::read_to_string("/proc/self/stat").ok()?.rsplit_once(')')?.1.split(' ').nth(3)?.parse().ok();
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| own().is_none_or(|own: i32| own != group.as_raw_pid()))
}

/// Comes back when standard input's terminal is ours to use.
pub(crate) async fn until_in_foreground() {
    while is_in_background(io::stdin()) {
        tokio::time::sleep(LOOK).await;
    }
}

fn is_device() -> bool {
    use rustix::fs::FileType;
    rustix::fs::fstat(io::stdin()).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice)
}
