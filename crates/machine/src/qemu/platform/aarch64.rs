//! 64-bit Arm: QEMU's `virt`, which has no firmware of its own, and no model outside of QEMU.

use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::{MachineType, Platform, Transport};

pub(super) static AARCH64: Platform = Platform {
    processor: Processor { name: "aarch64", arch: Arch::Aarch64, also_runs: &[], kernel_package: "linux-image-arm64" },
    programs: &["qemu-system-aarch64"],
    places: &["/usr/libexec/qemu-kvm"],
    packages: "qemu-system-arm (Debian), qemu-system-aarch64 (Fedora)",
    machines: &[VIRT, OTHER],
    // Its interrupts are the processor's own registers then: the older controller's are memory, which costs an emulated guest more, and has
    // room for eight processors.
    machine: "virt,gic-version=3",
    properties: VIRT_PROPERTIES,
    talkative: None,
    has_isa_screen: false,
    has_smbios: true,
    own_firmware: None,
    firmware: &[],
    firmware_dirs: &["/usr/share/qemu"],
    uefi_packages: Some("qemu-efi-aarch64 (Debian), edk2-aarch64 (Fedora, RHEL, Arch) or qemu-uefi-aarch64 (openSUSE)"),
    cpu,
    console: "ttyAMA0",
    second_serial: None,
    panic_device: Some("pvpanic-pci"),
    generation_device: None,
    watchdogs: &[Watchdog::I6300esb],
    uncopied: None,
    kvm: None,
};

/// QEMU's `-machine virt,help` for Arm, without those that name a file.
pub(super) const VIRT_PROPERTIES: &[&str] = &[
    "acpi",
    "default-bus-bypass-iommu",
    "dtb-kaslr-seed",
    "dtb-randomness",
    "dump-guest-core",
    "gic-version",
    "graphics",
    "highmem",
    "iommu",
    "its",
    "mem-merge",
    "mte",
    "ras",
    "secure",
    "suppress-vmdesc",
    "usb",
    "virtualization",
];

pub(super) const VIRT: MachineType = MachineType::plain("virt", "virt-", Transport::Pci);

pub(super) const OTHER: MachineType = MachineType::plain("", "", Transport::Pci);

/// Under KVM the host's own processor.
///
/// Under translation `max`, but for what costs: pointers are signed by a cheap function instead of the architecture's (`pauth-impdef`), and
/// there are no scalable vectors, whose registers each switch of a task would save. A kernel before 5.12 does not start where there are
/// larger physical addresses (`lpa2`).
fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "max,pauth-impdef=on,sve=off,lpa2=off",
    }
}
