//! POWER, of 64 bits: QEMU's `pseries`, a partition as its hypervisor makes them.

use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::{MachineType, Platform, Transport};

pub(super) static PPC64LE: Platform = Platform {
    processor: Processor {
        name: "ppc64le",
        arch: Arch::Elf(21),
        also_runs: &[],
        kernel_package: "linux-image-powerpc64le",
    },
    programs: &["qemu-system-ppc64", "qemu-system-ppc64le"],
    places: &["/usr/libexec/qemu-kvm"],
    packages: "qemu-system-ppc (Debian, Fedora)",
    // Mitigations that an emulated processor does not have, and of which QEMU would say so at each start.
    machine: "pseries,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off",
    machines: &[PSERIES, OTHER],
    // QEMU's `-machine pseries,help`, without those that name a file.
    properties: &[
        "cap-ccf-assist",
        "cap-cfpc",
        "cap-dfp",
        "cap-fwnmi",
        "cap-hpt-max-page-size",
        "cap-htm",
        "cap-ibs",
        "cap-large-decr",
        "cap-nested-hv",
        "cap-rpt-invalidate",
        "cap-sbbc",
        "cap-vsx",
        "dump-guest-core",
        "graphics",
        "ic-mode",
        "kvm-type",
        "max-cpu-compat",
        "mem-merge",
        "resize-hpt",
        "suppress-vmdesc",
        "usb",
        "vsmt",
        "x-vof",
    ],
    talkative: None,
    has_isa_screen: false,
    has_smbios: false,
    own_firmware: Some("Open Firmware (SLOF)"),
    firmware: &["slof.bin", "vof.bin"],
    firmware_dirs: &["/usr/share/qemu", "/usr/share/slof"],
    uefi_packages: None,
    cpu,
    console: "hvc0",
    second_serial: None,
    // The kernel tells the hypervisor of a panic itself.
    panic_device: None,
    generation_device: None,
    watchdogs: &[Watchdog::I6300esb],
    // Seen with QEMU 7.2: the kernel of a copy reads at wrong addresses.
    uncopied: Some("QEMU does not bring a frozen machine of this type (pseries) back as it was"),
    kvm: None,
};

const PSERIES: MachineType = MachineType::plain("pseries", "pseries-", Transport::Pci);

const OTHER: MachineType = MachineType::plain("", "", Transport::Pci);

fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host",
        Accel::Tcg => "power9",
    }
}
