//! The system-call filter: what a guest leaves on the host is plain files of the user.
//!
//! QEMU serves 9p with `security_model=none`: what the guest's root asks for is tried with the rights of whoever
//! runs Belljar. For an ordinary user the kernel refuses most of what does harm; when root runs it, nothing would. So:
//!
//! | asked for | answer | why |
//! |---|---|---|
//! | change of owner (`chown` and its kin) | success, without effect | `tar`, `cp -p`, `install` in the guest go on; the file stays the user's. QEMU itself expects this to fail and ignores it |
//! | set-uid bit: `chmod`, `open`, `creat`, `mkdir`, `mknod` | `EPERM` | a set-uid program of root's on the host; a program that needs the bit must hear that it is not there |
//! | set-gid bit: `chmod` | success, without effect | the same danger, but tools set it on directories in passing, and directories take it from their parent anyway |
//! | set-gid bit: `open`, `creat`, `mknod` | `EPERM` | there is no file without the call. `mkdir` drops the bit by itself |
//! | device nodes: `mknod` of block and character devices | `EPERM` | access to the host's disks. FIFOs and sockets are harmless, though QEMU itself refuses to make them since CVE-2023-2861 |
//! | `io_uring_setup`, `openat2` | `ENOSYS` | their arguments are in memory, where a filter cannot see them; callers fall back |
//!
//! `open` has a mode only where it creates a file, so only then is it looked at. System calls that an older kernel
//! has not are filtered all the same: the numbers are theirs alone. On x86-64 every rule is repeated for the x32 numbers.
//! A filter can only be added to, and QEMU adds its own (`-sandbox`); KVM's `ioctl`s are not touched by either.
//!
//! It binds QEMU as long as QEMU does what it is written to do; a guest that takes QEMU over has the caller's rights
//! less `caps`, as with any QEMU.

use std::collections::BTreeMap;

use belljar_share_fuse::Use;
use libc::{EPERM, O_CREAT, S_IFBLK, S_IFCHR, S_IFMT, S_ISGID, S_ISUID, c_int, c_long};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

#[cfg(target_arch = "x86_64")]
pub(super) const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCH: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
pub(super) const ARCH: TargetArch = TargetArch::riscv64;

/// Not in every version of the C library's headers; the same number on every architecture.
const SYS_FCHMODAT2: c_long = 452;

/// `O_TMPFILE` without `O_DIRECTORY`, which it also contains.
const TMPFILE: c_int = libc::O_TMPFILE & !libc::O_DIRECTORY;

/// Adds the filters to this thread, and to every program it becomes.
pub(super) fn install() -> Result<(), Error> {
    for program in programs()? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

/// Adds what a program is to have beside that which serves a share, and would become whoever asks in the guest: that succeeds without effect, so that what is
/// made is the user's, as a change of owner does. Where the share is for reading, what changes a file ends with `EROFS`, whatever the server were talked into.
pub(super) fn install_for_server(using: Use) -> Result<(), Error> {
    let becoming = [libc::SYS_setresuid, libc::SYS_setresgid, libc::SYS_setgroups];
    let becoming = becoming.into_iter().map(|call| (call, Vec::new())).collect();
    seccompiler::apply_filter(&compile(becoming, SeccompAction::Errno(0))?)?;
    if using == Use::Reading {
        seccompiler::apply_filter(&compile(changing()?, SeccompAction::Errno(libc::EROFS as u32))?)?;
    }
    Ok(())
}

/// Calls that change a file or a directory, or open one for that.
fn changing() -> Result<Rules, Error> {
    let mut rules: Rules = CHANGING.iter().map(|&call| (call, Vec::new())).collect();
    for &(call, flags, _) in OPENS {
        let Some(flags) = flags else {
            rules.insert(call, Vec::new());
            continue;
        };
        let access = |value: c_int| Bits { arg: flags, mask: libc::O_ACCMODE as u32, value: value as u32 };
        let bits = [
            access(libc::O_WRONLY),
            access(libc::O_RDWR),
            Bits::set(flags, O_CREAT as u32),
            Bits::set(flags, libc::O_TRUNC as u32),
            Bits::set(flags, TMPFILE as u32),
        ];
        rules.insert(call, bits.iter().map(|bits| rule(&[*bits])).collect::<Result<_, _>>()?);
    }
    Ok(rules)
}

/// One filter for each answer, as a filter has only one. No call matches two of them.
fn programs() -> Result<[BpfProgram; 3], Error> {
    Ok([
        compile(forbidden()?, SeccompAction::Errno(EPERM as u32))?,
        compile(ignored()?, SeccompAction::Errno(0))?,
        compile(absent(), SeccompAction::Errno(libc::ENOSYS as u32))?,
    ])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(rules: Rules, answer: SeccompAction) -> Result<BpfProgram, Error> {
    let rules = rules.into_iter().flat_map(|(call, rules)| numbers(call).map(move |n| (n, rules.clone()))).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, ARCH)?;
    Ok(filter.try_into()?)
}

/// Every number under which a program can make a call.
fn numbers(call: i64) -> impl Iterator<Item = i64> {
    const X32: i64 = 0x4000_0000;
    [Some(call), cfg!(target_arch = "x86_64").then_some(call | X32)].into_iter().flatten()
}

/// Calls that end with `EPERM`.
fn forbidden() -> Result<Rules, Error> {
    let mut rules = Rules::new();
    let mut forbid = |call: c_long, all_of: &[Bits]| -> Result<(), Error> {
        rules.entry(call).or_default().push(rule(all_of)?);
        Ok(())
    };
    for &(call, mode) in CHMODS {
        forbid(call, &[Bits::set(mode, S_ISUID)])?;
    }
    for &(call, mode) in MKDIRS {
        forbid(call, &[Bits::set(mode, S_ISUID)])?;
    }
    for &(call, flags, mode) in OPENS {
        for bit in [S_ISUID, S_ISGID] {
            match flags {
                Some(flags) => {
                    for creating in [O_CREAT as u32, TMPFILE as u32] {
                        forbid(call, &[Bits::set(flags, creating), Bits::set(mode, bit)])?;
                    }
                }
                None => forbid(call, &[Bits::set(mode, bit)])?,
            }
        }
    }
    for &(call, mode) in MKNODS {
        for bit in [S_ISUID, S_ISGID] {
            forbid(call, &[Bits::set(mode, bit)])?;
        }
        for kind in [S_IFCHR, S_IFBLK] {
            forbid(call, &[Bits { arg: mode, mask: S_IFMT, value: kind }])?;
        }
    }
    Ok(rules)
}

/// Calls that succeed and do nothing.
fn ignored() -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for &call in CHOWNS {
        rules.insert(call, Vec::new());
    }
    for &(call, mode) in CHMODS {
        // With the set-uid bit as well it is forbidden, see there.
        rules.insert(call, vec![rule(&[Bits { arg: mode, mask: S_ISUID | S_ISGID, value: S_ISGID }])?]);
    }
    Ok(rules)
}

/// Calls that this system has not.
fn absent() -> Rules {
    [libc::SYS_io_uring_setup, libc::SYS_openat2].into_iter().map(|call| (call, Vec::new())).collect()
}

/// Some bits of an argument have a value.
#[derive(Clone, Copy, Debug)]
struct Bits {
    arg: u8,
    mask: u32,
    value: u32,
}

impl Bits {
    fn set(arg: u8, mask: u32) -> Self {
        Self { arg, mask, value: mask }
    }
}

fn rule(all_of: &[Bits]) -> Result<SeccompRule, Error> {
    let condition = |bits: &Bits| {
        // Modes and flags are 32 bits wide; the rest of the register is noise.
        let operator = SeccompCmpOp::MaskedEq(bits.mask.into());
        SeccompCondition::new(bits.arg, SeccompCmpArgLen::Dword, operator, bits.value.into())
    };
    let conditions = all_of.iter().map(condition).collect::<Result<_, _>>()?;
    Ok(SeccompRule::new(conditions)?)
}

/// Calls that set a mode, and which argument it is.
const CHMODS: &[(c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (SYS_FCHMODAT2, 2),
];

/// Calls that make a directory, and which argument is its mode.
const MKDIRS: &[(c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mkdir, 1),
    (libc::SYS_mkdirat, 2),
];

/// Calls that make a node, and which argument is its mode.
const MKNODS: &[(c_long, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    (libc::SYS_mknodat, 2),
];

/// Calls that may make a file, and which arguments are its flags and its mode.
const OPENS: &[(c_long, Option<u8>, u8)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, Some(1), 2),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, None, 1),
    (libc::SYS_openat, Some(2), 3),
];

/// Calls that change a file by its name or a descriptor of any kind. What is written goes to one that is open for that, of which there is none.
const CHANGING: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_utimensat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // By no name, and root may.
    libc::SYS_open_by_handle_at,
];

/// Calls that change an owner.
const CHOWNS: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    libc::SYS_fchown,
    libc::SYS_fchownat,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit() {
        let changing = compile(changing().unwrap(), SeccompAction::Errno(libc::EROFS as u32)).unwrap();
        for program in programs().unwrap().into_iter().chain([changing]) {
            assert!(program.len() < 1000, "{} of at most 4096 instructions", program.len());
        }
    }

    #[test]
    fn no_call_has_two_answers_without_a_condition() {
        let (ignored, absent) = (ignored().unwrap(), absent());
        for (call, rules) in forbidden().unwrap() {
            assert!(!rules.is_empty() && ignored.get(&call).is_none_or(|r| !r.is_empty()));
            assert!(!absent.contains_key(&call));
        }
    }
}
