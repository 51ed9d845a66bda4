//! Why a guest cannot be planned.

use std::path::PathBuf;

use belljar_guest_spec::Unresolved;
use belljar_image::{
    boot,
    kernel::{KernelError, NoKernel},
    rootdir,
};

use crate::{
    conceal::ConcealError,
    plan_devices::NoDevice,
    qemu::{args, firmware::NoUefi, platform::Platform, probe},
    share::virtiofsd::NoVirtiofsd,
    ssh::NoSsh,
    tpm::NoTpm,
    volume::VolumeError,
};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A boot disk that is to be a lab disk, of a guest that has none.
    #[error(
        "the boot disk is to be a lab disk (boot-lab), and this guest has none: it boots from {0}; take a disk image, or leave it out"
    )]
    NoBootDisk(String),
    /// No QEMU, or one that cannot be used.
    #[error(transparent)]
    Qemu(#[from] probe::ProbeError),
    /// No UEFI firmware, or none for this machine.
    #[error(transparent)]
    NoUefi(#[from] NoUefi),
    /// There is no TPM to be had.
    #[error(transparent)]
    Tpm(#[from] NoTpm),
    /// It cannot have a device that is asked for.
    #[error(transparent)]
    Device(#[from] NoDevice),
    /// Nobody gets in over SSH.
    #[error(transparent)]
    Ssh(#[from] NoSsh),
    /// There is no server for shares over virtiofs.
    #[error(transparent)]
    Virtiofsd(#[from] NoVirtiofsd),
    /// QEMU cannot share directories.
    #[error("{0}")]
    NoShare(String),
    /// The accelerator that was asked for cannot be had.
    #[error(transparent)]
    Accel(#[from] probe::AccelError),
    /// No installed kernel can do it.
    #[error(transparent)]
    NoKernel(#[from] NoKernel),
    /// Nobody gave a kernel for a container image of another processor.
    #[error(
        "the image is for {arch}, and so must be its kernel, of which this host has none; give one with --kernel, and its modules with --modules \
         (those of Debian's package {package}, unpacked)"
    )]
    NoKernelForImage {
        /// The image's processor.
        arch: belljar_image::kernel::Arch,
        /// The package of Debian's that has one.
        package: &'static str,
    },
    /// Nobody got the image.
    #[error("{0} was not read before it was planned; this is a mistake of Belljar's")]
    NoImage(String),
    /// A container image is for a processor of which no machine is made.
    #[error("the image {image} is for the processor {processor}, of which Belljar makes no machine")]
    ForeignImage {
        /// The image.
        image: String,
        /// What it is for.
        processor: String,
    },
    /// A container image is to run an init that it has not got.
    #[error("{0}")]
    NoInit(String),
    /// The kernel that was named is none.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its modules cannot be read.
    #[error(transparent)]
    Modules(#[from] belljar_image::modules::ModulesError),
    /// The boot files cannot be made.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The root directory is none.
    #[error(transparent)]
    Root(#[from] rootdir::RootDirError),
    /// Belljar's program is to be the guest's first process, and there is none for its processor.
    #[error(
        "this belljar has no agent for {}, which a guest that it initialises itself needs, and one that nobody logs in to; give an image whose login is known, \
         or a kernel with an initramfs{}", platform.processor.arch, platform.how_to_have_agent().map(|how| format!("; or {how}")).unwrap_or_default()
    )]
    NoAgent {
        /// What the guest runs on.
        platform: &'static Platform,
    },
    /// Credentials were asked for where nothing carries them.
    #[error(
        "systemd's credentials come by SMBIOS, which machines for {} do not have; leave access at \"auto\", or ask for another way in (--access initrd)",
        platform.processor.arch
    )]
    NoTables {
        /// What the guest runs on.
        platform: &'static Platform,
    },
    /// A BIOS was asked for where there is none.
    #[error("machines for {} have no BIOS: a disk is started by UEFI there; leave firmware at \"auto\"", platform.processor.arch)]
    NoBios {
        /// What the guest runs on.
        platform: &'static Platform,
    },
    /// What is in an image cannot be started directly.
    #[error("cannot start what is in {} directly: {why}", image.display())]
    Direct {
        /// The image.
        image: PathBuf,
        /// What is in the way, and what to do.
        why: String,
    },
    /// No GRUB of Belljar's starts what is in an image.
    #[error("cannot start what is in {} by a GRUB of Belljar's own: {why}", image.display())]
    Grub {
        /// The image.
        image: PathBuf,
        /// What is in the way, and what to do.
        why: String,
    },
    /// An image that no machine boots from.
    #[error("no guest boots from {}: {why}. If one does, say how to get into it: --access, or `access` in its table", image.display())]
    Unbootable {
        /// The image.
        image: PathBuf,
        /// All that was found in the way, and what to do.
        why: String,
    },
    /// A volume cannot be had.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What the guest must not see cannot be hidden.
    #[error(transparent)]
    Conceal(#[from] ConcealError),
    /// The agent could not be put where the guest fetches it.
    #[error("cannot put the agent into the run's directory: {source}; it must be writable and have room")]
    Control {
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no socket for the TPM.
    #[error("cannot make the line to the TPM: {source}")]
    TpmLine {
        /// What the system said.
        source: std::io::Error,
    },
    /// The environment was not looked at.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The machine cannot be put into a command line.
    #[error(transparent)]
    Args(#[from] args::ArgsError),
}
