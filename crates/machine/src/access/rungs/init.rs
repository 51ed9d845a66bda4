//! Belljar's program as the guest's first process, where Belljar gives the kernel.

use belljar_guest_spec::{Access, BootSource};
use belljar_proto::message::INIT_AGENT_PATH;

use super::{Agent, Rung, Start, Suits};
use crate::qemu::args::{Accel, MachineConfig};

pub(super) const INIT: Rung = Rung {
    name: "Belljar's init",
    word: Access::Init,
    suits: |source| match source {
        BootSource::RootDir { .. } | BootSource::ContainerImage { .. } => Suits::Yes,
        BootSource::Initramfs { .. } => Suits::IfAsked,
        BootSource::Image { .. } => Suits::No,
    },
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "is the guest's first process",
        awaited: "is the guest's first process",
        in_copy: "it was the first process of its template, and goes on",
        before_boot: false,
    }),
    is_init: true,
    seed: None,
    start: Start::ByImage,
};

/// The words of the kernel's command line. A quiet boot is a quick one: each character on an emulated serial line costs. A panic is to end
/// the guest at once; but in somebody else's initramfs `panic=` also turns off the emergency shell (Debian's, Alpine's),
/// which may be the only shell there is. There the console's alarm ends the guest. Where the guest's memory is to be kept, the kernel stands still, also one that was built
/// to restart.
pub(super) fn attach(config: &mut MachineConfig) {
    let machine = config.machine_type();
    let of_machine = machine.words_without_kvm;
    let fits = config.accel == Accel::Tcg && config.machine == machine.name && !of_machine.is_empty();
    let Some(kernel) = &mut config.kernel else { return };
    kernel.add(if config.pause_on_panic { "panic=0" } else { "panic=-1" });
    kernel.add("quiet loglevel=4 random.trust_cpu=on");
    if fits {
        kernel.add(of_machine);
    }
    kernel.add(&format!("rdinit={INIT_AGENT_PATH}"));
}
