//! PCs, of 64 bits.

mod probe_guest;

use belljar_guest_spec::{Accel, Watchdog};
use belljar_image::{kernel::Arch, processor::Processor};

use super::{Ide, Kvm, MachineType, Platform, Transport};
use crate::qemu::args::Slots;

pub(super) static X86_64: Platform = Platform {
    processor: Processor {
        name: "x86_64",
        arch: Arch::X86_64,
        also_runs: &[Arch::X86],
        kernel_package: "linux-image-amd64",
    },
    programs: &["qemu-system-x86_64", "qemu-kvm"],
    places: &["/usr/libexec/qemu-kvm", "/usr/lib/qemu/qemu-system-x86_64"],
    packages: "qemu-system-x86 (Debian), qemu-kvm (Fedora, RHEL)",
    machine: "pc",
    machines: &[PC, Q35, OTHER],
    // QEMU's `-machine pc,help`.
    properties: &[
        "acpi",
        "dump-guest-core",
        "fd-bootchk",
        "graphics",
        "hmat",
        "hpet",
        "i8042",
        "kernel-irqchip",
        "kernel_irqchip",
        "max-fw-size",
        "max-ram-below-4g",
        "mem-merge",
        "nvdimm",
        "pit",
        "sata",
        "smbios-entry-point-type",
        "smbus",
        "smm",
        "suppress-vmdesc",
        "usb",
        "vmport",
    ],
    // SeaBIOS speaks there then (`etc/sercon-port`, hw/i386/pc.c), and so do boot loaders that know only the firmware's console.
    talkative: Some(("graphics", "off")),
    has_isa_screen: true,
    has_smbios: true,
    own_firmware: Some("a BIOS"),
    firmware: &[
        "bios-256k.bin",
        "bios.bin",
        "bios-microvm.bin",
        "kvmvapic.bin",
        "linuxboot_dma.bin",
        "linuxboot.bin",
        "pvh.bin",
    ],
    firmware_dirs: &["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm"],
    uefi_packages: Some("ovmf (Debian), edk2-ovmf (Fedora, RHEL, Arch) or qemu-ovmf-x86_64 (openSUSE)"),
    cpu,
    console: "ttyS0",
    second_serial: Some("ttyS1"),
    panic_device: Some("pvpanic"),
    generation_device: Some("vmgenid"),
    watchdogs: &[Watchdog::I6300esb, Watchdog::Ib700, Watchdog::Itco],
    uncopied: None,
    kvm: Some(Kvm { switches: "VT-x, AMD-V", modules: "kvm_intel or kvm_amd", probe: probe_guest::GUEST }),
};

const PC: MachineType = MachineType {
    name: "pc",
    versions: "pc-i440fx-",
    transport: Transport::Pci,
    ide: Ide::Channels(2),
    slots: Some(&PC_SLOTS),
    // Its PCI interrupts the firmware has routed as well as ACPI would, so devices need not ask ACPI. To have each do so costs a guest
    // a fifth of its boot, for the interpreter is slow, and virtio does not even use the answer. Its timer ticks late on a busy host:
    // the kernel's test of the timer's interrupt then ends in a panic ("IO-APIC + timer doesn't work"). `no_timer_check` leaves the
    // test out (the kernel's `kernel-parameters.rst`), as kernels do under KVM.
    words_without_kvm: "acpi=noirq no_timer_check",
};

/// The slots that QEMU itself gives to a machine with one disk. 00 is the host bridge, 01 has ISA and IDE.
static PC_SLOTS: Slots = Slots {
    bus: "pci.0",
    agent_port: 0x02,
    boot_disk: 0x03,
    card: 0x04,
    shares: &[0x05, 0x06, 0x07, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e],
    rng: 0x08,
    ahci: 0x09,
    scsi: 0x0f,
    // ISA, IDE, USB 1 and power management are 0 to 3.
    usb: (0x01, 4),
    first_disk: 0x10,
    last_disk: 0x1f,
};

const Q35: MachineType = MachineType {
    name: "q35",
    versions: "pc-q35-",
    transport: Transport::Pci,
    // Under the name that pc has for its IDE controller.
    ide: Ide::Ahci("ide"),
    slots: None,
    words_without_kvm: "",
};

const OTHER: MachineType = MachineType {
    name: "",
    versions: "",
    transport: Transport::Pci,
    ide: Ide::Channels(2),
    slots: None,
    words_without_kvm: "",
};

/// Under KVM the host's own processor.
///
/// Under translation `max` has every feature that a distribution can ask of a processor (the
/// x86-64-v2 and v3 levels, without which the C library of newer ones refuses to start), and three
/// that cost: with five page-table levels each walk is longer, and where a processor announces fast
/// string moves (`erms`, `fsrm`), kernel and C library use `rep movsb` and `rep stosb`, which
/// QEMU 7.2 runs byte by byte. Measured on QEMU 7.2: the first `modprobe` in Alpine 3.23 took 25 s
/// with `max` and 10 s without the three; zeroing 200 MiB in Debian 12 took 0.37 s and 0.10 s.
fn cpu(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "host,migratable=on",
        Accel::Tcg => "max,-la57,-erms,-fsrm",
    }
}
