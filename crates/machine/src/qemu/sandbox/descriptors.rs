//! Descriptors on their way to a program that the shim starts.
//!
//! Only a closure between `fork` and `exec` could put them at their numbers in the new process, and such a closure makes the standard
//! library copy the whole of Belljar for each start. Without one it borrows Belljar's memory until the `exec` (`posix_spawn`), which
//! costs a fifth and does not grow. So the shim finds its descriptors in a socket that is its standard input (`SCM_RIGHTS`,
//! unix(7)), already there when it begins, and puts them at their numbers itself. Here they stay closed to all other programs that are
//! started meanwhile.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// As many as the kernel takes with one message (`SCM_MAX_FD` in `include/net/scm.h`).
const MOST: usize = 253;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST));

/// Puts descriptors into a socket, of which it gives the end from which they are received.
pub(super) fn send(descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (ours, theirs) = channel()?;
    send_on(ours.as_fd(), descriptors)?;
    Ok(theirs)
}

/// A socket for descriptors.
pub(super) fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Puts descriptors into a socket.
pub(super) fn send_on(socket: BorrowedFd<'_>, descriptors: &[OwnedFd]) -> io::Result<()> {
    for some in descriptors.chunks(MOST) {
        let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut message = SendAncillaryBuffer::new(&mut space);
        message.push(SendAncillaryMessage::ScmRights(&some));
        // There is room in the socket for each, or it is an error: nobody reads yet.
        sendmsg(socket, &[IoSlice::new(b"f")], &mut message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Takes so many descriptors out of a socket, in order. They must be there.
pub(super) fn receive(socket: BorrowedFd<'_>, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let mut space = [MaybeUninit::uninit(); SPACE];
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut message, flags)?;
        let before = all.len();
        for part in message.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                all.extend(descriptors);
            }
        }
        if all.len() == before {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{before} of {count} are there")));
        }
    }
    if all.len() > count {
        return Err(io::Error::other(format!("{} are there instead of {count}", all.len())));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn files(count: u32) -> Vec<OwnedFd> {
        let file = |n: u32| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&n.to_le_bytes(), 0).unwrap();
            file.into()
        };
        (0..count).map(file).collect()
    }

    #[test]
    fn they_arrive_in_order_however_many() {
        for count in [0, 1, 7, 253, 254, 300] {
            let socket = send(&files(count)).unwrap();
            let received = receive(socket.as_fd(), count as usize).unwrap();
            for (n, fd) in (0..count).zip(received) {
                let mut bytes = [0; 4];
                std::fs::File::from(fd).read_exact_at(&mut bytes, 0).unwrap();
                assert_eq!(bytes, n.to_le_bytes());
            }
        }
    }

    /// Whoever is started by hand, or by somebody who was killed, does not wait.
    #[test]
    fn fewer_or_more_are_an_error_at_once() {
        let socket = send(&files(2)).unwrap();
        assert_eq!(receive(socket.as_fd(), 3).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(receive(send(&files(3)).unwrap().as_fd(), 2).is_err());
        let (empty, _open) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(receive(empty.as_fd(), 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let no_socket = tempfile::tempfile().unwrap();
        assert!(receive(no_socket.as_fd(), 1).is_err());
    }
}
