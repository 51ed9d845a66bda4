//! Shares on a disk: an archive that the agent unpacks into the guest, and another by which what was changed comes back
//! ([`super::exchange`]).

use belljar_proto::message::Source;

use super::Kind;

pub(crate) const DISK: Kind = Kind {
    name: "disk",
    file_system: "disk",
    what: "driver for the disk that its shares are on",
    advice: "use a --boot-bus that the guest's kernel has a driver for, or do without shares: --workspace none, and no --out",
    // Whatever boots from a disk has a driver for one.
    features: &[],
    source: |_| Source::Disk,
    // A shell has no program to pack what is to come back.
    by_shell: None,
    device: None,
    has_port: false,
    has_server: false,
    on_disk: true,
    obstacle: |_| None,
    // Nobody has it open when a guest is frozen, and what is read of it is read past the guest's cache: each copy has another content.
    frozen: Ok(()),
};
