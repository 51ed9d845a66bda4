//! Passes the requests of the guest's kernel for one share to the host, and the answers back.
//!
//! It is a process of its own, for who serves a mount must never wait for it: what touches the share waits until the relay has passed its
//! request on. It ends when the mount is gone, or when the port is; the kernel then answers all that touches the share with an error.
//!
//! Requests and replies begin with their length. The relay never waits for the port to take a request while replies could be passed
//! on, or both sides could wait for each other for ever.

use std::os::fd::{AsRawFd, OwnedFd};

use belljar_proto::message::RELAY_NAME;
use rustix::io::Errno;

use crate::sys;

/// Most bytes of a request that the kernel makes, and of a reply: those of the server, and some more.
const MOST: usize = (1 << 20) + (64 << 10);
/// Bytes of a reply's header.
const HEADER: usize = 16;

/// Starts the relay between the device and the port.
pub(super) fn start(device: OwnedFd, port: OwnedFd) -> Result<(), Errno> {
    if sys::fork()?.is_some() {
        return Ok(());
    }
    sys::close_all_but(&[device.as_raw_fd(), port.as_raw_fd()]);
    let _ = rustix::process::chdir("/");
    // Of its own session and name, and deaf to whoever ends what belongs to a login or to a service.
    let _ = rustix::process::setsid();
    sys::be_a_relay(RELAY_NAME);
    run(&device, &port);
    sys::exit_now(0)
}

/// A request on its way to the host.
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    length: usize,
}

/// Replies, as far as they have come.
struct Incoming {
    bytes: Vec<u8>,
    filled: usize,
}

/// The mount, or the port, is gone.
struct Gone;

fn run(device: &OwnedFd, port: &OwnedFd) {
    if rustix::io::ioctl_fionbio(device, true).is_err() || rustix::io::ioctl_fionbio(port, true).is_err() {
        return;
    }
    let mut request = Outgoing { bytes: vec![0; MOST], sent: 0, length: 0 };
    let mut replies = Incoming { bytes: vec![0; MOST], filled: 0 };
    loop {
        let under_way = request.sent < request.length;
        let mut fds = [
            sys::poll_fd(port, libc::POLLIN | if under_way { libc::POLLOUT } else { 0 }),
            // With nothing asked for, its end is told all the same.
            sys::poll_fd(device, if under_way { 0 } else { libc::POLLIN }),
        ];
        sys::poll(&mut fds, None);
        let [at_port, at_device] = fds.map(|fd| fd.revents);
        if step(&mut request, &mut replies, (device, at_device), (port, at_port)).is_err() {
            return;
        }
    }
}

/// Does what can be done without waiting.
fn step(
    request: &mut Outgoing,
    replies: &mut Incoming,
    (device, at_device): (&OwnedFd, i16),
    (port, at_port): (&OwnedFd, i16),
) -> Result<(), Gone> {
    const ENDED: i16 = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
    if at_port & libc::POLLIN != 0 {
        replies.take(port, device)?;
    } else if at_port & ENDED != 0 {
        return Err(Gone);
    }
    if at_device & ENDED != 0 {
        return Err(Gone);
    }
    if at_device & libc::POLLIN != 0 {
        request.read(device)?;
    }
    request.pass_on(port)
}

impl Outgoing {
    /// Takes one request from the kernel.
    fn read(&mut self, device: &OwnedFd) -> Result<(), Gone> {
        match rustix::io::read(device, &mut self.bytes[..]) {
            Ok(0) => Err(Gone),
            Ok(length) => {
                (self.sent, self.length) = (0, length);
                Ok(())
            }
            // Whoever asked was interrupted, or somebody else was faster.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Ok(()),
            Err(_) => Err(Gone),
        }
    }

    /// Sends as much of it as the port takes.
    fn pass_on(&mut self, port: &OwnedFd) -> Result<(), Gone> {
        while self.sent < self.length {
            match rustix::io::write(port, &self.bytes[self.sent..self.length]) {
                Ok(0) => return Err(Gone),
                Ok(written) => self.sent += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        Ok(())
    }
}

impl Incoming {
    /// Takes what has come, and gives the kernel what of it is whole.
    fn take(&mut self, port: &OwnedFd, device: &OwnedFd) -> Result<(), Gone> {
        loop {
            match rustix::io::read(port, &mut self.bytes[self.filled..]) {
                Ok(0) => return Err(Gone),
                Ok(read) => self.filled += read,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Gone),
            }
            let mut start = 0;
            while let Some(length) = whole(&self.bytes[start..self.filled])? {
                match rustix::io::write(device, &self.bytes[start..start + length]) {
                    // Nobody waits for it any more.
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(Errno::INTR) => continue,
                    Err(_) => return Err(Gone),
                }
                start += length;
            }
            self.bytes.copy_within(start..self.filled, 0);
            self.filled -= start;
        }
    }
}

/// Bytes of the reply that begins here, if all of it is there.
fn whole(begun: &[u8]) -> Result<Option<usize>, Gone> {
    let Some(bytes) = begun.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*bytes)).unwrap_or(usize::MAX);
    if !(HEADER..=MOST).contains(&length) {
        return Err(Gone);
    }
    Ok((length <= begun.len()).then_some(length))
}
