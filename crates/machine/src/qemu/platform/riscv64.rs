//! 64-bit RISC-V: QEMU's `virt`, where OpenSBI starts a kernel.

use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::{MachineType, Platform, Transport};

pub(super) static RISCV64: Platform = Platform {
    processor: Processor {
        name: "riscv64",
        arch: Arch::Riscv64,
        also_runs: &[],
        kernel_package: "linux-image-riscv64",
    },
    programs: &["qemu-system-riscv64"],
    places: &[],
    packages: "qemu-system-riscv (Debian 13; in Debian 12 qemu-system-misc), qemu-system-riscv (Fedora)",
    machine: "virt",
    machines: &[VIRT, OTHER],
    // QEMU's `-machine virt,help`, without those that name a file.
    properties: &[
        "acpi",
        "aclint",
        "aia",
        "aia-guests",
        "dump-guest-core",
        "graphics",
        "mem-merge",
        "suppress-vmdesc",
        "usb",
    ],
    talkative: None,
    has_isa_screen: false,
    has_smbios: false,
    own_firmware: None,
    firmware: &["opensbi-riscv64-generic-fw_dynamic.bin"],
    firmware_dirs: &["/usr/share/qemu", "/usr/lib/riscv64-linux-gnu/opensbi/generic"],
    uefi_packages: Some("qemu-efi-riscv64 (Debian 13), edk2-riscv64 (Fedora)"),
    cpu,
    console: "ttyS0",
    second_serial: None,
    panic_device: Some("pvpanic-pci"),
    generation_device: None,
    watchdogs: &[Watchdog::I6300esb],
    uncopied: None,
    kvm: None,
};

const VIRT: MachineType = MachineType::plain("virt", "virt-", Transport::Pci);

const OTHER: MachineType = MachineType::plain("", "", Transport::Pci);

fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        // QEMU 7.2 has no `max`.
        Accel::Tcg => "rv64",
    }
}
