//! IBM Z: a machine whose devices are behind channels, not on a PCI bus.

use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::{MachineType, Platform, Transport};

pub(super) static S390X: Platform = Platform {
    processor: Processor { name: "s390x", arch: Arch::Elf(22), also_runs: &[], kernel_package: "linux-image-s390x" },
    programs: &["qemu-system-s390x"],
    places: &["/usr/libexec/qemu-kvm"],
    packages: "qemu-system-s390x (Debian 13; in Debian 12 qemu-system-misc), qemu-system-s390x (Fedora)",
    machine: "s390-ccw-virtio",
    machines: &[CCW, OTHER],
    // QEMU's `-machine s390-ccw-virtio,help`, without those that name a file.
    properties: &[
        "aes-key-wrap",
        "dea-key-wrap",
        "dump-guest-core",
        "graphics",
        "loadparm",
        "mem-merge",
        "suppress-vmdesc",
        "usb",
    ],
    talkative: None,
    has_isa_screen: false,
    has_smbios: false,
    own_firmware: Some("QEMU's own loader for this processor"),
    firmware: &["s390-ccw.img", "s390-netboot.img"],
    firmware_dirs: &["/usr/share/qemu"],
    uefi_packages: None,
    cpu,
    console: "ttysclp0",
    second_serial: None,
    // A kernel that panics stops its processors in a way that QEMU tells.
    panic_device: None,
    generation_device: None,
    watchdogs: &[Watchdog::Diag288],
    uncopied: None,
    kvm: None,
};

const CCW: MachineType = MachineType::plain("s390-ccw-virtio", "s390-ccw-virtio-", Transport::Ccw);

const OTHER: MachineType = MachineType::plain("", "", Transport::Ccw);

fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max",
    }
}
