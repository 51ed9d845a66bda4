//! From a guest of `belljar.toml` to one that can be started.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use belljar_machine::{
    MountMode,
    access::{Credentials, Secret},
    qemu::args::Accel,
    spec::{Bus, DiskContent, DiskSpec, GuestSpec, NicSpec, OopsPolicy, Source, Workspace},
};
use belljar_suite::{
    config::{self, Guest, Password, WorkspaceMode},
    plan::Machine,
};

/// The guest's root directory where none is given.
const ROOT: &str = "/";

/// What of the environment a guest's description depends on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `KEY=VALUE`: the environment of guests that Belljar initialises itself.
    pub guest_env: Vec<String>,
    /// The values of the variables that hold passwords, by name; see [`password_variables`].
    pub passwords: BTreeMap<String, String>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
}

/// The names of the environment variables that hold passwords of these guests.
pub fn password_variables<'a>(guests: impl IntoIterator<Item = &'a Guest>) -> Vec<&'a str> {
    let variables = guests.into_iter().filter_map(|guest| match &guest.login.as_ref()?.password {
        Password::Env(name) => Some(name.as_str()),
        Password::None | Password::Given(_) => None,
    });
    variables.collect()
}

/// The guest of a machine of the plan.
///
/// # Errors
/// If the environment lacks its password.
pub fn guest_spec(machine: &Machine, around: &Surroundings) -> Result<GuestSpec, String> {
    let Machine { guest, hardware, .. } = machine;
    Ok(GuestSpec {
        source: source(&guest.source),
        memory: hardware.memory,
        cpus: hardware.cpus,
        machine: guest.machine.clone(),
        cpu: guest.cpu.clone(),
        disks: hardware.disks.iter().map(disk).collect(),
        nic: match hardware.nic {
            config::Nic::None => NicSpec::None,
            config::Nic::Isolated => NicSpec::Isolated,
            config::Nic::User => NicSpec::User,
        },
        append: guest.append.clone(),
        qemu_args: guest.qemu_args.iter().map(Into::into).collect(),
        login: login(guest, around)?,
        hostname: "belljar".to_owned(),
        env: around.guest_env.clone(),
        oops: match guest.oops {
            config::Oops::Crash => OopsPolicy::Crash,
            config::Oops::Note => OopsPolicy::Note,
        },
        boot_timeout: guest.boot_timeout,
        hide: guest.hide.iter().map(|path| in_home(path, around.home.as_deref())).collect::<Result<_, _>>()?,
    })
}

/// A path with the user's home directory in the place of a `~` at its beginning.
///
/// # Errors
/// If there is no home directory.
pub fn in_home(path: &Path, home: Option<&Path>) -> Result<PathBuf, String> {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Ok(home.join(rest)),
        (Ok(_), None) => {
            Err(format!("{}: there is no home directory; set HOME, or write an absolute path", path.display()))
        }
        (Err(_), _) => Ok(path.to_owned()),
    }
}

/// The accelerator that the guest wants.
#[must_use]
pub fn accel(guest: &Guest) -> Option<Accel> {
    guest.accel.map(|accel| match accel {
        config::Accel::Kvm => Accel::Kvm,
        config::Accel::Tcg => Accel::Tcg,
    })
}

/// The workspace as a test on this guest sees it.
#[must_use]
pub fn workspace(dir: &Path, guest: &Guest, mode: WorkspaceMode) -> Workspace {
    let mode = match mode {
        WorkspaceMode::Rw => MountMode::ReadWrite,
        WorkspaceMode::Ro => MountMode::ReadOnly,
        WorkspaceMode::Cow => MountMode::CopyOnWrite,
    };
    Workspace { dir: dir.to_owned(), mode, mount_at: guest.mount_at.clone() }
}

fn login(guest: &Guest, around: &Surroundings) -> Result<Option<Credentials>, String> {
    let Some(login) = &guest.login else { return Ok(None) };
    let password = match &login.password {
        Password::None => None,
        Password::Given(secret) => Some(Secret::new(secret.0.clone())),
        Password::Env(name) => match around.passwords.get(name) {
            Some(value) => Some(Secret::new(value.clone())),
            None => {
                return Err(format!(
                    "the guest \"{}\" wants its password from the environment variable {name}, which is not set; set it, \
                     or change login.password-env in belljar.toml",
                    guest.name
                ));
            }
        },
    };
    Ok(Some(Credentials { user: login.user.clone(), password }))
}

fn source(source: &config::Source) -> Source {
    match source {
        config::Source::Image { path, format, bus: attached, access: _ } => {
            Source::Disk { path: path.clone(), format: format.clone(), bus: bus(*attached) }
        }
        config::Source::Initramfs { kernel, initrd, modules, access } => Source::Initramfs {
            kernel: kernel.clone(),
            initrd: initrd.clone(),
            modules: modules.clone(),
            take_over: *access == config::Access::Init,
        },
        config::Source::RootDir { root, kernel, modules } => Source::RootDir {
            root: root.clone().unwrap_or_else(|| ROOT.into()),
            kernel: kernel.clone(),
            modules: modules.clone(),
        },
    }
}

fn disk(disk: &config::Disk) -> DiskSpec {
    DiskSpec {
        content: match &disk.content {
            config::DiskContent::Size(bytes) => DiskContent::Empty(*bytes),
            config::DiskContent::File(path) => DiskContent::Image(path.clone()),
        },
        serial: disk.serial.clone(),
        bus: bus(disk.bus),
    }
}

fn bus(bus: config::Bus) -> Bus {
    match bus {
        config::Bus::Virtio => Bus::Virtio,
        config::Bus::Scsi => Bus::Scsi,
        config::Bus::Sata => Bus::Sata,
        config::Bus::Ide => Bus::Ide,
        config::Bus::Nvme => Bus::Nvme,
    }
}

#[cfg(test)]
mod tests {
    use belljar_suite::{config::Config, settings::Layer};

    use super::*;

    fn machine(text: &str) -> Machine {
        let config = Config::parse("/p/belljar.toml", text).unwrap_or_else(|e| panic!("{e}"));
        let guest = config.guests["g"].clone();
        let (_, hardware) = Layer::merge([&guest.layer]).settle(&guest.disks);
        Machine { guest, hardware, units: 1 }
    }

    #[test]
    fn what_is_said_of_a_guest_reaches_it() {
        let machine = machine(
            "[guests.g]\nimage = \"a.qcow2\"\nboot-bus = \"nvme\"\nmemory = \"2GiB\"\ncpus = 3\nnic = \"user\"\n\
             oops = \"note\"\nlogin = { user = \"root\", password-env = \"SECRET\" }\nboot-timeout = \"7m\"\n\
             disks = [{ size = \"1GiB\", serial = \"data0\", bus = \"scsi\" }, { file = \"b.img\" }]\n",
        );
        let mut around = Surroundings::default();
        let error = guest_spec(&machine, &around).unwrap_err();
        assert!(error.contains("\"g\"") && error.contains("SECRET"), "{error}");
        assert_eq!(password_variables([&*machine.guest]), ["SECRET"]);
        around.passwords.insert("SECRET".into(), "hunter2".into());
        let spec = guest_spec(&machine, &around).unwrap();
        assert!(matches!(&spec.source, Source::Disk { path, bus: Bus::Nvme, .. } if path == Path::new("/p/a.qcow2")));
        assert_eq!((spec.memory, spec.cpus, spec.nic, spec.oops), (2 << 30, 3, NicSpec::User, OopsPolicy::Note));
        assert_eq!(spec.disks[0].content, DiskContent::Empty(1 << 30));
        assert_eq!((spec.disks[0].serial.as_deref(), spec.disks[0].bus), (Some("data0"), Bus::Scsi));
        assert_eq!(spec.disks[1].content, DiskContent::Image("/p/b.img".into()));
        assert_eq!(spec.boot_timeout, Some(std::time::Duration::from_secs(420)));
        assert!(spec.login.unwrap().password.is_some());
    }
}
