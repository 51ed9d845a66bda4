//! Shares over FUSE: the guest's kernel asks, a relay of the agent's passes what it asks through a port, and a server of Belljar's answers
//! (`belljar-share-fuse`).

use belljar_image::modules::Feature;
use belljar_proto::message::{Source, share_port};

use super::Kind;

pub(crate) const FUSE: Kind = Kind {
    name: "fuse",
    file_system: "fuse.belljar",
    what: "FUSE file systems",
    advice: "use a kernel that has the module fuse, or one with 9p and --share auto, or do without shares: --workspace none, and no --out",
    features: &[Feature::FileSystem("fuse"), Feature::VirtioPci, Feature::VirtioConsole],
    source: |tag| Source::Fuse { port: share_port(tag) },
    // What serves the kernel must be a program.
    by_shell: None,
    device: None,
    has_port: true,
    has_server: false,
    on_disk: false,
    // What QEMU serves is a port, and there is nothing to it.
    obstacle: |_| None,
    // A mounted one is the relay's, whose server a copy does not have; the port alone is nobody's.
    frozen: Ok(()),
};
