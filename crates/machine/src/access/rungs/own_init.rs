//! Belljar's program beside the init of a container image: it makes the image's files the root, starts their init, and goes on beside it.
//!
//! It leaves nothing in the guest, and needs nothing of it but the init.

use belljar_guest_spec::{Access, BootSource};

use super::{Agent, Rung, Start, Suits, init};
use crate::qemu::args::MachineConfig;

pub(super) const OWN_INIT: Rung = Rung {
    name: "beside the image's init",
    word: Access::Initrd,
    suits: |source| match source {
        BootSource::ContainerImage { .. } => Suits::IfAsked,
        BootSource::Image { .. } | BootSource::Initramfs { .. } | BootSource::RootDir { .. } => Suits::No,
    },
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "has started the image's own init, and goes on beside it",
        awaited: "was to start the image's own init, and to go on beside it",
        in_copy: "it was started with its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::ByImage,
};

/// What an image boots like for the first time asks nobody anything (kernel-command-line(7)): nobody sits at its console.
fn attach(config: &mut MachineConfig) {
    init::attach(config);
    if let Some(kernel) = &mut config.kernel {
        kernel.add("systemd.firstboot=no");
    }
}
