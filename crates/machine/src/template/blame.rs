//! Whose fault it is that a copy of a template did not start.

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

/// What a host says that has run out of something, or whose user stopped it; in the words of QEMU 7.2 to 10, of the C library and of
/// [`End`](crate::qemu::process::End).
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
    "short of memory, processes or descriptors",
    "killed by SIGKILL",
    "killed by SIGTERM",
    "killed by SIGINT",
    "killed by SIGHUP",
    "killed by SIGQUIT",
    "killed by SIGXCPU",
    "killed by SIGXFSZ",
];

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

/// Judges by what was said. A host that is short of something makes QEMU complain of the state as well, so its words count first.
pub(super) fn blame(said: &str) -> Blame {
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
    use super::*;

    #[test]
    fn of_what_qemu_says() {
        for (said, whose) in [
            ("qemu-system-x86_64: Unknown savevm section or instance '0000:00:05.0/virtio-9p' 0", Blame::Template),
            (
                "QEMU exited with code 1: qemu-system-x86_64: load of migration failed: Invalid argument",
                Blame::Template,
            ),
            (
                "Missing section footer for 0000:00:01.1/ide\nload of migration failed: Invalid argument",
                Blame::Template,
            ),
            ("load of migration failed: Input/output error", Blame::Template),
            ("load of migration failed: Cannot allocate memory", Blame::Host),
            ("cannot set up guest memory 'ram': Cannot allocate memory", Blame::Host),
            ("qemu_thread_create: Resource temporarily unavailable", Blame::Host),
            ("memory exhausted: failed to allocate 1073741824 bytes", Blame::Host),
            ("QEMU was killed by SIGKILL", Blame::Host),
            ("cannot make a socket pair for QEMU: Too many open files (os error 24)", Blame::Host),
            ("QEMU was killed by SIGSEGV", Blame::Unknown),
            ("nobody answered in the copy within 60 s", Blame::Unknown),
            ("", Blame::Unknown),
        ] {
            assert_eq!(blame(said), whose, "{said}");
        }
    }
}
