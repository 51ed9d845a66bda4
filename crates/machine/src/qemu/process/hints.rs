//! What to do about QEMU's usual complaints.

use rustix::process::Signal;

/// Parts of a message, all of which must be there, and what helps. The first one that fits counts. The
/// messages are those of QEMU 7.2 to 10, in the C locale.
const KNOWN: &[(&[&str], &str)] = &[
    (
        &["Could not access KVM kernel module", "Permission denied"],
        "This user may not use /dev/kvm: join its group (usually kvm) and log in again, or use --accel tcg.",
    ),
    (
        &["Could not access KVM kernel module"],
        "This host has no usable /dev/kvm: switch virtualisation on (firmware, or nested in a virtual machine), or use --accel tcg.",
    ),
    (&["failed to initialize kvm"], "KVM does not work here: `belljar doctor` says why; --accel tcg works everywhere."),
    (&["invalid accelerator"], "This QEMU was built without that accelerator; `belljar doctor` lists what it has."),
    (
        &["Failed to get \"write\" lock"],
        "Another process writes to this image, most likely a running virtual machine: stop it, or use a copy.",
    ),
    (
        &["Failed to get", "lock"],
        "Another process has this image open in a way that excludes this one: stop it, or use a copy.",
    ),
    (
        &["Could not open", "Permission denied"],
        "QEMU runs with your own rights: check those of the file and of every directory above it.",
    ),
    (&["Could not open", "No such file"], "The file is not there, or an overlay names a backing file that has moved."),
    (&["Image is not in", "format"], "The file is not in the format that was given for it: see `qemu-img info FILE`."),
    (
        &["cannot set up guest memory"],
        "The host has too little free memory for this guest: use a smaller --memory, or run fewer guests at once.",
    ),
    (&["unsupported machine type"], "This QEMU has no such machine; `QEMU -machine help` lists its own."),
    (&["unable to find CPU model"], "This QEMU has no such processor; `QEMU -cpu help` lists its own."),
    (&["Invalid SMP CPUs"], "Use fewer --cpus, or --machine q35."),
    (
        &["virtio-9p", "is not a valid device model name"],
        "This QEMU was built without 9p, as those of the RHEL family are: Belljar shares directories over it, so use \
         another QEMU (--qemu).",
    ),
    (
        &["fsdev", "option group"],
        "This QEMU was built without 9p, as those of the RHEL family are: Belljar shares directories over it, so use \
         another QEMU (--qemu).",
    ),
    (
        &["fsdev", "support is disabled"],
        "This QEMU was built without 9p, as those of the RHEL family are: Belljar shares directories over it, so use \
         another QEMU (--qemu).",
    ),
    (
        &["cannot initialize fsdev"],
        "The directory to be shared must exist and be readable for the user who runs Belljar.",
    ),
    (
        &["is not a valid device model name"],
        "This QEMU does not have the device. Debian ships some in packages of their own (qemu-system-modules-*, \
         qemu-system-gui, qemu-block-extra).",
    ),
    (
        &["-netdev user", "Parameter 'type' does not accept value"],
        "This QEMU was built without user networking (slirp): use --nic none, or another QEMU (--qemu).",
    ),
    (
        &["network backend 'user' is not compiled"],
        "This QEMU was built without user networking (slirp): use --nic none, or another QEMU (--qemu).",
    ),
    (
        &["sandbox", "option group"],
        "This QEMU was built without seccomp; `belljar doctor` finds that out and leaves -sandbox away.",
    ),
    (
        &["seccomp"],
        "QEMU's sandbox does not work here: the host's kernel needs CONFIG_SECCOMP_FILTER, and a container's runtime \
         must permit seccomp(2).",
    ),
    (&["could not load PC BIOS"], "The firmware is missing: install seabios (Debian), seabios-bin (RHEL family)."),
    (
        &["failed to find romfile"],
        "A device's ROM is missing: install ipxe-qemu (Debian), ipxe-roms-qemu (RHEL family).",
    ),
    (
        &["Error loading uncompressed kernel without PVH ELF Note"],
        "This kernel cannot be booted uncompressed: give the bzImage (/boot/vmlinuz-*).",
    ),
    (&["invalid kernel header"], "This is no Linux kernel for this machine: give a bzImage (/boot/vmlinuz-*)."),
    (&["error reading initrd"], "The initramfs cannot be read: check its path."),
    (&["could not open kernel file"], "The kernel cannot be read: check its path; in /boot it may be root's alone."),
    (
        &["Address already in use"],
        "Something listens on this port already: another guest with the same hostfwd? Use another port.",
    ),
    (
        &["Could not set up host forwarding"],
        "Something listens on this port already, or it is below 1024: use another.",
    ),
    (&["No space left on device"], "The host's disk is full where the run's directory or the image is."),
    (&["is longer than maximum"], "Use a shorter name."),
    (&["invalid option"], "This QEMU does not know the option: Belljar needs QEMU 7.2 or later; see also --qemu-arg."),
    (
        &["Property", "not found"],
        "This QEMU's device or machine does not have that property: see --qemu-arg and `QEMU -device NAME,help`.",
    ),
    (&["Invalid parameter"], "This QEMU does not know a part of the option: see --qemu-arg."),
];

/// What helps, if the messages or the signal are known.
pub(super) fn hint(said: &str, signal: Option<i32>) -> Option<String> {
    let by_words = KNOWN.iter().find(|(parts, _)| parts.iter().all(|part| said.contains(part)));
    let by_signal = || {
        let signal = Signal::from_named_raw(signal?)?;
        match signal {
            Signal::SYS => Some(
                "A system-call filter ended QEMU: it made a call that its sandbox forbids. `--qemu-arg=-sandbox --qemu-arg=off` \
                 tells whether it is QEMU's own.",
            ),
            Signal::KILL => Some(
                "Belljar did not kill it: the host was probably out of memory (see `dmesg`), or somebody else did.",
            ),
            _ => None,
        }
    };
    by_words.map(|(_, hint)| *hint).or_else(by_signal).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_messages_have_hints() {
        // As QEMU 7.2 and 10.0 wrote them.
        for (said, word) in [
            (
                "Could not access KVM kernel module: Permission denied\nqemu: failed to initialize kvm: Permission denied",
                "group",
            ),
            ("Could not access KVM kernel module: No such file or directory", "virtualisation"),
            ("qemu: -accel bogus: invalid accelerator bogus", "doctor"),
            (
                "f=l.qcow2: Failed to get \"write\" lock\nIs another process using the image [l.qcow2]?",
                "Another process",
            ),
            ("Could not open '/x': No such file or directory", "backing"),
            ("Could not open '/x': Permission denied", "rights"),
            ("file.filename=noperm: Image is not in qcow2 format", "qemu-img"),
            ("cannot set up guest memory 'pc.ram': Cannot allocate memory", "--memory"),
            ("unsupported machine type: \"foo\"", "-machine help"),
            ("unable to find CPU model 'bogus'", "-cpu help"),
            ("-device foo: 'foo' is not a valid device model name", "Debian"),
            ("-device virtio-9p-pci: 'virtio-9p-pci' is not a valid device model name", "9p"),
            ("-fsdev local,id=a: There is no option group 'fsdev'", "9p"),
            ("cannot initialize fsdev 'a': failed to open '/nonexist': No such file or directory", "directory"),
            ("-netdev user,id=net0: Parameter 'type' does not accept value 'user'", "slirp"),
            ("qemu: could not load PC BIOS 'bios-256k.bin'", "seabios"),
            ("qemu: invalid kernel header", "bzImage"),
            ("Invalid SMP CPUs 5000. The max CPUs supported by machine 'pc-i440fx-7.2' is 255", "--cpus"),
            ("qemu-system-x86_64: -bogus: invalid option", "7.2"),
            ("Property 'virtio-blk-pci.bogus' not found", "property"),
        ] {
            let hint = hint(said, None).unwrap_or_default();
            assert!(hint.contains(word), "{said}: {hint}");
        }
        assert_eq!(hint("something else", None), None);
        assert!(hint("", Some(31)).unwrap().contains("sandbox"));
        assert!(hint("", Some(9)).unwrap().contains("memory"));
        assert_eq!(hint("", Some(11)), None);
    }
}
