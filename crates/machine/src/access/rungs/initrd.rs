//! Belljar's program behind the guest's own initramfs. The kernel, the initramfs and the kernel's words are read out of the image, and started
//! without its boot loader; the program starts the guest's own init, and goes to the root that this brings up.
//!
//! It is there earlier than by any other way, whatever init the guest has, and leaves nothing in the guest.

use belljar_guest_spec::Access;
use belljar_proto::message::INIT_AGENT_PATH;

use super::{Agent, Rung, Start, image_if_asked};
use crate::qemu::args::MachineConfig;

pub(crate) const INITRD: Rung = Rung {
    name: "initrd",
    word: Access::Initrd,
    suits: image_if_asked,
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "was started by the kernel in the guest's own initramfs, and went to the guest's root",
        awaited: "was to be started by the kernel in the guest's own initramfs, and to go to the guest's root",
        in_copy: "it was started with its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::Directly,
};

fn attach(config: &mut MachineConfig) {
    if let Some(kernel) = &mut config.kernel {
        // Of several the last one counts.
        kernel.add(&format!("rdinit={INIT_AGENT_PATH}"));
    }
}
