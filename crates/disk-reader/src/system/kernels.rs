//! The kernels of a system, and what they can do.

use std::collections::HashSet;

use belljar_image::kernel::{self, Arch, Release};
use belljar_image::modules::{Feature, Presence, module_name};

use super::tree::Tree;

/// Kernels that are looked at.
const MAX_KERNELS: usize = 8;
/// Where kernels' modules are.
const MODULES: &str = "/lib/modules";
/// Bytes of `modules.dep`; a distribution's has half a megabyte.
const MAX_INDEX: u64 = 16 << 20;
/// Bytes of a kernel's configuration.
const MAX_CONFIG: u64 = 2 << 20;

/// A kernel that is installed in a system.
#[derive(Clone, Debug)]
pub struct SystemKernel {
    /// Where the system has it; its directory of modules where it lies outside of the system, as in a unified kernel image.
    pub path: String,
    /// What `uname -r` would say, by its file or by its name.
    pub release: Option<Release>,
    /// What it is for, where its file says so.
    pub arch: Option<Arch>,
    /// What tells what it can do.
    pub abilities: Abilities,
}

/// What is known of a kernel's abilities.
#[derive(Clone, Debug)]
pub enum Abilities {
    /// By its directory of modules, which lists those built in as well.
    Modules(Box<Names>),
    /// By its configuration; its modules are not there.
    Configuration(Box<HashSet<String>>),
    /// Neither could be read.
    Unknown,
}

/// Names of modules.
#[derive(Clone, Debug, Default)]
pub struct Names {
    builtin: HashSet<String>,
    loadable: HashSet<String>,
}

impl SystemKernel {
    /// Whether the kernel has something; none if that is not known.
    #[must_use]
    pub fn feature(&self, feature: Feature) -> Option<Presence> {
        match &self.abilities {
            Abilities::Modules(names) => feature.modules().iter().map(|name| names.presence(name)).max(),
            Abilities::Configuration(options) => {
                let keys = keys(feature)?;
                Some(if keys.iter().all(|key| options.contains(*key)) { Presence::Builtin } else { Presence::Absent })
            }
            Abilities::Unknown => None,
        }
    }
}

impl SystemKernel {
    /// Whether the kernel has something when it looks for its root: by itself, or by the modules in its initramfs, if it is known which these are; none if
    /// that is not known.
    #[must_use]
    pub fn feature_at_start(&self, feature: Feature, initramfs: Option<&HashSet<String>>) -> Option<bool> {
        let in_initramfs = |name: &str| initramfs.map(|names| names.contains(name));
        match &self.abilities {
            Abilities::Modules(names) => {
                let each = feature.modules().iter().map(|name| match names.presence(name) {
                    Presence::Builtin => Some(true),
                    Presence::Module => in_initramfs(name),
                    // An initramfs may have what was removed from the system since.
                    Presence::Absent => Some(in_initramfs(name).unwrap_or(false)),
                });
                all_known(each)
            }
            Abilities::Configuration(_) | Abilities::Unknown => {
                if self.feature(feature) == Some(Presence::Builtin) {
                    return Some(true);
                }
                let in_it = all_known(feature.modules().iter().map(|name| in_initramfs(name)))?;
                // What is neither there nor known to be built in may be built in.
                (in_it || matches!(self.abilities, Abilities::Configuration(_))).then_some(in_it)
            }
        }
    }
}

/// Whether all are so; one that is known not to be decides, whatever is not known of the others.
pub fn all_known(each: impl IntoIterator<Item = Option<bool>>) -> Option<bool> {
    let mut known = Some(true);
    for one in each {
        match one {
            Some(true) => {}
            Some(false) => return Some(false),
            None => known = None,
        }
    }
    known
}

impl Names {
    fn presence(&self, name: &str) -> Presence {
        match (self.builtin.contains(name), self.loadable.contains(name)) {
            (true, _) => Presence::Builtin,
            (_, true) => Presence::Module,
            _ => Presence::Absent,
        }
    }
}

/// What a feature is called in a kernel's configuration.
fn keys(feature: Feature) -> Option<&'static [&'static str]> {
    Some(match feature {
        Feature::VirtioPci => &["CONFIG_VIRTIO_PCI"],
        Feature::VirtioConsole => &["CONFIG_VIRTIO_CONSOLE"],
        Feature::NineP => &["CONFIG_9P_FS", "CONFIG_NET_9P_VIRTIO"],
        Feature::Overlay => &["CONFIG_OVERLAY_FS"],
        Feature::VirtioBlk => &["CONFIG_VIRTIO_BLK"],
        Feature::VirtioScsi => &["CONFIG_SCSI_VIRTIO"],
        Feature::VirtioNet => &["CONFIG_VIRTIO_NET"],
        Feature::Nvme => &["CONFIG_BLK_DEV_NVME"],
        Feature::Ahci => &["CONFIG_SATA_AHCI", "CONFIG_BLK_DEV_SD"],
        Feature::Piix => &["CONFIG_ATA_PIIX", "CONFIG_BLK_DEV_SD"],
        Feature::E1000e => &["CONFIG_E1000E"],
        Feature::E1000 => &["CONFIG_E1000"],
        Feature::AfPacket => &["CONFIG_PACKET"],
        Feature::VirtioRng => &["CONFIG_HW_RANDOM_VIRTIO"],
        Feature::FileSystem("fuse") => &["CONFIG_FUSE_FS"],
        Feature::FileSystem("virtiofs") => &["CONFIG_VIRTIO_FS"],
        Feature::FileSystem("ext4") => &["CONFIG_EXT4_FS"],
        Feature::FileSystem("erofs") => &["CONFIG_EROFS_FS"],
        Feature::Vsock => &["CONFIG_VIRTIO_VSOCKETS"],
        Feature::Crc32c => &["CONFIG_CRYPTO_CRC32C"],
        Feature::Pvpanic => &["CONFIG_PVPANIC_MMIO"],
        Feature::PvpanicPci => &["CONFIG_PVPANIC_PCI"],
        Feature::FileSystem(_) => return None,
    })
}

/// The kernels in `/boot` and those that only their modules tell of, newest first.
pub(super) fn find(tree: &mut Tree) -> Vec<SystemKernel> {
    let names = tree.list("/boot").unwrap_or_default();
    let is_kernel = |name: &&String| {
        ["vmlinuz", "vmlinux", "Image", "kernel"]
            .iter()
            .any(|start| name.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
    };
    let mut paths: Vec<String> = names.iter().filter(is_kernel).map(|name| format!("/boot/{name}")).collect();
    // A versioned name says more than a link to it.
    let versioned: Vec<String> = paths.iter().filter(|path| path.contains('-')).cloned().collect();
    if !versioned.is_empty() {
        paths = versioned;
    }
    let mut kernels: Vec<SystemKernel> =
        paths.into_iter().take(4 * MAX_KERNELS).filter_map(|path| look(tree, path)).collect();
    for release in tree.list(MODULES).unwrap_or_default().iter().take(4 * MAX_KERNELS).map(Release::new) {
        if !kernels.iter().any(|kernel| kernel.release.as_ref() == Some(&release)) {
            kernels.extend(by_modules(tree, release));
        }
    }
    kernels.sort_by(|a, b| b.release.cmp(&a.release));
    kernels.truncate(MAX_KERNELS);
    kernels
}

/// A kernel that lies beside its modules, or elsewhere: on an EFI system partition, alone or in a unified kernel image.
fn by_modules(tree: &mut Tree, release: Release) -> Option<SystemKernel> {
    let directory = format!("{MODULES}/{release}");
    if let Some(kernel) = look(tree, format!("{directory}/vmlinuz")) {
        return Some(kernel);
    }
    let abilities = abilities(tree, &release);
    // What a removed package left there.
    matches!(abilities, Abilities::Modules(_)).then(|| SystemKernel {
        path: directory,
        release: Some(release),
        arch: None,
        abilities,
    })
}

fn look(tree: &mut Tree, path: String) -> Option<SystemKernel> {
    let head = tree.head(&path, kernel::IDENTITY).ok()?;
    let known = kernel::identify(&head);
    let by_name =
        path.rsplit('/').next().and_then(|name| name.split_once('-')).map(|(_, release)| Release::new(release));
    let by_place = path.strip_prefix(MODULES).and_then(|path| path.split('/').nth(1)).map(Release::new);
    let (arch, release) = known.unwrap_or((None, None));
    let release = release.or(by_name).or(by_place);
    let abilities = release.as_ref().map_or(Abilities::Unknown, |release| abilities(tree, release));
    Some(SystemKernel { path, release, arch, abilities })
}

fn abilities(tree: &mut Tree, release: &Release) -> Abilities {
    let directory = format!("{MODULES}/{release}");
    if let Ok(builtin) = tree.text(&format!("{directory}/modules.builtin"), MAX_INDEX) {
        let loadable = tree.text(&format!("{directory}/modules.dep"), MAX_INDEX).unwrap_or_default();
        let first = |line: &str| module_name(line.split(':').next()?.trim());
        return Abilities::Modules(Box::new(Names {
            builtin: builtin.lines().filter_map(first).collect(),
            loadable: loadable.lines().filter_map(first).collect(),
        }));
    }
    match tree.text(&format!("/boot/config-{release}"), MAX_CONFIG) {
        Ok(text) => {
            let set = text
                .lines()
                .filter_map(|line| line.split_once('='))
                .filter(|(_, value)| *value == "y")
                .map(|(key, _)| key.to_owned());
            Abilities::Configuration(Box::new(set.collect()))
        }
        Err(_) => Abilities::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> HashSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn kernel(abilities: Abilities) -> SystemKernel {
        SystemKernel { path: "/boot/vmlinuz".into(), release: None, arch: None, abilities }
    }

    #[test]
    fn what_is_there_at_the_start_is_built_in_or_in_the_initramfs() {
        let all = Names { builtin: names(&["sd_mod", "virtio_pci"]), loadable: names(&["ahci", "virtio_blk", "nvme"]) };
        let kernel = kernel(Abilities::Modules(Box::new(all)));
        let has = |feature, initramfs: Option<&[&str]>| kernel.feature_at_start(feature, initramfs.map(names).as_ref());
        let with: Option<&[&str]> = Some(&["ahci", "e1000"]);
        assert_eq!(has(Feature::VirtioPci, None), Some(true), "built in");
        assert_eq!(has(Feature::Ahci, with), Some(true), "one part of it in each");
        assert_eq!(has(Feature::Nvme, with), Some(false), "a module of the system's alone");
        assert_eq!(has(Feature::Nvme, None), None, "it is not known what is in the initramfs");
        assert_eq!(has(Feature::Piix, None), Some(false), "it has none at all, whatever is in there");
        assert_eq!(has(Feature::E1000, with), Some(true), "removed from the system since");
        assert_eq!(has(Feature::VirtioBlk, Some(&[])), Some(false), "without an initramfs");
    }

    #[test]
    fn where_no_modules_are_seen_only_an_initramfs_or_a_configuration_tells() {
        let by_name: Option<&[&str]> = Some(&["virtio_pci", "ahci", "sd_mod"]);
        let configured = kernel(Abilities::Configuration(Box::new(names(&["CONFIG_VIRTIO_PCI"]))));
        let unknown = kernel(Abilities::Unknown);
        let has = |kernel: &SystemKernel, feature, initramfs: Option<&[&str]>| {
            kernel.feature_at_start(feature, initramfs.map(names).as_ref())
        };
        assert_eq!(has(&configured, Feature::VirtioPci, Some(&[])), Some(true));
        assert_eq!(has(&configured, Feature::Ahci, by_name), Some(true));
        assert_eq!(has(&configured, Feature::Nvme, by_name), Some(false));
        assert_eq!(has(&configured, Feature::Nvme, None), None);
        assert_eq!(has(&unknown, Feature::Ahci, by_name), Some(true));
        assert_eq!(has(&unknown, Feature::Nvme, by_name), None, "it may be built in");
    }

    #[test]
    fn one_that_is_not_decides() {
        assert_eq!(all_known([Some(true), None, Some(false)]), Some(false));
        assert_eq!(all_known([None, Some(true)]), None);
        assert_eq!(all_known([]), Some(true));
    }
}
