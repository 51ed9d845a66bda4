//! A guest as it is asked for. Nothing here has been looked at yet; [`crate::plan`] resolves it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_proto::message::MountMode;

use crate::{access::Credentials, bounds::Bounds};

/// The machine under test, as described.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// What it boots from.
    pub source: Source,
    /// Bytes of memory.
    pub memory: u64,
    /// Number of processors.
    pub cpus: u32,
    /// QEMU machine type; none means Belljar's choice.
    pub machine: Option<String>,
    /// QEMU CPU model; none means Belljar's choice.
    pub cpu: Option<String>,
    /// Extra disks.
    pub disks: Vec<DiskSpec>,
    /// The network card.
    pub nic: NicSpec,
    /// Words added to the kernel's command line, where Belljar gives the kernel.
    pub append: Vec<String>,
    /// Passed to QEMU as they are, after all else.
    pub qemu_args: Vec<OsString>,
    /// How to log in on the serial console.
    pub login: Option<Credentials>,
    /// The host name of guests that Belljar initialises itself.
    pub hostname: String,
    /// `KEY=VALUE`: the environment of guests that Belljar initialises itself.
    pub env: Vec<String>,
    /// What a fault that the guest's kernel reports does.
    pub oops: OopsPolicy,
    /// Limit to the boot, from QEMU's start until a command can run; none means the default for the accelerator.
    pub boot_timeout: Option<Duration>,
    /// What of the host it must not see, beside what no guest sees. The last part of a path may end in `*`.
    pub hide: Vec<PathBuf>,
}

impl GuestSpec {
    /// The guest that boots from `source` where nothing else is said of it.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            memory: 1 << 30,
            cpus: 1,
            machine: None,
            cpu: None,
            disks: Vec::new(),
            nic: NicSpec::default(),
            append: Vec::new(),
            qemu_args: Vec::new(),
            login: None,
            hostname: "belljar".to_owned(),
            env: Vec::new(),
            oops: OopsPolicy::default(),
            boot_timeout: None,
            hide: Vec::new(),
        }
    }
}

/// What a guest boots from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A disk image with a boot loader of its own.
    Disk {
        /// The image.
        path: PathBuf,
        /// Its format where the user gave it; none asks `qemu-img`.
        format: Option<String>,
        /// How it is attached.
        bus: Bus,
    },
    /// A kernel with somebody else's initramfs.
    Initramfs {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// Directory of the kernel's modules, for those that the agent needs.
        modules: Option<PathBuf>,
        /// Take over as the first process instead of looking for a shell on the serial line.
        take_over: bool,
    },
    /// A root directory of the host under a kernel of the host.
    RootDir {
        /// The directory.
        root: PathBuf,
        /// The kernel; none means the newest installed one that can do it.
        kernel: Option<PathBuf>,
        /// Directory of the kernel's modules; none means that of the kernel's version.
        modules: Option<PathBuf>,
    },
}

/// Where a disk is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
    /// The PIIX controller of the `pc` machine.
    Ide,
    /// NVMe.
    Nvme,
}

/// One extra disk. What is written to it is thrown away with the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// What is on it at first.
    pub content: DiskContent,
    /// Its serial number, by which the guest finds it (`/dev/disk/by-id/virtio-SERIAL`).
    pub serial: Option<String>,
    /// Where it is attached.
    pub bus: Bus,
}

/// What is on a disk at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskContent {
    /// This many bytes of zeros.
    Empty(u64),
    /// An image, which is not written to.
    Image(PathBuf),
}

/// The guest's network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicSpec {
    /// There is none.
    None,
    /// DHCP answers, and nothing is reachable, the host included.
    #[default]
    Isolated,
    /// The outside world through QEMU's user-mode network.
    User,
}

/// What a fault that the guest's kernel reports does to the run. A panic always ends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OopsPolicy {
    /// The guest counts as crashed.
    #[default]
    Crash,
    /// It is noted, and the run goes on.
    Note,
}

/// The host directories that a guest sees.
#[derive(Clone, Debug)]
pub struct ShareSpec {
    /// The workspace, unless there is to be none.
    pub workspace: Option<Workspace>,
    /// Host directory behind `$BELLJAR_OUT`; it exists.
    pub out: PathBuf,
    /// Somebody asked for what is written there: a guest that cannot have it is of no use.
    pub out_wanted: bool,
    /// How much the guest may write.
    pub bounds: Bounds,
    /// The kernel's modules, for a root that has none; [`crate::plan`] finds them.
    pub modules: Option<KernelModules>,
}

/// The modules of a guest's kernel, which its root does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModules {
    /// The directory on the host, such as `/lib/modules/6.1.0-56-amd64`.
    pub dir: PathBuf,
    /// What `uname -r` says in the guest.
    pub release: String,
}

impl ShareSpec {
    /// Whether the guest needs any share at all; where neither a workspace nor the output directory was asked for, a guest that
    /// has no 9p is welcome too.
    #[must_use]
    pub fn required(&self) -> bool {
        self.workspace.is_some() || self.out_wanted
    }

    /// Directories that the guest writes to.
    pub(crate) fn written(&self) -> impl Iterator<Item = &Path> {
        let workspace = self.workspace.as_ref().filter(|w| w.mode == MountMode::ReadWrite);
        workspace.map(|w| &*w.dir).into_iter().chain([&*self.out])
    }

    /// Where in the guest the workspace is, if what is done to it stays there.
    #[must_use]
    pub fn layer(&self) -> Option<&str> {
        let workspace = self.workspace.as_ref().filter(|w| w.mode == MountMode::CopyOnWrite)?;
        Some(&workspace.mount_at)
    }
}

/// The host directory that holds the tests.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Absolute host path.
    pub dir: PathBuf,
    /// What becomes of the guest's writes.
    pub mode: MountMode,
    /// Absolute path in the guest.
    pub mount_at: String,
}
