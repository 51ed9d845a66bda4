//! The process that serves a lab disk: `belljar __exec --parent PID --lab-disk SETUP`. It reads what QEMU sends, which a guest may have got hold of, so it
//! can do little else.
//!
//! It gives up what the server of a share gives up ([`super::serving`]), and has fewer system calls: it opens nothing, and knows no file but those that it was started
//! with, which come through standard input: the lines to QEMU, that to Belljar, the data, and what is below.

use std::{ffi::OsString, fs::File, io, os::fd::AsFd, os::unix::net::UnixStream};

use belljar_guest_spec::MAX_PATHS;
use belljar_lab::Setup;
use libc::{EPERM, c_long};
use seccompiler::{BpfProgram, Error, SeccompAction, SeccompFilter};

use super::{
    ShimError, descriptors, filter,
    serving::{RUNNING, confine, process_id, stand_apart},
};

/// What makes the shim such a server.
pub(super) const WORD: &str = "--lab-disk";

/// Serves until Belljar closes its line. `words` are what comes after [`WORD`].
pub(super) fn run(parent: &OsString, words: &[OsString]) -> Result<(), ShimError> {
    let parent = process_id(parent)?;
    let [setup] = words else { return Err(ShimError::Usage("not one word after --lab-disk")) };
    let setup = setup.to_str().and_then(|setup| serde_json::from_str::<Setup>(setup).ok());
    let setup = setup.ok_or(ShimError::Usage("no setup after --lab-disk"))?;
    stand_apart()?;
    let stdin = io::stdin();
    let paths = usize::try_from(setup.paths.min(MAX_PATHS)).unwrap_or_default();
    let received = descriptors::receive(stdin.as_fd(), paths + 1 + setup.files());
    let mut received = received.map_err(|source| ShimError::Prepare { what: "take over its descriptors", source })?;
    let files = received.split_off(paths + 1).into_iter().map(File::from).collect();
    let Some(control) = received.pop() else { return Err(ShimError::Usage("no lines for a lab disk")) };
    let qemu = received.into_iter().map(UnixStream::from).collect();
    let disk = setup.open(files).map_err(|source| ShimError::Prepare { what: "open the lab disk", source })?;
    confine(parent, &program()?)?;
    belljar_lab::serve(disk, qemu, UnixStream::from(control)).map_err(ShimError::ServeDisk)
}

/// The filter: what is not listed ends with `EPERM`.
fn program() -> Result<BpfProgram, Error> {
    let rules = ALLOWED.iter().chain(RUNNING).map(|&call| (call, Vec::new())).collect();
    let refused = SeccompAction::Errno(EPERM as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, filter::ARCH)?.try_into().map_err(Error::Backend)
}

/// What serving a disk takes, beside [`RUNNING`]: its files and its two lines.
const ALLOWED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_pipe2,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_a_wrong_setup_is_none() {
        assert!(program().unwrap().len() < 1000);
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for wrong in [&[][..], &["x"], &["{}"], &["{}", "{}"]] {
            assert!(matches!(run(&"1".into(), &words(wrong)), Err(ShimError::Usage(_))), "{wrong:?}");
        }
    }
}
