//! Errors in words.

use rustix::io::Errno;

/// Names of the errors that a person is likely to meet here.
const NAMES: &[(Errno, &str, &str)] = &[
    (Errno::PERM, "EPERM", "operation not permitted"),
    (Errno::NOENT, "ENOENT", "no such file or directory"),
    (Errno::INTR, "EINTR", "interrupted"),
    (Errno::IO, "EIO", "input/output error"),
    (Errno::NXIO, "ENXIO", "no such device or address"),
    (Errno::NOEXEC, "ENOEXEC", "not an executable format"),
    (Errno::BADF, "EBADF", "bad file descriptor"),
    (Errno::AGAIN, "EAGAIN", "temporarily unavailable"),
    (Errno::NOMEM, "ENOMEM", "out of memory"),
    (Errno::ACCESS, "EACCES", "permission denied"),
    (Errno::BUSY, "EBUSY", "device or resource busy"),
    (Errno::EXIST, "EEXIST", "exists"),
    (Errno::NODEV, "ENODEV", "no such device, or the kernel lacks its driver"),
    (Errno::NOTDIR, "ENOTDIR", "not a directory"),
    (Errno::ISDIR, "EISDIR", "is a directory"),
    (Errno::INVAL, "EINVAL", "invalid argument"),
    (Errno::NFILE, "ENFILE", "too many open files in the guest"),
    (Errno::MFILE, "EMFILE", "too many open files"),
    (Errno::TXTBSY, "ETXTBSY", "file is open for writing"),
    (Errno::NOSPC, "ENOSPC", "no space left"),
    (Errno::ROFS, "EROFS", "read-only file system"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG", "name too long"),
    (Errno::NOSYS, "ENOSYS", "the kernel has no such call"),
    (Errno::LOOP, "ELOOP", "too many symbolic links"),
    (Errno::PROTO, "EPROTO", "protocol error"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP", "not supported"),
    (Errno::TOOBIG, "E2BIG", "argument list too long"),
];

/// `ENODEV (no such device, or the kernel lacks its driver)`.
pub(crate) fn errno(errno: Errno) -> String {
    match NAMES.iter().find(|(known, ..)| *known == errno) {
        Some((_, name, meaning)) => format!("{name} ({meaning})"),
        None => format!("errno {}", errno.raw_os_error()),
    }
}

/// The same for an error of the standard library.
pub(crate) fn io(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(known) => errno(known),
        None => error.to_string(),
    }
}

/// Bytes as text for a message.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Writes a line to standard error, which is the console for PID 1. Nothing can be done where that fails.
pub(crate) fn say(line: &str) {
    let line = format!("belljar: {line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stderr(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// A process's end, from the status that wait(2) gives.
pub(crate) fn status(raw: i32) -> belljar_proto::message::Status {
    use belljar_proto::message::Status;
    match raw & 0x7f {
        0 => Status::Code(((raw >> 8) & 0xff) as u8),
        signal => Status::Signal { signal, core: raw & 0x80 != 0 },
    }
}
