//! The words that settings of a guest choose from.

use std::fmt;

/// A setting that is one of a few words.
pub trait Word: Copy + Eq + fmt::Display + 'static {
    /// Every word with its meaning, in the order in which they are told.
    const ALL: &'static [(&'static str, Self)];

    /// The word for it.
    #[must_use]
    fn word(self) -> &'static str;

    /// What a word means; nothing if it is none of them.
    #[must_use]
    fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning)
    }

    /// All words.
    fn words() -> impl Iterator<Item = &'static str> + Clone {
        Self::ALL.iter().map(|(word, _)| *word)
    }
}

/// Makes an enumeration that is written as one of a few words; whoever uses it has `serde` with its derives.
#[macro_export]
macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $word:literal, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $( $(#[$variant_meta])* #[serde(rename = $word)] $variant, )* }

        impl $crate::Word for $name {
            const ALL: &'static [(&'static str, Self)] = &[ $( ($word, Self::$variant), )* ];

            fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::Word::word(*self))
            }
        }
    };
}

words! {
    /// How QEMU runs the guest's instructions.
    Accel {
        /// On the processor, through `/dev/kvm`.
        Kvm = "kvm",
        /// By translation: works everywhere, about ten times slower.
        Tcg = "tcg",
    }
}

words! {
    /// How Belljar gets into a guest.
    #[derive(Default)]
    Access {
        /// By what the guest offers.
        #[default]
        Auto = "auto",
        /// By a shell on the serial line.
        Console = "console",
        /// By Belljar's own init, as the first process.
        Init = "init",
        /// By a unit that the guest's systemd is given from outside, as a credential.
        Credentials = "credentials",
        /// By Belljar's program beside the guest's own init: that of a disk image, whose kernel is started directly with the program in its initramfs,
        /// or that of a container image.
        Initrd = "initrd",
        /// The same, where a GRUB of Belljar's own starts the kernel, which reads what Belljar itself may not be able to.
        Grub = "grub",
        /// By cloud-init, which the image has, and which finds on a further disk what to start.
        CloudInit = "cloud-init",
        /// By Ignition, which the image has, at its first boot.
        Ignition = "ignition",
        /// By SSH, with a key or a password.
        Ssh = "ssh",
    }
}

words! {
    /// What a disk is to be plugged into.
    #[derive(Default)]
    BusChoice {
        /// virtio, or what else an image's kernel has a driver for where it is known to have none for that.
        #[default]
        Auto = "auto",
        /// [`DiskBus::Virtio`].
        Virtio = "virtio",
        /// [`DiskBus::Scsi`].
        Scsi = "scsi",
        /// [`DiskBus::Sata`].
        Sata = "sata",
        /// [`DiskBus::Ide`].
        Ide = "ide",
        /// [`DiskBus::Nvme`].
        Nvme = "nvme",
        /// [`DiskBus::Usb`].
        Usb = "usb",
    }
}

impl BusChoice {
    /// The bus that was asked for, if one was.
    #[must_use]
    pub fn asked(self) -> Option<DiskBus> {
        match self {
            Self::Auto => None,
            Self::Virtio => Some(DiskBus::Virtio),
            Self::Scsi => Some(DiskBus::Scsi),
            Self::Sata => Some(DiskBus::Sata),
            Self::Ide => Some(DiskBus::Ide),
            Self::Nvme => Some(DiskBus::Nvme),
            Self::Usb => Some(DiskBus::Usb),
        }
    }
}

words! {
    /// What a disk is plugged into.
    DiskBus {
        /// virtio-blk: `vda`.
        Virtio = "virtio",
        /// virtio-scsi: `sda`.
        Scsi = "scsi",
        /// SATA (AHCI): `sda`.
        Sata = "sata",
        /// The PIIX controller of the machine type `pc`; on q35, which has none, SATA.
        Ide = "ide",
        /// NVMe: `nvme0n1`.
        Nvme = "nvme",
        /// USB, behind an xHCI controller: `sda`.
        Usb = "usb",
    }
}

words! {
    /// What starts a guest's boot loader.
    #[derive(Default)]
    Firmware {
        /// What the image has a boot loader for: the BIOS' if it has one, else UEFI's.
        #[default]
        Auto = "auto",
        /// The BIOS of the machine.
        Bios = "bios",
        /// UEFI, with variables of its own for each guest.
        Uefi = "uefi",
    }
}

words! {
    /// What a guest can reach through its network card.
    #[derive(Default)]
    NicMode {
        /// There is no card.
        None = "none",
        /// DHCP answers, nothing else does: neither the host nor anything beyond it.
        #[default]
        Isolated = "isolated",
        /// Outward connections with the rights of the user, the host's own services (10.0.2.2) included.
        User = "user",
    }
}

words! {
    /// Whether a container's image may be fetched from where it comes from.
    #[derive(Default)]
    PullPolicy {
        /// It must be here.
        #[default]
        Never = "never",
        /// It is fetched if it is not here.
        Missing = "missing",
        /// What is newer than what is here is fetched.
        Always = "always",
    }
}

words! {
    /// What a test needs of the kind of guest that it runs in.
    #[derive(PartialOrd, Ord)]
    Need {
        /// A machine of its own, with a kernel, devices and a boot: no container.
        Machine = "machine",
        /// systemd as the first process, which services, timers and the like are asked of.
        Systemd = "systemd",
    }
}

words! {
    /// What a fault that the guest's kernel reports does to the run. A panic always ends it.
    #[derive(Default)]
    OopsPolicy {
        /// The guest counts as crashed.
        #[default]
        Crash = "crash",
        /// It is noted, and the run goes on.
        Note = "note",
    }
}

words! {
    /// What carries the host's directories into a guest.
    #[derive(Default)]
    ShareKind {
        /// FUSE where the guest's kernel has it, else 9p; where it is known to have neither, a disk.
        #[default]
        Auto = "auto",
        /// A 9p device, served by QEMU.
        NineP = "9p",
        /// The guest's own FUSE, whose requests go through a port to Belljar.
        Fuse = "fuse",
        /// A disk with an archive, which the agent unpacks, and to which it writes what was changed.
        Disk = "disk",
        /// A virtiofs device, served by the program `virtiofsd`; never chosen by itself.
        Virtiofs = "virtiofs",
    }
}

words! {
    /// What becomes of the guest's writes to the workspace.
    WorkspaceMode {
        /// They are written to the host.
        Rw = "rw",
        /// They are refused.
        Ro = "ro",
        /// They stay in the guest.
        Cow = "cow",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_both_ways<W: Word + fmt::Debug>() {
        for (word, meaning) in W::ALL {
            assert_eq!((W::of(word), meaning.word()), (Some(*meaning), *word));
        }
        assert_eq!(W::of("else"), None);
    }

    #[test]
    fn a_bus_is_asked_for_by_its_own_word() {
        for (word, choice) in BusChoice::ALL {
            assert_eq!(choice.asked(), DiskBus::of(word), "{word}");
        }
    }

    #[test]
    fn words_go_both_ways() {
        go_both_ways::<Accel>();
        go_both_ways::<Access>();
        go_both_ways::<BusChoice>();
        go_both_ways::<DiskBus>();
        go_both_ways::<Firmware>();
        go_both_ways::<Need>();
        go_both_ways::<NicMode>();
        go_both_ways::<OopsPolicy>();
        go_both_ways::<PullPolicy>();
        go_both_ways::<ShareKind>();
        go_both_ways::<crate::Display>();
        go_both_ways::<crate::Sound>();
        go_both_ways::<crate::Watchdog>();
        go_both_ways::<WorkspaceMode>();
    }
}
