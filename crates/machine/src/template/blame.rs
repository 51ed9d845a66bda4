//! Whose fault it is that a copy of a template did not start.

use std::{io, os::unix::process::ExitStatusExt};

use rustix::{io::Errno, process::Signal};

use crate::{
    lost::Cause,
    qemu::process::{End, SpawnError},
};

/// Whose fault a failed start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The template's: QEMU read what it holds, and cannot use it.
    Template,
    /// The host's, or its user's: another template would have fared no better.
    Host,
    /// That cannot be told from what was said.
    Unknown,
}

/// What QEMU 7.2 to 10 and the C library say when the host has run out of something, or lacks a right.
const HOST: &[&str] = &[
    "Cannot allocate memory",
    "cannot set up guest memory",
    "out of memory",
    "failed to allocate",
    "Too many open files",
    "Resource temporarily unavailable",
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "Operation not permitted",
    "Could not access KVM kernel module",
    "failed to initialize kvm",
];

/// Signals that come from a person, a limit of the host's, or its want of memory; not from a defect of QEMU's.
const FROM_OUTSIDE: &[Signal] =
    &[Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::XCPU, Signal::XFSZ];

/// What the host lacks, and no other program is to blame for.
const SHORT: &[Errno] =
    &[Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOSPC, Errno::DQUOT, Errno::ACCESS, Errno::PERM];

/// What QEMU says of a state that it cannot load (migration/savevm.c, migration/vmstate.c, migration/ram.c).
const TEMPLATE: &[&str] = &[
    "load of migration failed",
    "error while loading state",
    "Not a migration stream",
    "SaveVM v2 format is obsolete",
    "Unsupported migration stream version",
    "Unknown savevm section",
    "Missing section footer",
    "Machine type received is",
    "Unknown ramblock",
    "Size mismatch",
    "Length mismatch",
    "Configuration section missing",
];

/// Whose fault it is that QEMU did not start.
pub(super) fn of_start(error: &SpawnError) -> Blame {
    match error {
        SpawnError::Resources { .. } => Blame::Host,
        SpawnError::Exited { end, .. } => of_end(end),
        SpawnError::NoControl { said, .. } => of_words(said),
        SpawnError::Log { source, .. } | SpawnError::Start { source, .. } => of_errno(source),
        SpawnError::Args(_) => Blame::Unknown,
    }
}

/// Whose fault it is that a machine was lost before its guest answered.
pub(super) fn of_loss(cause: &Cause) -> Blame {
    match cause {
        Cause::QemuEnded { end, .. } => of_end(&end.0),
        Cause::QemuRefused(said) => of_words(said),
        Cause::HostFile { .. } | Cause::DiskWrite(_) | Cause::ConsoleLog(_) | Cause::NoRandom(_) => Blame::Host,
        _ => Blame::Unknown,
    }
}

fn of_end(end: &End) -> Blame {
    let signal = end.status.signal();
    if signal.is_some_and(|number| FROM_OUTSIDE.iter().any(|outside| outside.as_raw() == number)) {
        return Blame::Host;
    }
    of_words(&end.last_words())
}

fn of_errno(error: &io::Error) -> Blame {
    let short = Errno::from_io_error(error).is_some_and(|errno| SHORT.contains(&errno));
    if short { Blame::Host } else { Blame::Unknown }
}

/// Judges by QEMU's own words. A host that is short of something makes it complain of the state as well, so such words count first.
fn of_words(said: &str) -> Blame {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(HOST) {
        Blame::Host
    } else if has(TEMPLATE) {
        Blame::Template
    } else {
        Blame::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc, time::Duration};

    use belljar_model::Phase;

    use super::*;
    use crate::{Lost, lost::QemuEnd};

    #[test]
    fn of_what_qemu_says() {
        for (said, whose) in [
            ("qemu-system-x86_64: Unknown savevm section or instance '0000:00:05.0/virtio-9p' 0", Blame::Template),
            ("qemu-system-x86_64: load of migration failed: Invalid argument", Blame::Template),
            (
                "Missing section footer for 0000:00:01.1/ide\nload of migration failed: Invalid argument",
                Blame::Template,
            ),
            ("load of migration failed: Input/output error", Blame::Template),
            ("load of migration failed: Cannot allocate memory", Blame::Host),
            ("cannot set up guest memory 'ram': Cannot allocate memory", Blame::Host),
            ("qemu_thread_create: Resource temporarily unavailable", Blame::Host),
            ("memory exhausted: failed to allocate 1073741824 bytes", Blame::Host),
            ("", Blame::Unknown),
        ] {
            assert_eq!(of_words(said), whose, "{said}");
            assert_eq!(of_end(&ended(1 << 8, said)), whose, "{said}");
            let cause = Cause::QemuEnded { end: QemuEnd(Arc::new(ended(1 << 8, said))), phase: Phase::Boot };
            assert_eq!(of_loss(&cause), whose, "{said}");
        }
    }

    fn ended(status: i32, said: &str) -> End {
        let status = ExitStatus::from_raw(status);
        End { status, killed: false, said: said.into(), cpu: Duration::ZERO, exceeded: None }
    }

    #[test]
    fn of_what_ended_it() {
        for (signal, whose) in
            [(9, Blame::Host), (15, Blame::Host), (2, Blame::Host), (25, Blame::Host), (11, Blame::Unknown)]
        {
            assert_eq!(of_end(&ended(signal, "")), whose, "{signal}");
        }
        assert_eq!(of_end(&ended(11, "load of migration failed: Invalid argument")), Blame::Template);
    }

    #[test]
    fn of_what_the_host_lacks() {
        let resources = SpawnError::Resources { what: "make a socket pair", source: Errno::MFILE.into() };
        assert_eq!(of_start(&resources), Blame::Host);
        let start = |errno: Errno| SpawnError::Start { program: "/usr/bin/qemu".into(), source: errno.into() };
        assert_eq!(of_start(&start(Errno::NOMEM)), Blame::Host);
        assert_eq!(of_start(&start(Errno::NOENT)), Blame::Unknown);
        let silent = Lost::timeout(Phase::Session, "nobody answered in the copy within 60 s: Permission denied");
        assert_eq!(of_loss(&silent.cause), Blame::Unknown, "these are not QEMU's words");
    }
}
