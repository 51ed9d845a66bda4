//! The machine under test, as described.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use thiserror::Error;

use crate::{
    devices::Devices,
    disk::DiskSpec,
    image_ref::{CONTAINER_PREFIX, ImageRef},
    login::{Credentials, Login, Password, Secret},
    rules::Key,
    words::{Accel, Access, BusChoice, Firmware, NicMode, OopsPolicy, PullPolicy, ShareKind},
};

/// Bytes of memory where nothing else is said.
pub const DEFAULT_MEMORY: u64 = 1 << 30;
/// Where the guest sees the workspace where nothing else is said.
pub const DEFAULT_MOUNT_AT: &str = "/mnt/hostos";

/// The machine under test, as described.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestSpec {
    /// What it is made of.
    pub source: Source,
    /// What of it a test may want otherwise.
    pub hardware: Hardware,
    /// What starts the boot loader of its image.
    pub firmware: Firmware,
    /// QEMU's machine type; none is Belljar's choice.
    pub machine: Option<String>,
    /// QEMU's CPU model; none is Belljar's choice.
    pub cpu: Option<String>,
    /// How its instructions run; none is what a probe shows to work.
    pub accel: Option<Accel>,
    /// Words added to the kernel's command line, where Belljar gives the kernel.
    pub append: Vec<String>,
    /// Passed to QEMU as they are, after all else.
    pub qemu_args: Vec<OsString>,
    /// How to log in on the serial console.
    pub login: Option<Login>,
    /// The key by which that user is let in over SSH. A `~` at its beginning stands until it is resolved.
    pub ssh_key: Option<PathBuf>,
    /// What a fault that the guest's kernel reports does.
    pub oops: OopsPolicy,
    /// Bytes of its memory, packed, that are kept at most when its kernel has failed; none keeps nothing.
    pub panic_dump: Option<u64>,
    /// What carries the workspace and the output directory.
    pub share: ShareKind,
    /// Whether it has a TPM 2.0 of its own.
    pub tpm: bool,
    /// What other devices it has.
    pub devices: Devices,
    /// Limit to the boot, from QEMU's start until a command can run; none is the default for the accelerator.
    pub boot_timeout: Option<Duration>,
    /// What of the host it must not see, beside what no guest sees. A path may begin with `~` until it is resolved, and its last
    /// part may end in `*`.
    pub hide: Vec<PathBuf>,
    /// Where it sees the workspace: an absolute path in the guest.
    pub mount_at: String,
}

/// What of a guest a test can change. Two tests with the same guest and hardware can run in clones of the same template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hardware {
    /// Bytes of memory.
    pub memory: u64,
    /// Number of processors.
    pub cpus: u32,
    /// Number of processors that can be plugged in besides.
    #[serde(skip_serializing_if = "is_none")]
    pub spare_cpus: u32,
    /// Bytes of memory that can be plugged in besides.
    #[serde(skip_serializing_if = "is_no_memory")]
    pub spare_memory: u64,
    /// The network card.
    pub nic: NicMode,
    /// Whether the disk that it boots from is a lab disk, which Belljar serves itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub boot_lab: bool,
    /// All extra disks, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            memory: DEFAULT_MEMORY,
            cpus: 1,
            spare_cpus: 0,
            spare_memory: 0,
            nic: NicMode::default(),
            boot_lab: false,
            disks: Vec::new(),
        }
    }
}

impl Hardware {
    /// Most bytes of memory that it can have.
    #[must_use]
    pub fn most_memory(&self) -> u64 {
        self.memory.saturating_add(self.spare_memory)
    }

    /// Most processors that it can have.
    #[must_use]
    pub fn most_cpus(&self) -> u32 {
        self.cpus.saturating_add(self.spare_cpus)
    }
}

fn is_none(number: &u32) -> bool {
    *number == 0
}

fn is_no_memory(bytes: &u64) -> bool {
    *bytes == 0
}

/// What a guest is made of. Each kind has a backend of its own, which need not know the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Source {
    /// A machine boots it.
    Boot(BootSource),
    /// A container is made of it.
    Container(ContainerSource),
}

/// What a container is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", rename = "container", tag = "source")]
pub struct ContainerSource {
    /// The image.
    pub image: ImageRef,
    /// Whether the engine may fetch it.
    pub pull: PullPolicy,
    /// Whether its processes may do on the host what the engine's user may.
    pub privileged: bool,
    /// Whether the image's systemd is its first process, and has brought the system up before anything else runs.
    pub systemd: bool,
}

/// What a machine boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "source")]
pub enum BootSource {
    /// A disk image with a boot loader of its own.
    Image {
        /// The image.
        path: PathBuf,
        /// Its format where the user gave it; none asks `qemu-img`.
        format: Option<String>,
        /// How it is attached.
        bus: BusChoice,
        /// How to get in.
        access: Access,
    },
    /// A kernel with somebody else's initramfs.
    Initramfs {
        /// The kernel.
        kernel: PathBuf,
        /// The initramfs.
        initrd: PathBuf,
        /// Directory of the kernel's modules, for those that the agent needs.
        modules: Option<PathBuf>,
        /// How to get in.
        access: Access,
    },
    /// A root directory of the host under a kernel of the host.
    RootDir {
        /// The directory; none is `/`.
        root: Option<PathBuf>,
        /// The kernel; none is the newest installed one that can do it.
        kernel: Option<PathBuf>,
        /// Directory of the kernel's modules; none is that of the kernel's version.
        modules: Option<PathBuf>,
    },
    /// The files of a container image under a kernel of the host.
    ContainerImage {
        /// The image.
        image: ImageRef,
        /// Whether an engine may fetch it.
        pull: PullPolicy,
        /// The kernel; none is the newest installed one that can do it.
        kernel: Option<PathBuf>,
        /// Directory of the kernel's modules; none is that of the kernel's version.
        modules: Option<PathBuf>,
        /// How to get in: [`Access::Initrd`] has the image's own init run, with the agent beside it.
        access: Access,
    },
}

impl Source {
    /// This host's own userland.
    #[must_use]
    pub fn host() -> Self {
        Self::Boot(BootSource::host())
    }

    /// What a machine boots from; none if the guest is no machine.
    #[must_use]
    pub fn boot(&self) -> Option<&BootSource> {
        match self {
            Self::Boot(source) => Some(source),
            Self::Container(_) => None,
        }
    }

    /// What a container is made of; none if the guest is a machine.
    #[must_use]
    pub fn container(&self) -> Option<&ContainerSource> {
        match self {
            Self::Boot(_) => None,
            Self::Container(source) => Some(source),
        }
    }

    /// The network where nothing else is said. A machine without a card is not what people test; a container without a network is safe, and
    /// costs least.
    #[must_use]
    pub fn default_nic(&self) -> NicMode {
        match self {
            Self::Boot(_) => NicMode::default(),
            Self::Container(_) => NicMode::None,
        }
    }

    /// Whether it came of this setting.
    #[must_use]
    pub fn has(&self, key: Key) -> bool {
        match self {
            Self::Boot(source) => source.has(key),
            Self::Container(source) => match key {
                Key::Container => true,
                Key::Pull => source.pull != PullPolicy::default(),
                Key::Privileged => source.privileged,
                Key::Systemd => source.systemd,
                _ => false,
            },
        }
    }

    /// Has the guest be got into in this way, where there is more than one.
    pub fn set_access(&mut self, wanted: Access) {
        match self {
            Self::Boot(source) => source.set_access(wanted),
            Self::Container(_) => {}
        }
    }
}

impl From<ContainerSource> for Source {
    fn from(source: ContainerSource) -> Self {
        Self::Container(source)
    }
}

impl From<BootSource> for Source {
    fn from(source: BootSource) -> Self {
        Self::Boot(source)
    }
}

/// In a person's words.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boot(source) => source.fmt(f),
            Self::Container(source) => write!(f, "a container of {}", source.image),
        }
    }
}

impl BootSource {
    /// This host's own userland.
    #[must_use]
    pub fn host() -> Self {
        Self::RootDir { root: None, kernel: None, modules: None }
    }

    /// Whether it came of this setting.
    #[must_use]
    pub fn has(&self, key: Key) -> bool {
        match (self, key) {
            (Self::Image { .. }, Key::Image) | (Self::Initramfs { .. }, Key::Kernel | Key::Initrd) => true,
            (Self::RootDir { kernel, .. }, Key::Kernel) => kernel.is_some(),
            (Self::RootDir { root, .. }, Key::Rootfs) => root.is_some(),
            (Self::ContainerImage { kernel, .. }, Key::Kernel) => kernel.is_some(),
            (Self::ContainerImage { .. }, Key::Rootfs | Key::RootImage) => true,
            (Self::ContainerImage { pull, .. }, Key::Pull) => *pull != PullPolicy::default(),
            _ => false,
        }
    }

    /// How to get in, where there is more than one way.
    #[must_use]
    pub fn access(&self) -> Access {
        match self {
            Self::Image { access, .. } | Self::Initramfs { access, .. } | Self::ContainerImage { access, .. } => {
                *access
            }
            Self::RootDir { .. } => Access::Auto,
        }
    }

    /// Has the guest be got into in this way, where there is more than one.
    pub fn set_access(&mut self, wanted: Access) {
        match self {
            Self::Image { access, .. } | Self::Initramfs { access, .. } | Self::ContainerImage { access, .. } => {
                *access = wanted;
            }
            Self::RootDir { .. } => {}
        }
    }
}

/// In a person's words.
impl fmt::Display for BootSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { path, .. } => write!(f, "{}", path.display()),
            Self::Initramfs { kernel, initrd, .. } => write!(f, "{} with {}", kernel.display(), initrd.display()),
            Self::RootDir { root: None, .. } => f.write_str("this host's userland"),
            Self::RootDir { root: Some(dir), .. } => write!(f, "the root directory {}", dir.display()),
            Self::ContainerImage { image, .. } => write!(f, "{CONTAINER_PREFIX}{image}"),
        }
    }
}

/// What of the environment a guest's description depends on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The values of the variables that hold passwords, by name; see [`GuestSpec::password_variable`].
    pub passwords: BTreeMap<String, String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

/// Why a description means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unresolved {
    /// The environment lacks the password.
    #[error(
        "the password is to be in the environment variable {variable}, which is not set; set it, or change login.password-env in \
         belljar.toml"
    )]
    Password {
        /// The variable.
        variable: String,
    },
    /// There is no home directory for a `~`.
    #[error("{}: there is no home directory; set HOME, or write an absolute path", path.display())]
    Home {
        /// The path that begins with it.
        path: PathBuf,
    },
}

impl GuestSpec {
    /// The guest that is made of `source` where nothing else is said of it.
    #[must_use]
    pub fn new(source: impl Into<Source>) -> Self {
        let source = source.into();
        Self {
            hardware: Hardware { nic: source.default_nic(), ..Hardware::default() },
            source,
            firmware: Firmware::default(),
            machine: None,
            cpu: None,
            accel: None,
            append: Vec::new(),
            qemu_args: Vec::new(),
            login: None,
            ssh_key: None,
            oops: OopsPolicy::default(),
            panic_dump: None,
            share: ShareKind::default(),
            tpm: false,
            devices: Devices::default(),
            boot_timeout: None,
            hide: Vec::new(),
            mount_at: DEFAULT_MOUNT_AT.to_owned(),
        }
    }

    /// The environment variable that holds the password.
    #[must_use]
    pub fn password_variable(&self) -> Option<&str> {
        match &self.login.as_ref()?.password {
            Password::Env(name) => Some(name),
            Password::None | Password::Given(_) => None,
        }
    }

    /// The description with what the environment says in its place.
    ///
    /// # Errors
    /// See [`Unresolved`].
    pub fn resolved(mut self, around: &Surroundings) -> Result<Self, Unresolved> {
        if let Some(variable) = self.password_variable().map(str::to_owned)
            && let Some(login) = &mut self.login
        {
            let Some(password) = around.passwords.get(&variable) else {
                return Err(Unresolved::Password { variable });
            };
            login.password = Password::Given(Secret::new(password.clone()));
        }
        for path in self.hide.iter_mut().chain(&mut self.ssh_key) {
            *path = in_home(path, around.home.as_deref())?;
        }
        Ok(self)
    }

    /// How to log in, if anything was said of it.
    ///
    /// # Errors
    /// Where the password has not been looked up; see [`Self::resolved`].
    pub fn credentials(&self) -> Result<Option<Credentials>, Unresolved> {
        let Some(login) = &self.login else { return Ok(None) };
        let variable = self.password_variable().unwrap_or_default();
        login.credentials().map(Some).ok_or_else(|| Unresolved::Password { variable: variable.to_owned() })
    }
}

/// A path with the user's home directory in the place of a `~` at its beginning.
///
/// # Errors
/// If there is no home directory.
pub fn in_home(path: &Path, home: Option<&Path>) -> Result<PathBuf, Unresolved> {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Ok(home.join(rest)),
        (Ok(_), None) => Err(Unresolved::Home { path: path.to_owned() }),
        (Err(_), _) => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_says_is_put_in_its_place() {
        let login = Login { user: "root".into(), password: Password::Env("SECRET".into()) };
        let spec = GuestSpec { login: Some(login), hide: vec!["~/keys".into()], ..GuestSpec::new(Source::host()) };
        let mut around = Surroundings::default();
        assert_eq!(spec.password_variable(), Some("SECRET"));
        let unset = Err(Unresolved::Password { variable: "SECRET".into() });
        assert_eq!(spec.clone().resolved(&around), unset);
        assert_eq!(spec.credentials(), unset.map(|_| None));
        around.passwords.insert("SECRET".into(), "hunter2".into());
        assert!(matches!(spec.clone().resolved(&around), Err(Unresolved::Home { .. })));
        around.home = Some("/home/u".into());
        let spec = spec.resolved(&around).unwrap();
        assert_eq!(spec.hide, [Path::new("/home/u/keys")]);
        let password = spec.credentials().unwrap().unwrap().password;
        assert_eq!(password, Some(Secret::new("hunter2")));
    }
}
