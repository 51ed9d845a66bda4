//! The user's terminal in raw mode, and the certainty that it does not stay so.
//!
//! A `Drop` does not run after `SIGKILL`. So before the terminal goes raw, a second process is started, which holds the
//! terminal's settings and waits for the end of a pipe that only this process keeps open: when it ends without
//! having said that all is well, the second process puts the settings back.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    pin::Pin,
    process::{Child, ChildStdin, Command, Stdio},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustix::{
    process::{Signal, setsid},
    termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr},
};
use tokio::io::{AsyncRead, ReadBuf};

use crate::input::is_in_background;

/// First argument of the process that guards the terminal.
pub(crate) const GUARD: &str = "__guard-terminal";
/// What the guard reads when there is nothing to mend.
const ALL_WELL: u8 = b'.';
/// Leaves the alternate screen, shows the cursor, ends bracketed paste and colours: what a program that was cut off may
/// have left behind.
const RESET_SEQUENCES: &[u8] = b"\x1b[?1049l\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1006l\x1b[0m";

/// The terminal, raw for as long as this lives.
pub(crate) struct RawTerminal {
    saved: Termios,
    guard: Child,
    pipe: Option<ChildStdin>,
}

impl RawTerminal {
    /// Makes the terminal on standard input raw.
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let saved = tcgetattr(stdin.as_fd())?;
        // The guard gets the terminal as standard output, the pipe as standard input.
        let terminal = stdin.as_fd().try_clone_to_owned()?;
        let mut guard = Command::new("/proc/self/exe")
            .arg(GUARD)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(terminal))
            .stderr(Stdio::piped())
            .spawn()?;
        let pipe = guard.stdin.take();
        // It has read the settings when it closes its standard error.
        if let Some(mut ready) = guard.stderr.take() {
            ready.read_to_end(&mut Vec::new())?;
        }
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &raw)?;
        Ok(Self { saved, guard, pipe })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // In the background the terminal is the shell's, which has put it back as it likes it; touching it would stop us. What was
        // written needs no drain, for which a terminal that hangs would keep us waiting: its settings count when it is written.
        let restored =
            is_in_background(io::stdin()) || tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.saved).is_ok();
        if let Some(mut pipe) = self.pipe.take()
            && restored
        {
            drop(pipe.write_all(&[ALL_WELL]));
        }
        drop(self.guard.wait());
    }
}

/// Body of the guarding process.
pub(crate) fn guard() -> io::Result<()> {
    let terminal = io::stdout();
    let saved = tcgetattr(terminal.as_fd())?;
    // Out of reach of Ctrl-C, of a hang-up and of a kill of the whole process group. Without a controlling terminal,
    // tcsetattr is not a background process's and raises no SIGTTOU.
    setsid()?;
    close_stderr()?;
    let mut said = [0; 1];
    let well = matches!(io::stdin().read(&mut said), Ok(1)) && said[0] == ALL_WELL;
    if !well {
        tcsetattr(terminal.as_fd(), OptionalActions::Now, &saved)?;
        let mut out = terminal.lock();
        out.write_all(RESET_SEQUENCES)?;
        out.flush()?;
    }
    Ok(())
}

/// Points standard error at `/dev/null`, which closes the pipe on which the parent waits.
fn close_stderr() -> io::Result<()> {
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Whether standard input is a terminal, of which a command's own terminal is the continuation. Without one, as under CI, the
/// command has a terminal all the same, and nobody at it.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal that the command's output comes to; 24 by 80 where there is none, or it does not say.
pub(crate) fn size() -> (u16, u16) {
    let of = |size: rustix::io::Result<Winsize>| match size {
        Ok(Winsize { ws_row, ws_col, .. }) if ws_row > 0 && ws_col > 0 => Some((ws_row, ws_col)),
        _ => None,
    };
    of(tcgetwinsize(io::stdin().as_fd()))
        .or_else(|| of(tcgetwinsize(io::stdout().as_fd())))
        .or_else(|| of(tcgetwinsize(io::stderr().as_fd())))
        .unwrap_or((24, 80))
}

/// The signals that end a run in an orderly way. A hang-up does not where we were started to outlive it, as by `nohup`.
pub(crate) fn ending() -> Vec<Signal> {
    let mut ending = vec![Signal::INT, Signal::TERM];
    if !is_ignored(Signal::HUP, &fs_err::read_to_string("/proc/self/status").unwrap_or_default()) {
        ending.push(Signal::HUP);
    }
    ending
}

/// Whether a process of this `/proc/PID/status` ignores a signal.
fn is_ignored(signal: Signal, status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored >> (signal.as_raw() - 1) & 1 == 1
}

/// What ends a terminal's guest: Ctrl-] three times within a second, as for `machinectl shell`.
const ESCAPE: u8 = 0x1d;
const ESCAPES: usize = 3;
const ESCAPE_WITHIN: Duration = Duration::from_secs(1);

/// Input from a raw terminal, in which the escape raises `SIGTERM` against this process.
pub(crate) struct EscapableInput<R> {
    inner: R,
    pressed: Vec<Instant>,
}

impl<R> EscapableInput<R> {
    /// Reads from `inner`.
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, pressed: Vec::new() }
    }

    /// Whether these bytes complete the escape.
    fn escaped(&mut self, bytes: &[u8], now: Instant) -> bool {
        for byte in bytes {
            if *byte == ESCAPE {
                self.pressed.retain(|at| now.duration_since(*at) < ESCAPE_WITHIN);
                self.pressed.push(now);
            } else {
                self.pressed.clear();
            }
            if self.pressed.len() >= ESCAPES {
                self.pressed.clear();
                return true;
            }
        }
        false
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for EscapableInput<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            let fresh = buf.filled()[before..].to_vec();
            if self.escaped(&fresh, Instant::now()) {
                rustix::process::kill_process(rustix::process::getpid(), Signal::TERM)?;
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_seen() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(is_ignored(Signal::HUP, status) && is_ignored(Signal::PIPE, status));
        assert!(!is_ignored(Signal::INT, status) && !is_ignored(Signal::HUP, ""));
    }

    #[test]
    fn the_escape_is_three_within_a_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut input = EscapableInput::new(());
        assert!(input.escaped(b"\x1d\x1d\x1d", at(0)));
        assert!(!input.escaped(b"\x1d\x1d", at(10)));
        assert!(!input.escaped(b"a", at(20)));
        assert!(!input.escaped(b"\x1d\x1d", at(30)));
        assert!(input.escaped(b"\x1d", at(900)));
        assert!(!input.escaped(b"\x1d\x1d", at(1000)));
        assert!(!input.escaped(b"\x1d", at(2500)));
    }
}
