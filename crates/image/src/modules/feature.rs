//! What a guest may need of its kernel, and the modules that give it.

/// Whether a kernel has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Presence {
    /// In the kernel itself.
    Builtin,
    /// As a module, or partly so.
    Module,
    /// Not at all.
    Absent,
}

/// Something that a guest needs of its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// The bus that every virtio device of a PC is on.
    VirtioPci,
    /// Ports such as the agent's.
    VirtioConsole,
    /// Shares: the 9p file system and its virtio transport.
    NineP,
    /// Writable layers.
    Overlay,
    /// virtio disks.
    VirtioBlk,
    /// virtio SCSI disks.
    VirtioScsi,
    /// NVMe disks.
    Nvme,
    /// SATA disks, on an AHCI controller.
    Ahci,
    /// Disks on the IDE controller of QEMU's machine `pc`.
    Piix,
    /// Network cards that QEMU calls `e1000e`.
    E1000e,
    /// Network cards that QEMU calls `e1000`.
    E1000,
    /// virtio network interfaces.
    VirtioNet,
    /// Raw packets, which DHCP clients use.
    AfPacket,
    /// Random numbers from the host.
    VirtioRng,
    /// A file system whose module has its name; that of ext4 is also for ext2 and ext3.
    FileSystem(&'static str),
    /// Sockets between host and guest.
    Vsock,
    /// Checksums that the kernel's library for them asks for by name: modules that need that library cannot be inserted without, although none names it.
    Crc32c,
    /// The device by which a kernel tells QEMU of its panic, on a PC.
    Pvpanic,
    /// The same on a PCI bus.
    PvpanicPci,
}

impl Feature {
    /// Every feature.
    pub const ALL: &[Feature] = &[
        Feature::VirtioPci,
        Feature::VirtioConsole,
        Feature::NineP,
        Feature::Overlay,
        Feature::VirtioBlk,
        Feature::VirtioScsi,
        Feature::Nvme,
        Feature::Ahci,
        Feature::Piix,
        Feature::E1000e,
        Feature::E1000,
        Feature::VirtioNet,
        Feature::AfPacket,
        Feature::VirtioRng,
        Feature::FileSystem("ext4"),
        Feature::FileSystem("virtiofs"),
        Feature::FileSystem("erofs"),
        Feature::Vsock,
    ];

    /// Without these no kernel boots a root directory that is shared over 9p. The agent's port is not among them: it
    /// can do with a serial port.
    pub const HOST_USERLAND: &[Feature] = &[Feature::VirtioPci, Feature::NineP, Feature::Overlay];

    /// Without these no kernel boots the files of a container image, which are on a disk.
    pub const CONTAINER_IMAGE: &[Feature] =
        &[Feature::VirtioPci, Feature::VirtioBlk, Feature::FileSystem("erofs"), Feature::Overlay];

    /// The modules that give it, by the names that `modules.builtin` and `modules.dep` know.
    #[must_use]
    pub fn modules(&self) -> &[&'static str] {
        match self {
            Feature::VirtioPci => &["virtio_pci"],
            Feature::VirtioConsole => &["virtio_console"],
            Feature::NineP => &["9pnet_virtio", "9p"],
            Feature::Overlay => &["overlay"],
            Feature::VirtioBlk => &["virtio_blk"],
            Feature::VirtioScsi => &["virtio_scsi", "sd_mod"],
            Feature::Nvme => &["nvme"],
            Feature::Ahci => &["ahci", "sd_mod"],
            Feature::Piix => &["ata_piix", "sd_mod"],
            Feature::E1000e => &["e1000e"],
            Feature::E1000 => &["e1000"],
            Feature::VirtioNet => &["virtio_net"],
            Feature::AfPacket => &["af_packet"],
            Feature::VirtioRng => &["virtio_rng"],
            Feature::FileSystem(name) => std::slice::from_ref(name),
            Feature::Vsock => &["vmw_vsock_virtio_transport"],
            Feature::Crc32c => &["crc32c_generic"],
            // Of the ACPI device, too, since Linux 5.13.
            Feature::Pvpanic => &["pvpanic_mmio"],
            Feature::PvpanicPci => &["pvpanic_pci"],
        }
    }
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Feature::FileSystem(name) => return write!(f, "{name} file system"),
            Feature::VirtioPci => "virtio over PCI",
            Feature::VirtioConsole => "virtio console",
            Feature::NineP => "9p over virtio",
            Feature::Overlay => "overlay file system",
            Feature::VirtioBlk => "virtio disk",
            Feature::VirtioScsi => "virtio SCSI disk",
            Feature::Nvme => "NVMe disk",
            Feature::Ahci => "SATA disk",
            Feature::Piix => "IDE disk",
            Feature::E1000e => "e1000e network",
            Feature::E1000 => "e1000 network",
            Feature::VirtioNet => "virtio network",
            Feature::AfPacket => "packet socket",
            Feature::VirtioRng => "virtio random numbers",
            Feature::Vsock => "vsock over virtio",
            Feature::Crc32c => "CRC-32C",
            Feature::Pvpanic | Feature::PvpanicPci => "device that tells of a panic",
        })
    }
}
