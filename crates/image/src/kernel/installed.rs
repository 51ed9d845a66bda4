//! The kernels installed on this host.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Arch, Kernel, KernelError};
use crate::modules::{Feature, ModuleIndex, ModulesError, Presence};
use crate::processor::Processor;

/// What a kernel is to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Userland {
    /// A directory of the host's, over 9p.
    Directory,
    /// The files of a container image, on a disk.
    ContainerImage,
}

impl Userland {
    /// Without these no kernel boots it.
    #[must_use]
    pub fn features(self) -> &'static [Feature] {
        match self {
            Self::Directory => Feature::HOST_USERLAND,
            Self::ContainerImage => Feature::CONTAINER_IMAGE,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Directory => "this host's userland",
            Self::ContainerImage => "a container image",
        }
    }
}

/// A kernel found where distributions put them, with its modules.
#[derive(Debug)]
pub struct InstalledKernel {
    /// The kernel.
    pub kernel: Kernel,
    /// Its modules, where its module directory is there and can be read.
    pub modules: Option<ModuleIndex>,
    /// Why they cannot be read although the directory is there.
    pub modules_error: Option<ModulesError>,
}

impl InstalledKernel {
    /// For each feature whether the kernel has it, in the order asked for; none where there is no module directory,
    /// which also lists what is built in.
    #[must_use]
    pub fn capabilities(&self, features: &[Feature]) -> Option<Vec<(Feature, Presence)>> {
        let modules = self.modules.as_ref()?;
        Some(features.iter().map(|&f| (f, modules.feature(f))).collect())
    }

    /// Why this kernel cannot boot a userland on such a processor; none if it can.
    #[must_use]
    pub fn unfit_for(&self, userland: Userland, processor: &Processor) -> Option<Why> {
        if self.kernel.arch != Some(processor.arch) {
            return Some(Why::Arch { found: self.kernel.arch, wanted: processor.arch });
        }
        let Some(capabilities) = self.capabilities(userland.features()) else {
            return Some(Why::NoModules(self.modules_error.as_ref().map(ToString::to_string)));
        };
        let lacks: Vec<_> =
            capabilities.into_iter().filter_map(|(f, p)| (p == Presence::Absent).then_some(f)).collect();
        (!lacks.is_empty()).then_some(Why::Lacks(lacks))
    }
}

/// Everything [`discover`] came across.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Kernels that could be read, newest first.
    pub kernels: Vec<InstalledKernel>,
    /// Files that look like installed kernels by name but could not be used.
    pub refused: Vec<(PathBuf, KernelError)>,
    /// Where was looked.
    pub places: Vec<PathBuf>,
}

/// Why a kernel was not chosen.
#[derive(Debug, PartialEq, Eq)]
pub enum Why {
    /// Not readable, or no kernel; the text is [`KernelError`]'s.
    Refused(String),
    /// For another processor.
    Arch {
        /// What it is for, where its file says so.
        found: Option<Arch>,
        /// What would do.
        wanted: Arch,
    },
    /// `/lib/modules/RELEASE` is missing, or cannot be read for this reason.
    NoModules(Option<String>),
    /// It lacks what such a guest needs.
    Lacks(Vec<Feature>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Refused(text) => f.write_str(text),
            Why::Arch { found: Some(arch), .. } => write!(f, "it is for {arch}"),
            Why::Arch { found: None, wanted } => write!(f, "it does not say that it is for {wanted}"),
            Why::NoModules(Some(text)) => f.write_str(text),
            Why::NoModules(None) => f.write_str("its module directory (/lib/modules/RELEASE) is not there"),
            Why::Lacks(features) => {
                f.write_str("it has no ")?;
                for (i, feature) in features.iter().enumerate() {
                    write!(f, "{}{feature}", if i == 0 { "" } else { ", no " })?;
                }
                Ok(())
            }
        }
    }
}

/// One kernel that was considered and why it will not do.
#[derive(Debug, PartialEq, Eq)]
pub struct LookedAt {
    /// The kernel's file.
    pub path: PathBuf,
    /// Why not.
    pub why: Why,
}

/// No installed kernel can boot a userland.
#[derive(Debug, PartialEq, Eq)]
pub struct NoKernel {
    /// What was to be booted.
    pub userland: Userland,
    /// What was considered, newest first.
    pub looked_at: Vec<LookedAt>,
    /// Where kernels were looked for.
    pub places: Vec<PathBuf>,
    /// The package of Debian's that would do.
    pub package: &'static str,
}

impl std::error::Error for NoKernel {}

impl fmt::Display for NoKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no installed kernel can boot {}", self.userland.name())?;
        if self.looked_at.is_empty() {
            let places: Vec<_> = self.places.iter().map(|p| p.display().to_string()).collect();
            write!(f, ": there is none in {}", places.join(", "))?;
        }
        for LookedAt { path, why } in &self.looked_at {
            write!(f, "; {}: {why}", path.display())?;
        }
        write!(
            f,
            "; mend: install a distribution's generic kernel (on Debian: apt-get install {}), or give one with --kernel",
            self.package
        )
    }
}

impl Discovery {
    /// The newest kernel that can boot a userland on such a processor.
    ///
    /// # Errors
    /// [`NoKernel`] says of each kernel found why it will not do.
    pub fn choose(&self, userland: Userland, processor: &Processor) -> Result<&InstalledKernel, NoKernel> {
        let mut looked_at = Vec::new();
        for installed in &self.kernels {
            match installed.unfit_for(userland, processor) {
                None => return Ok(installed),
                Some(why) => looked_at.push(LookedAt { path: installed.kernel.path.clone(), why }),
            }
        }
        for (path, error) in &self.refused {
            looked_at.push(LookedAt { path: path.clone(), why: Why::Refused(error.to_string()) });
        }
        Err(NoKernel { userland, looked_at, places: self.places.clone(), package: processor.kernel_package })
    }

    /// The kernels that [`Discovery::choose`] passed over for being unfit although newer than `chosen`.
    pub fn passed_over<'a>(
        &'a self,
        chosen: &'a InstalledKernel,
        userland: Userland,
        processor: &'a Processor,
    ) -> impl Iterator<Item = LookedAt> + 'a {
        self.kernels
            .iter()
            .take_while(|k| k.kernel.path != chosen.kernel.path)
            .filter_map(move |k| Some(LookedAt { path: k.kernel.path.clone(), why: k.unfit_for(userland, processor)? }))
    }
}

/// Looks below each of `roots` (such as `/`) for kernels: `boot/vmlinuz*`, `lib/modules/*/vmlinuz`,
/// `usr/lib/modules/*/vmlinuz`. A kernel found twice counts once; one that runs on none of `processors` is refused.
#[must_use]
pub fn discover(roots: &[PathBuf], processors: &[&Processor]) -> Discovery {
    let mut found = Discovery::default();
    let mut seen = Vec::new();
    for root in roots {
        for (place, paths) in candidates(root) {
            found.places.push(place);
            for path in paths {
                let Ok(metadata) = std::fs::metadata(&path) else { continue }; // a dangling link
                if !is_within(&path, root) {
                    continue;
                }
                let identity = (metadata.dev(), metadata.ino());
                if seen.contains(&identity) {
                    continue;
                }
                seen.push(identity);
                match Kernel::open(&path, processors) {
                    Ok(kernel) => found.kernels.push(with_modules(kernel, roots)),
                    Err(error) => found.refused.push((path, error)),
                }
            }
        }
    }
    // Stable, so that of two copies of one release that in /boot stays first.
    found.kernels.sort_by(|a, b| b.kernel.release.cmp(&a.kernel.release));
    found.kernels.dedup_by(|b, a| a.kernel.release.is_some() && a.kernel.release == b.kernel.release);
    found
}

/// Whether a path leads to something in this root. Links of a root that is not the host's own were made for another system, or by somebody who is not to be trusted.
fn is_within(path: &Path, root: &Path) -> bool {
    match (path.canonicalize(), root.canonicalize()) {
        (Ok(path), Ok(root)) => path.starts_with(root),
        _ => false,
    }
}

fn with_modules(kernel: Kernel, roots: &[PathBuf]) -> InstalledKernel {
    let dir = kernel.find_modules(roots).filter(|dir| roots.iter().any(|root| is_within(dir, root)));
    let (modules, modules_error) = match dir.map(|dir| ModuleIndex::load(&dir)) {
        Some(Ok(modules)) => (Some(modules), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    InstalledKernel { kernel, modules, modules_error }
}

fn candidates(root: &Path) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let entries = |dir: &Path| {
        let mut paths: Vec<_> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).take(1000).collect();
        paths.sort();
        paths
    };
    let boot = root.join("boot");
    let named_as_kernel = |path: &PathBuf| {
        path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n == "vmlinuz" || n.starts_with("vmlinuz-"))
    };
    let in_boot = entries(&boot).into_iter().filter(named_as_kernel).collect();
    let mut all = vec![(boot, in_boot)];
    for dir in ["lib/modules", "usr/lib/modules"] {
        let dir = root.join(dir);
        let kernels = entries(&dir).into_iter().map(|d| d.join("vmlinuz")).filter(|p| p.exists()).collect();
        all.push((dir, kernels));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::fake_bzimage;
    use super::*;
    use crate::processor::X86_64;
    use std::fs;

    const ALL: &[&str] = &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

    fn install(root: &Path, release: &str, modules: &[&str]) {
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join(format!("boot/vmlinuz-{release}")), fake_bzimage(release, b"x")).unwrap();
        let dir = root.join("lib/modules").join(release);
        fs::create_dir_all(&dir).unwrap();
        let list: String = modules.iter().map(|m| format!("kernel/x/{m}.ko\n")).collect();
        fs::write(dir.join("modules.builtin"), list).unwrap();
        fs::write(dir.join("modules.dep"), "").unwrap();
    }

    fn releases(found: &Discovery) -> Vec<&str> {
        found.kernels.iter().map(|k| k.kernel.release.as_ref().unwrap().as_str()).collect()
    }

    #[test]
    fn the_newest_that_can_is_chosen_and_the_newer_that_cannot_are_named() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "6.9.0", ALL);
        install(dir.path(), "6.10.0", ALL);
        install(dir.path(), "6.12.0-cloud", &ALL[..2]);
        let found = discover(&[dir.path().into()], &[&X86_64]);
        assert_eq!(releases(&found), ["6.12.0-cloud", "6.10.0", "6.9.0"]);
        let chosen = found.choose(Userland::Directory, &X86_64).unwrap();
        assert_eq!(chosen.kernel.release.as_ref().unwrap().as_str(), "6.10.0");
        let passed: Vec<_> = found.passed_over(chosen, Userland::Directory, &X86_64).collect();
        assert_eq!(passed.len(), 1);
        assert_eq!(passed[0].why.to_string(), "it has no 9p over virtio, no overlay file system");
    }

    #[test]
    fn one_kernel_in_two_places_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "6.9.0", ALL);
        fs::copy(dir.path().join("boot/vmlinuz-6.9.0"), dir.path().join("lib/modules/6.9.0/vmlinuz")).unwrap();
        std::os::unix::fs::symlink("vmlinuz-6.9.0", dir.path().join("boot/vmlinuz")).unwrap();
        std::os::unix::fs::symlink("lib", dir.path().join("usr")).unwrap();
        let found = discover(&[dir.path().into()], &[&X86_64]);
        assert_eq!(releases(&found), ["6.9.0"]);
    }

    #[test]
    fn links_that_lead_out_of_a_root_are_not_followed() {
        let (host, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        install(host.path(), "6.9.0", ALL);
        install(dir.path(), "6.8.0", ALL);
        let link = |to: PathBuf, at: &str| std::os::unix::fs::symlink(to, dir.path().join(at)).unwrap();
        link(host.path().join("boot/vmlinuz-6.9.0"), "boot/vmlinuz-6.9.0");
        link("vmlinuz-6.8.0".into(), "boot/vmlinuz");
        let found = discover(&[dir.path().into()], &[&X86_64]);
        assert_eq!(releases(&found), ["6.8.0"]);
        assert!(found.refused.is_empty(), "nothing of it was read: {:?}", found.refused);
        // Nor those of a whole directory.
        fs::remove_dir_all(dir.path().join("lib/modules/6.8.0")).unwrap();
        link(host.path().join("lib/modules/6.9.0"), "lib/modules/6.8.0");
        let found = discover(&[dir.path().into()], &[&X86_64]);
        assert!(found.kernels[0].modules.is_none() && found.kernels[0].modules_error.is_none());
    }

    #[test]
    fn the_version_comes_from_the_file_and_not_from_its_name() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "6.9.0", ALL);
        fs::rename(dir.path().join("boot/vmlinuz-6.9.0"), dir.path().join("boot/vmlinuz-99")).unwrap();
        assert_eq!(releases(&discover(&[dir.path().into()], &[&X86_64])), ["6.9.0"]);
    }

    #[test]
    fn when_none_will_do_each_has_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path(), "6.9.0", &[]);
        install(dir.path(), "6.8.0", ALL);
        fs::remove_dir_all(dir.path().join("lib/modules/6.8.0")).unwrap();
        fs::write(dir.path().join("boot/vmlinuz-broken"), "").unwrap();
        let error = discover(&[dir.path().into()], &[&X86_64]).choose(Userland::Directory, &X86_64).unwrap_err();
        assert_eq!(error.looked_at.len(), 3);
        assert_eq!(error.looked_at[0].why, Why::Lacks(Feature::HOST_USERLAND.to_vec()));
        assert_eq!(error.looked_at[1].why, Why::NoModules(None));
        assert!(matches!(&error.looked_at[2].why, Why::Refused(text) if text.contains("an empty file")));
        let text = error.to_string();
        assert!(text.contains("linux-image-amd64") && text.contains("--kernel"), "{text}");

        let nothing = discover(&["/nonexistent".into()], &[&X86_64])
            .choose(Userland::Directory, &X86_64)
            .unwrap_err()
            .to_string();
        assert!(nothing.contains("/nonexistent/boot"), "{nothing}");
    }
}
