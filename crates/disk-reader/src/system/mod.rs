//! The operating system on a disk: what it is, how it begins, who may log in.

mod kernels;
mod root;
mod tree;

use belljar_image::kernel::Arch;

pub use kernels::{Abilities, SystemKernel, all_known};
pub(crate) use root::{Root, find_root};

use crate::boot::BootEntry;
use crate::bytes::{be16, le16};
use crate::description::Volume;
use crate::fs::FileSystems;
use tree::Tree;

/// Bytes of a configuration file that are read.
const MAX_CONFIG: u64 = 256 << 10;
/// Programs that a root file system has; the first found says what processor it is for.
const PROGRAMS: &[&str] = &["/bin/sh", "/sbin/init", "/bin/busybox", "/usr/bin/env", "/usr/lib/systemd/systemd"];

/// What is known of a system without starting it.
#[derive(Clone, Debug)]
pub struct System {
    /// Its root file system, for a person: `partition 1`, with the subvolume if it is one.
    pub root: String,
    /// As it calls itself; none where it does not say.
    pub name: Option<String>,
    /// Its distribution: `debian`, `alpine`, …; empty where it does not say.
    pub id: String,
    /// Its first program.
    pub init: Option<Init>,
    /// What its programs are for.
    pub arch: Option<Arch>,
    /// Its kernels, newest first.
    pub kernels: Vec<SystemKernel>,
    /// Whether root has a password.
    pub root_password: RootPassword,
    /// What sets such a system up at its first boot, if it is told what.
    pub provisioning: Vec<Provisioning>,
    /// What has a login prompt on the first serial line, as far as a file says so.
    pub serial_getty: Option<String>,
    /// Whether SELinux forbids, as its configuration has it.
    pub selinux_enforcing: bool,
    /// Whether it has an SSH server.
    pub ssh: bool,
}

/// A system's first program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Which one.
    pub kind: InitKind,
    /// Its version, where that is known.
    pub version: Option<u32>,
    /// Where it is.
    pub path: String,
}

/// The first programs that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "self-describing names")]
pub enum InitKind {
    Systemd,
    SysV,
    OpenRc,
    Runit,
    Busybox,
    S6,
    Dinit,
    Other,
}

impl InitKind {
    /// As people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::SysV => "sysvinit",
            Self::OpenRc => "OpenRC",
            Self::Runit => "runit",
            Self::Busybox => "busybox",
            Self::S6 => "s6",
            Self::Dinit => "dinit",
            Self::Other => "a program of its own",
        }
    }
}

/// What `/etc/shadow` says of root. The password's hash is never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootPassword {
    /// Nobody logs in as root with one.
    Locked,
    /// Root logs in without one.
    None,
    /// There is one.
    Set,
    /// The file could not be read, or root is not in it.
    Unknown,
}

/// What sets a system up at its first boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "self-describing names")]
pub enum Provisioning {
    CloudInit,
    TinyCloud,
    Ignition,
}

impl Provisioning {
    /// As people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloudInit => "cloud-init",
            Self::TinyCloud => "tiny-cloud",
            Self::Ignition => "Ignition",
        }
    }
}

/// Looks at the system that an entry boots, or at the one that is found without one.
pub(crate) fn read(volumes: &[Volume], fs: &mut FileSystems, entry: Option<&BootEntry>) -> Option<System> {
    let words = entry.filter(|entry| !entry.guess).map(|entry| entry.command_line.as_str());
    let root = find_root(volumes, fs, words)?;
    let name = volumes.get(root.volume)?.name.clone();
    let place =
        if root.top.is_empty() { name } else { format!("{name}, subvolume {}", root.top.trim_start_matches('/')) };
    let mut tree = Tree::new(volumes, fs, root);
    let release = ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| tree.text(path, MAX_CONFIG).ok())
        .unwrap_or_default();
    let field = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
    };
    let id = field("ID").unwrap_or_default();
    Some(System {
        name: field("PRETTY_NAME").or_else(|| field("NAME")).or_else(|| old_name(&mut tree)),
        init: init(&mut tree, words.unwrap_or_default()),
        arch: PROGRAMS.iter().find_map(|path| elf_arch(&tree.head(path, 64).ok()?)),
        kernels: kernels::find(&mut tree),
        root_password: root_password(&mut tree),
        provisioning: provisioning(&mut tree, &id, field("VARIANT_ID").as_deref()),
        serial_getty: serial_getty(&mut tree),
        selinux_enforcing: tree
            .text("/etc/selinux/config", MAX_CONFIG)
            .is_ok_and(|text| text.lines().any(|line| line.trim() == "SELINUX=enforcing")),
        ssh: ["/usr/sbin/sshd", "/usr/sbin/dropbear"].iter().any(|path| tree.is_there(path)),
        root: place,
        id,
    })
}

/// From before there was `os-release`.
fn old_name(tree: &mut Tree) -> Option<String> {
    let files =
        [("/etc/alpine-release", "Alpine Linux "), ("/etc/redhat-release", ""), ("/etc/debian_version", "Debian ")];
    files.iter().find_map(|(path, before)| {
        let text = tree.text(path, MAX_CONFIG).ok()?;
        Some(format!("{before}{}", text.lines().next()?.trim()))
    })
}

/// From the header of a program.
fn elf_arch(head: &[u8]) -> Option<Arch> {
    head.starts_with(b"\x7fELF").then_some(())?;
    let machine = if head.get(5) == Some(&2) { be16(head, 18) } else { le16(head, 18) };
    machine.map(Arch::from_elf_machine)
}

fn init(tree: &mut Tree, words: &str) -> Option<Init> {
    let asked = root::word(words, "init=").map(str::to_owned);
    let path = asked
        .into_iter()
        .chain(["/sbin/init", "/etc/init", "/bin/init"].map(str::to_owned))
        .find(|path| tree.is_there(path))?;
    let real = tree.resolve(&path).map(|(real, _)| real).unwrap_or_else(|_| path.clone());
    let inittab = tree.text("/etc/inittab", MAX_CONFIG).unwrap_or_default();
    let file = real.rsplit('/').next().unwrap_or_default();
    let by_openrc = || inittab.lines().any(|line| !line.starts_with('#') && line.contains("openrc"));
    let kind = match file {
        "systemd" => InitKind::Systemd,
        "runit-init" | "runit" => InitKind::Runit,
        "openrc-init" => InitKind::OpenRc,
        "s6-svscan" | "s6-linux-init" => InitKind::S6,
        "dinit" => InitKind::Dinit,
        _ if by_openrc() => InitKind::OpenRc,
        "busybox" => InitKind::Busybox,
        _ if !inittab.is_empty() => InitKind::SysV,
        _ => InitKind::Other,
    };
    let version = (kind == InitKind::Systemd).then(|| systemd_version(tree)).flatten();
    Some(Init { kind, version, path: real })
}

/// Its library has the version in its name: `libsystemd-shared-252.so`, `libsystemd-shared-256.7-1.fc41.so`.
fn systemd_version(tree: &mut Tree) -> Option<u32> {
    let directories = ["/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd"].map(str::to_owned).into_iter();
    let triples = ["x86_64", "i386", "aarch64", "riscv64", "s390x", "powerpc64le"]
        .map(|arch| format!("/usr/lib/{arch}-linux-gnu/systemd"));
    directories.chain(triples).chain(["/usr/lib/arm-linux-gnueabihf/systemd".to_owned()]).find_map(|directory| {
        let names = tree.list(&directory).ok()?;
        names.iter().find_map(|name| {
            let version = name.strip_prefix("libsystemd-shared-")?;
            version[..version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len())].parse().ok()
        })
    })
}

fn root_password(tree: &mut Tree) -> RootPassword {
    let hash = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("root:"))?;
        line.split(':').next().map(|hash| match hash {
            "" => RootPassword::None,
            _ if hash.starts_with(['!', '*']) => RootPassword::Locked,
            "x" => RootPassword::Unknown,
            _ => RootPassword::Set,
        })
    };
    let shadow = tree.text("/etc/shadow", MAX_CONFIG).ok().and_then(|text| hash(&text));
    shadow.or_else(|| hash(&tree.text("/etc/passwd", MAX_CONFIG).ok()?)).unwrap_or(RootPassword::Unknown)
}

fn provisioning(tree: &mut Tree, id: &str, variant: Option<&str>) -> Vec<Provisioning> {
    let mut found = Vec::new();
    if tree.is_there("/usr/bin/cloud-init") && !tree.is_there("/etc/cloud/cloud-init.disabled") {
        found.push(Provisioning::CloudInit);
    }
    if tree.is_there("/usr/bin/tiny-cloud") || tree.is_there("/usr/sbin/tiny-cloud") || tree.is_there("/lib/tiny-cloud")
    {
        found.push(Provisioning::TinyCloud);
    }
    let of_ignition =
        ["/usr/bin/ignition", "/usr/lib/dracut/modules.d/30ignition"].iter().any(|path| tree.is_there(path));
    if of_ignition || matches!(id, "flatcar" | "rhcos") || variant == Some("coreos") {
        found.push(Provisioning::Ignition);
    }
    found
}

/// systemd also starts one wherever the kernel has its console.
fn serial_getty(tree: &mut Tree) -> Option<String> {
    let unit = "/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service";
    if tree.is_there(unit) {
        return Some(unit.to_owned());
    }
    let inittab = tree.text("/etc/inittab", MAX_CONFIG).unwrap_or_default();
    if inittab.lines().any(|line| !line.trim_start().starts_with('#') && line.contains("ttyS0")) {
        return Some("/etc/inittab".into());
    }
    let services = [
        "/etc/runit/runsvdir/default/agetty-ttyS0",
        "/var/service/agetty-ttyS0",
        "/etc/runlevels/default/agetty.ttyS0",
        "/etc/init/ttyS0.conf",
    ];
    services.iter().find(|path| tree.is_there(path)).map(|path| (*path).to_owned())
}
