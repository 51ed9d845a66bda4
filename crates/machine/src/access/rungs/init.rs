//! Belljar's program as the guest's first process, where Belljar gives the kernel.

use belljar_guest_spec::{Access, Source};
use belljar_proto::message::INIT_AGENT_PATH;

use super::{Agent, Rung, Suits};
use crate::qemu::args::{Accel, DEFAULT_MACHINE, MachineConfig};

pub(super) const INIT: Rung = Rung {
    name: "Belljar's init",
    word: Access::Init,
    suits: |source| match source {
        Source::RootDir { .. } => Suits::Yes,
        Source::Initramfs { .. } => Suits::IfAsked,
        Source::Image { .. } => Suits::No,
    },
    attach,
    rules: &[],
    agent: Some(Agent {
        which: "is the guest's first process",
        in_copy: "it was the first process of its template, and goes on",
    }),
    is_init: true,
};

/// The words of the kernel's command line. A quiet boot is a quick one: each character on an emulated serial line costs. A panic is to end
/// the guest at once; but in somebody else's initramfs `panic=` also turns off the emergency shell (Debian's, Alpine's),
/// which may be the only shell there is. There the console's alarm ends the guest.
///
/// In a machine whose PCI interrupts the firmware has routed as well as ACPI would, devices need not ask ACPI. To have each do so costs a
/// guest without KVM a fifth of its boot, for the interpreter is slow, and virtio does not even use the answer. It is a machine without KVM,
/// whose timer ticks late on a busy host: the kernel's test of the timer's interrupt then ends in a panic ("IO-APIC + timer doesn't
/// work"). `no_timer_check` leaves the test out (the kernel's `kernel-parameters.rst`), as kernels do under KVM.
fn attach(config: &mut MachineConfig) {
    let is_routed_by_firmware = config.accel == Accel::Tcg && config.machine == DEFAULT_MACHINE;
    let Some(kernel) = &mut config.kernel else { return };
    kernel.add("panic=-1 quiet loglevel=4 random.trust_cpu=on");
    if is_routed_by_firmware {
        kernel.add("acpi=noirq no_timer_check");
    }
    kernel.add(&format!("rdinit={INIT_AGENT_PATH}"));
}
