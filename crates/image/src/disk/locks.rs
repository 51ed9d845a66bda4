//! The locks by which QEMU's programs tell each other how they use an image (QEMU: block/file-posix.c).

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{self, SEEK_SET, c_short};

/// The byte on which whoever writes to an image has a shared lock: `RAW_LOCK_PERM_BASE`, and the bit of `BLK_PERM_WRITE`.
const WRITES: libc::off_t = 100 + 1;

/// Whether one of QEMU's programs has this file open as an image that it writes to. `qemu-img info` does not look at that of a raw image.
///
/// # Errors
/// When the file system has no locks, among others.
pub fn has_writer(file: &File) -> io::Result<bool> {
    let unlocked = libc::F_UNLCK as c_short;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as c_short,
        l_whence: SEEK_SET as c_short,
        l_start: WRITES,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != unlocked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_is_known_by_a_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        let lock = |start| libc::flock {
            l_type: libc::F_RDLCK as c_short,
            l_whence: SEEK_SET as c_short,
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        // It reads, and lets nobody else write.
        for byte in [100, 201] {
            fcntl(&other, FcntlArg::F_OFD_SETLK(&lock(byte))).unwrap();
        }
        assert!(!has_writer(file.as_file()).unwrap());
        fcntl(&other, FcntlArg::F_OFD_SETLK(&lock(101))).unwrap();
        assert!(has_writer(file.as_file()).unwrap());
        drop(other);
        assert!(!has_writer(file.as_file()).unwrap());
    }
}
