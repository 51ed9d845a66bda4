//! The process that serves a share to a guest: `belljar __exec --parent PID --share USE`. It reads what the guest sends, so it can do
//! little else.
//!
//! In order: a process group of its own, no core files, no `umask(2)` (the guest's kernel has one), as many descriptors as it may have, root's
//! capabilities cut down to those that QEMU keeps, no new privileges, death with its parent, and a filter that lets through the
//! system calls that serving files takes: no other program, no socket, no other process.
//!
//! The port, the directory and what keeps it as it is seen come through standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use belljar_share_fuse::{Server, Use, serve};
use libc::{EPERM, c_long};
use rustix::fs::Mode;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setpgid, setrlimit,
};
use seccompiler::{BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter};

use super::{ShimError, caps, descriptors, filter, prepare};

/// What makes the shim a server, and not a process that becomes QEMU.
pub(super) const WORD: &str = "--share";
/// Most descriptors that it wants: what a guest knows of files is in its memory, which is not endless.
const DESCRIPTORS: u64 = 1 << 20;

/// The word for what a share is for.
pub(super) fn word(using: Use) -> &'static str {
    match using {
        Use::Exchange => "exchange",
        Use::Reading => "reading",
    }
}

fn using(word: &OsString) -> Option<Use> {
    [Use::Exchange, Use::Reading].into_iter().find(|using| word == self::word(*using))
}

/// Serves until the port is closed. `words` are what comes after [`WORD`].
pub(super) fn run(parent: &OsString, words: &[OsString]) -> Result<(), ShimError> {
    let parent = process_id(parent)?;
    let [what, count] = words else { return Err(ShimError::Usage("not two words after --share")) };
    let using = using(what).ok_or(ShimError::Usage("no use after --share"))?;
    let count = count.to_str().and_then(|n| n.parse().ok()).filter(|n| (2..=3).contains(n));
    let count = count.ok_or(ShimError::Usage("no number of descriptors after --share"))?;
    stand_apart()?;
    let stdin = io::stdin();
    let received = descriptors::receive(stdin.as_fd(), count);
    let mut received = received.map_err(|source| ShimError::Prepare { what: "take over its descriptors", source })?;
    let (port, directory) = (received.remove(0), received.remove(0));
    rustix::process::umask(Mode::empty());
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    // Root may have more than that.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) });
    let most = getrlimit(Resource::Nofile).current.unwrap_or(most);
    let what = "open the directory to be served";
    let server = Server::new(directory, using, usize::try_from(most).unwrap_or(usize::MAX));
    let server = server.map_err(|e| prepare(what, e))?;
    confine(parent, &program(using)?)?;
    // What is left of `received` keeps the directory as it is seen.
    let served = serve(server, &mut File::from(port));
    served.map_err(ShimError::Serve)
}

/// Reads who started the process.
pub(super) fn process_id(parent: &OsString) -> Result<i32, ShimError> {
    parent.to_str().and_then(|pid| pid.parse().ok()).ok_or(ShimError::Usage("no process id"))
}

/// What any process that serves a guest does first: a group of its own, so that a Ctrl-C meant for Belljar does not reach it, and no core files.
pub(super) fn stand_apart() -> Result<(), ShimError> {
    let _ = setpgid(None, None);
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, nothing).map_err(|e| prepare("forbid core files", e))
}

/// What it does last, when it has opened all that it serves: root's capabilities go, it dies with its parent, and `filter` says what it may ask of the kernel.
pub(super) fn confine(parent: i32, filter: &BpfProgram) -> Result<(), ShimError> {
    caps::drop_for_good().map_err(|e| prepare(super::DROP_CAPABILITIES, e))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| prepare("renounce new privileges", e))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| prepare("tie its life to Belljar's", e))?;
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        return Err(ShimError::Orphaned { parent });
    }
    Ok(seccompiler::apply_filter(filter)?)
}

/// The filter: what is not listed ends with `EPERM`. Where a share is for reading, nothing that changes a file is among it, whatever the server were
/// talked into.
fn program(using: Use) -> Result<BpfProgram, Error> {
    let changing = if using == Use::Exchange { CHANGING } else { &[] };
    let allowed = ALLOWED.iter().chain(RUNNING).chain(changing);
    let mut rules: std::collections::BTreeMap<i64, Vec<_>> = allowed.map(|&call| (call, Vec::new())).collect();
    let none_of = |argument, bits: u32| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits.into()), 0)
    };
    // No set-uid bit comes of any call.
    let mut opened = vec![none_of(3, libc::S_ISUID)?];
    if using == Use::Reading {
        let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY;
        opened.push(none_of(2, writing.cast_unsigned())?);
    } else {
        for &(call, mode) in MODES {
            rules.insert(call, vec![seccompiler::SeccompRule::new(vec![none_of(mode, libc::S_ISUID)?])?]);
        }
    }
    rules.insert(libc::SYS_openat, vec![seccompiler::SeccompRule::new(opened)?]);
    let refused = SeccompAction::Errno(EPERM as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, filter::ARCH)?.try_into().map_err(Error::Backend)
}

/// Calls that make a file or set its mode, and which argument that is.
const MODES: &[(c_long, u8)] = &[(libc::SYS_fchmodat, 2), (libc::SYS_mkdirat, 2), (libc::SYS_mknodat, 2)];

/// Other calls that change files or directories.
const CHANGING: &[c_long] = &[
    libc::SYS_pwrite64,
    libc::SYS_pwritev2,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_setxattr,
    libc::SYS_removexattr,
];

/// What serving files takes, beside [`RUNNING`].
const ALLOWED: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_close,
    libc::SYS_fstat,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_getxattr,
    libc::SYS_listxattr,
    libc::SYS_fcntl,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
];

/// What any such process takes: memory, its threads' locks, signals, and its end.
pub(super) const RUNNING: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_words_read_back() {
        for each in [Use::Exchange, Use::Reading] {
            assert!(program(each).unwrap().len() < 1000);
            assert_eq!(using(&word(each).into()), Some(each));
        }
        let words = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        for wrong in ["", "exchange", "other 2", "exchange 1", "exchange 4", "exchange 2 2", "exchange x"] {
            assert!(matches!(run(&"1".into(), &words(wrong)), Err(ShimError::Usage(_))), "{wrong}");
        }
    }
}
