//! 32-bit Arm: QEMU's `virt`.

use belljar_guest_spec::Watchdog;
use belljar_image::{kernel::Arch, processor::Processor};

use super::{Platform, aarch64};

pub(super) static ARM: Platform = Platform {
    processor: Processor { name: "arm", arch: Arch::Elf(40), also_runs: &[], kernel_package: "linux-image-armmp" },
    programs: &["qemu-system-arm"],
    places: &[],
    packages: "qemu-system-arm (Debian, Fedora)",
    // The PCI bus' registers are where a kernel without large physical addresses reaches them.
    machine: "virt,highmem=off",
    machines: &[aarch64::VIRT, aarch64::OTHER],
    properties: aarch64::VIRT_PROPERTIES,
    talkative: None,
    has_isa_screen: false,
    has_smbios: true,
    own_firmware: None,
    firmware: &[],
    firmware_dirs: &["/usr/share/qemu"],
    uefi_packages: Some("qemu-efi-arm (Debian), edk2-arm (Fedora)"),
    cpu: |_| "max",
    console: "ttyAMA0",
    second_serial: None,
    panic_device: Some("pvpanic-pci"),
    generation_device: None,
    watchdogs: &[Watchdog::I6300esb],
    uncopied: None,
    kvm: None,
};
