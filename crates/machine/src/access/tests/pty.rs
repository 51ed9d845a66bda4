//! A program of this host on a pseudo-terminal, as the guest on the other end of a serial line.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::Join;
use tokio::net::unix::pipe::{Receiver, Sender};

/// The terminal's own side. Not a pipe, but read and written like one.
pub(crate) type PtyLine = Join<Receiver, Sender>;

/// The program; killed when dropped.
pub(crate) struct PtyGuest(Child);

impl Drop for PtyGuest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program with a new terminal as its controlling one, 80 columns wide, and nothing of our environment but what
/// is given.
pub(crate) fn spawn(argv: &[&str], env: &[(&str, &str)]) -> io::Result<(PtyLine, PtyGuest)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let theirs: OwnedFd = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::termios::tcsetwinsize(&theirs, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 })?;
    // As a getty would start it: a test run in the background of a script has these signals ignored, and hands that on.
    let child = Command::new("env")
        .args(["--default-signal=HUP,INT,QUIT", "setsid", "--ctty", "--wait"])
        .args(argv)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", "/nonexistent")
        .env("TERM", "vt220")
        .env("LC_ALL", "C.UTF-8")
        .envs(env.iter().copied())
        .stdin(Stdio::from(theirs.try_clone()?))
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs))
        .spawn()?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    let (reader, writer) = (ours.try_clone()?, ours);
    let line = tokio::io::join(Receiver::from_owned_fd_unchecked(reader)?, Sender::from_owned_fd_unchecked(writer)?);
    Ok((line, PtyGuest(child)))
}
