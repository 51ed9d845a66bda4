//! Which settings go together.

use crate::words::{Access, Word};

/// A setting that says what a guest boots from, or depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The disk image.
    Image,
    /// Its format.
    ImageFormat,
    /// What the image is plugged into.
    BootBus,
    /// Whether Belljar serves the disk that is booted from.
    BootLab,
    /// What starts the image's boot loader.
    Firmware,
    /// The kernel.
    Kernel,
    /// Several kernels, for a guest each.
    Kernels,
    /// The initramfs.
    Initrd,
    /// The root directory.
    Rootfs,
    /// A root that is a container image and no directory, beside [`Key::Rootfs`].
    RootImage,
    /// The kernel's modules.
    Modules,
    /// Words for the kernel's command line.
    Append,
    /// How to get in.
    Access,
    /// The login on the serial console.
    Login,
    /// The container's image.
    Container,
    /// Whether it may be fetched.
    Pull,
    /// Whether the container may do what its engine may.
    Privileged,
    /// Whether the image's systemd is the container's first process.
    Systemd,
    /// The TPM.
    Tpm,
    /// The watchdog.
    Watchdog,
    /// The balloon.
    Balloon,
    /// The graphics card.
    Display,
    /// The sound card.
    Sound,
    /// The source of randomness.
    Rng,
    /// How processors are put together.
    CpuTopology,
    /// Further serial ports.
    SerialPorts,
    /// Nodes of processors and memory.
    Numa,
    /// Persistent memory.
    Pmem,
    /// What is kept of its memory when its kernel fails.
    PanicDump,
    /// QEMU's machine type.
    Machine,
    /// QEMU's CPU model.
    Cpu,
    /// Arguments for QEMU.
    QemuArgs,
    /// What carries the workspace.
    Share,
    /// The key for SSH.
    SshKey,
}

impl Key {
    /// What it is called, in `belljar.toml` and on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ImageFormat => "image-format",
            Self::BootBus => "boot-bus",
            Self::BootLab => "boot-lab",
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
            Self::Kernels => "kernels",
            Self::Initrd => "initrd",
            Self::Rootfs | Self::RootImage => "rootfs",
            Self::Modules => "modules",
            Self::Append => "append",
            Self::Access => "access",
            Self::Login => "login",
            Self::Container => "container",
            Self::Pull => "pull",
            Self::Privileged => "privileged",
            Self::Systemd => "systemd",
            Self::Tpm => "tpm",
            Self::Watchdog => "watchdog",
            Self::Balloon => "balloon",
            Self::Display => "display",
            Self::Sound => "sound",
            Self::Rng => "rng",
            Self::CpuTopology => "cpu-topology",
            Self::SerialPorts => "serial-ports",
            Self::Numa => "numa",
            Self::Pmem => "pmem",
            Self::PanicDump => "panic-dump",
            Self::Machine => "machine",
            Self::Cpu => "cpu",
            Self::QemuArgs => "qemu-args",
            Self::Share => "share",
            Self::SshKey => "ssh-key",
        }
    }
}

/// How settings are written where a person reads about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// As in `belljar.toml`.
    Toml,
    /// As on the command line.
    Options,
}

impl Notation {
    fn key(self, key: Key) -> String {
        match self {
            Self::Options if key == Key::QemuArgs => "--qemu-arg".to_owned(),
            Self::Options if key == Key::SerialPorts => "--serial-port".to_owned(),
            Self::Options if key == Key::Rng => "--no-rng".to_owned(),
            Self::Toml => format!("`{}`", key.word()),
            Self::Options => format!("--{}", key.word()),
        }
    }

    fn with_value(self, key: Key, value: &str) -> String {
        match self {
            Self::Toml => format!("{} = \"{value}\"", key.word()),
            Self::Options => format!("--{} {value}", key.word()),
        }
    }
}

/// Settings that do not go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The setting that is in the way.
    pub key: Key,
    /// Of what, and why.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// Devices that only a machine has, each by its own key.
pub const DEVICES: [Key; 9] = [
    Key::Watchdog,
    Key::Balloon,
    Key::Display,
    Key::Sound,
    Key::Rng,
    Key::CpuTopology,
    Key::SerialPorts,
    Key::Numa,
    Key::Pmem,
];

/// What else only a machine has.
const OF_MACHINES: [Key; 19] = [
    Key::Image,
    Key::ImageFormat,
    Key::BootBus,
    Key::BootLab,
    Key::Firmware,
    Key::Kernel,
    Key::Kernels,
    Key::Initrd,
    Key::Rootfs,
    Key::Modules,
    Key::Append,
    Key::Access,
    Key::Login,
    Key::Tpm,
    Key::PanicDump,
    Key::Machine,
    Key::Cpu,
    Key::QemuArgs,
    Key::Share,
];

/// All that is wrong with the settings that say what a guest boots from. `has` tells which are there.
#[must_use]
pub fn source(has: impl Fn(Key) -> bool, access: Option<Access>, notation: Notation) -> Vec<Conflict> {
    let name = |key| notation.key(key);
    let mut found = Vec::new();
    let mut wrong = |key, message: String, help: String| {
        if has(key) {
            found.push(Conflict { key, message, help });
        }
    };
    let (image, initrd) = (has(Key::Image), has(Key::Initrd));
    if has(Key::Container) {
        let container = name(Key::Container);
        for key in OF_MACHINES.into_iter().chain(DEVICES) {
            let message = format!("{} does not go with {container}: a container is no machine", name(key));
            wrong(key, message, "leave one of the two out".into());
        }
        return found;
    }
    let of_containers = [Key::Pull, Key::Privileged, Key::Systemd];
    for key in of_containers.into_iter().filter(|&key| key != Key::Pull || !has(Key::RootImage)) {
        let (key_name, container) = (name(key), name(Key::Container));
        let message = format!("{key_name} says something about {container}, which is not given");
        wrong(key, message, format!("give {container} too"));
    }
    if image {
        for key in [Key::Kernel, Key::Kernels, Key::Initrd, Key::Rootfs, Key::Modules, Key::Append] {
            let (key_name, image) = (name(key), name(Key::Image));
            let message =
                format!("{key_name} does not go with {image}: a disk image brings its own kernel and kernel line");
            wrong(key, message, "leave one of the two out".into());
        }
    } else {
        for key in [Key::ImageFormat, Key::BootBus, Key::BootLab] {
            let (key_name, image) = (name(key), name(Key::Image));
            wrong(
                key,
                format!("{key_name} says something about {image}, which is not given"),
                format!("give {image} too"),
            );
        }
        let (firmware, image) = (name(Key::Firmware), name(Key::Image));
        let message = format!("{firmware} needs {image}: the kernel of any other guest is started without it");
        wrong(Key::Firmware, message, "leave it out".into());
        if has(Key::Kernels) {
            let kernels = name(Key::Kernels);
            let message = format!("{} does not go with {kernels}", name(Key::Kernel));
            wrong(Key::Kernel, message, "add it to the others, or leave them out".into());
            for key in [Key::Initrd, Key::Modules] {
                let message = format!("{} does not go with {kernels}: it would be the same for all of them", name(key));
                wrong(key, message, "describe a guest of its own for each kernel".into());
            }
        }
        if !has(Key::Kernel) && !has(Key::Kernels) {
            let message = format!("{} needs {}", name(Key::Initrd), name(Key::Kernel));
            wrong(Key::Initrd, message, format!("such as {}", notation.with_value(Key::Kernel, "boot/vmlinuz")));
        }
        if initrd {
            let message = format!("{} does not go with {}", name(Key::Rootfs), name(Key::Initrd));
            wrong(Key::Rootfs, message, "a guest has one or the other".into());
        }
    }
    let asked = |access: Access| notation.with_value(Key::Access, access.word());
    match access {
        Some(Access::Init) if image => {
            let message = format!(
                "{} does not go with {}: a disk image brings its own kernel line",
                asked(Access::Init),
                name(Key::Image)
            );
            wrong(Key::Access, message, "leave it out".into());
        }
        Some(Access::Console) if !image && !initrd => {
            let message = format!("{} needs {} or {}", asked(Access::Console), name(Key::Image), name(Key::Initrd));
            let help = if has(Key::RootImage) {
                let beside = asked(Access::Initrd);
                format!(
                    "Belljar's own init is the first process there, or with {beside} the image's own, with the agent beside it"
                )
            } else {
                "in other guests Belljar's own init is the only way in".to_owned()
            };
            wrong(Key::Access, message, help);
        }
        // By it the init of a container image runs, too.
        Some(Access::Initrd) if has(Key::RootImage) => {}
        Some(Access::Initrd) if has(Key::Rootfs) && !image && !initrd => {
            let message = format!(
                "{} does not go with {}, which is a directory of this host's: its init would run on files that the host goes on serving, so that the \
                 guest could not be frozen and copied, would see the directory change, and could read no more of it than you",
                asked(Access::Initrd),
                name(Key::Rootfs)
            );
            let own = notation.with_value(Key::Rootfs, "container:/PATH/TO/DIR");
            let help =
                format!("with {own} the directory is read into a file system of the guest's own, and its init runs");
            wrong(Key::Access, message, help);
        }
        Some(
            wanted @ (Access::Credentials
            | Access::Initrd
            | Access::Grub
            | Access::CloudInit
            | Access::Ignition
            | Access::Ssh),
        ) if !image => {
            let or = if wanted == Access::Initrd {
                format!(" or {}", notation.with_value(Key::Rootfs, "container:…"))
            } else {
                String::new()
            };
            let message = format!("{} needs {}{or}", asked(wanted), name(Key::Image));
            wrong(Key::Access, message, "leave it out".into());
        }
        _ => {}
    }
    if !matches!(access, None | Some(Access::Auto | Access::Ssh)) {
        let message = format!("{} has no effect with {}", name(Key::SshKey), asked(access.unwrap_or_default()));
        wrong(Key::SshKey, message, format!("leave one of the two out, or say {}", asked(Access::Ssh)));
    } else if !image {
        let message = format!("{} needs {}", name(Key::SshKey), name(Key::Image));
        wrong(Key::SshKey, message, "leave it out".into());
    }
    if access == Some(Access::Init) || (!image && !initrd) {
        let message = format!("{} has no effect in a guest that starts Belljar's own init", name(Key::Login));
        wrong(Key::Login, message, "leave it out; `user` says who runs the tests".into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts(keys: &[Key], access: Option<Access>) -> Vec<Key> {
        source(|key| keys.contains(&key), access, Notation::Toml).into_iter().map(|c| c.key).collect()
    }

    #[test]
    fn what_does_not_go_together() {
        use Key::{
            Append, BootBus, BootLab, Firmware, Image, ImageFormat, Initrd, Kernel, Kernels, Login, Modules, Rootfs,
        };
        for fine in [
            &[][..],
            &[Image, ImageFormat, BootBus, BootLab, Firmware, Login],
            &[Kernel, Initrd, Modules, Append, Login],
            &[Kernel, Rootfs, Modules],
            &[Append],
        ] {
            assert_eq!(conflicts(fine, None), [], "{fine:?}");
        }
        assert_eq!(
            conflicts(&[Image, Kernel, Initrd, Rootfs, Modules, Append], None),
            [Kernel, Initrd, Rootfs, Modules, Append]
        );
        assert_eq!(conflicts(&[ImageFormat, BootBus, BootLab], None), [ImageFormat, BootBus, BootLab]);
        assert_eq!(conflicts(&[Firmware], None), [Firmware]);
        assert_eq!(conflicts(&[Kernel, Initrd, Firmware], None), [Firmware]);
        assert_eq!(conflicts(&[Initrd], None), [Initrd]);
        assert_eq!(conflicts(&[Kernels, Rootfs, Append], None), []);
        assert_eq!(conflicts(&[Kernels, Kernel, Initrd, Modules], None), [Kernel, Initrd, Modules]);
        assert_eq!(conflicts(&[Image, Kernels], None), [Kernels]);
        assert_eq!(conflicts(&[Kernel, Initrd, Rootfs], None), [Rootfs]);
        assert_eq!(conflicts(&[Image, Key::Access], Some(Access::Init)), [Key::Access]);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::Access], Some(Access::Init)), []);
        assert_eq!(conflicts(&[Key::Access], Some(Access::Console)), [Key::Access]);
        assert_eq!(conflicts(&[Image, Key::Access], Some(Access::Credentials)), []);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::Access], Some(Access::Initrd)), [Key::Access]);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::Access], Some(Access::CloudInit)), [Key::Access]);
        assert_eq!(conflicts(&[Image, Key::Access], Some(Access::CloudInit)), []);
        assert_eq!(conflicts(&[Rootfs, Key::RootImage, Key::Access], Some(Access::Initrd)), []);
        assert_eq!(conflicts(&[Rootfs, Key::RootImage, Key::Access], Some(Access::Ssh)), [Key::Access]);
        assert_eq!(conflicts(&[Rootfs, Key::Access], Some(Access::Initrd)), [Key::Access]);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::Access], Some(Access::Ignition)), [Key::Access]);
        assert_eq!(conflicts(&[Login], None), [Login]);
        assert_eq!(conflicts(&[Rootfs, Key::RootImage, Kernel, Key::Pull], None), []);
        assert_eq!(conflicts(&[Rootfs, Key::Pull], None), [Key::Pull]);
        assert_eq!(conflicts(&[Rootfs, Key::RootImage, Key::Privileged], None), [Key::Privileged]);
        let (container, tpm) = (Key::Container, Key::Tpm);
        let of_containers = [Key::Pull, Key::Privileged, Key::Systemd];
        assert_eq!(conflicts(&[&[container][..], &of_containers].concat(), None), []);
        assert_eq!(conflicts(&of_containers, None), of_containers);
        assert_eq!(conflicts(&[container, Image, Kernel, tpm, Login], None), [Image, Kernel, Login, tpm]);
        assert_eq!(conflicts(&[tpm, Image], None), []);
        assert_eq!(conflicts(&[Image, Key::SshKey, Login], None), []);
        assert_eq!(conflicts(&[Image, Key::SshKey, Key::Access], Some(Access::Ssh)), []);
        assert_eq!(conflicts(&[Image, Key::SshKey, Key::Access], Some(Access::Console)), [Key::SshKey]);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::SshKey], None), [Key::SshKey]);
        assert_eq!(conflicts(&[Kernel, Initrd, Key::Access, Login], Some(Access::Init)), [Login]);
    }

    #[test]
    fn how_the_init_of_a_directory_runs_is_told() {
        let has = |key| matches!(key, Key::Rootfs | Key::Access);
        let found = source(has, Some(Access::Initrd), Notation::Toml);
        assert!(found[0].message.starts_with("access = \"initrd\" does not go with `rootfs`"), "{found:?}");
        assert!(
            found[0].help.starts_with("with rootfs = \"container:/PATH/TO/DIR\" the directory is read"),
            "{found:?}"
        );
    }

    #[test]
    fn each_place_has_its_own_notation() {
        let said = |notation| source(|key| matches!(key, Key::Image | Key::Kernel), None, notation)[0].message.clone();
        assert!(said(Notation::Toml).starts_with("`kernel` does not go with `image`"));
        assert!(said(Notation::Options).starts_with("--kernel does not go with --image"));
    }
}
