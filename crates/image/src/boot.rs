//! A kernel and an initramfs made ready to be given to QEMU.

use std::io;
use std::path::{Path, PathBuf};

use belljar_proto::frame::to_bytes;
use belljar_proto::message::{InitModules, InitRoot, Source};

use crate::cache::{self, Cache, CacheError};
use crate::initramfs::{self, InitramfsError, InitramfsSpec};
use crate::kernel::{Arch, Kernel};
use crate::modules::{self, Feature, Module, ModuleIndex, ModulesError, Presence};
use crate::processor::Processor;
use crate::vmlinux::{self, Bootable, NoPvh, VmlinuxError};

/// Part of the name in the cache: change it with the layout of an initramfs.
const LAYOUT: u32 = 2;

/// What QEMU gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// For `-kernel`.
    pub kernel: PathBuf,
    /// For `-initrd`.
    pub initrd: Option<PathBuf>,
    /// Whether the kernel is started by PVH; else it unpacks itself, which takes seconds without KVM.
    pub pvh: bool,
    /// What was chosen and why, a line each.
    pub choices: Vec<String>,
    /// What was found damaged in the cache and made anew, a line each.
    pub mended: Vec<String>,
}

/// What the initramfs is to hold, whoever's it is.
#[derive(Debug)]
pub struct InitSpec<'a> {
    /// What the guest runs on.
    pub processor: &'a Processor,
    /// The agent's program, static, for that processor.
    pub agent: &'a [u8],
    /// The kernel's modules; none if it has none, or needs none.
    pub modules: Option<&'a ModuleIndex>,
    /// What the guest cannot do without: a kernel known not to have one of these is an error.
    pub required: &'a [Feature],
    /// What the guest gets if the kernel has it.
    pub wanted: &'a [Feature],
}

/// Why a guest cannot be booted so.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel is for another processor than what it is to start.
    #[error(
        "the kernel {} is for {arch}, and the root that it is to start, with Belljar's own init, is for {wanted}; give a kernel for {wanted} with --kernel (Debian's package {package} has one)",
        kernel.display()
    )]
    Arch {
        /// The kernel.
        kernel: PathBuf,
        /// What it is for.
        arch: Arch,
        /// What the agent is for.
        wanted: Arch,
        /// The package of Debian's that has one.
        package: &'static str,
    },
    /// The kernel lacks something.
    #[error(
        "the kernel {} has no {} (looked in {}); mend: give another with --kernel, on Debian the one of {package}",
        kernel.display(), list(features), modules.display()
    )]
    Lacks {
        /// The kernel.
        kernel: PathBuf,
        /// Its modules.
        modules: PathBuf,
        /// What it lacks.
        features: Vec<Feature>,
        /// The package of Debian's that would do.
        package: &'static str,
    },
    /// A module that another needs is not there.
    #[error(
        "the module {missing} is listed in {} but not there; mend: install the kernel's package again, or run depmod",
        modules.display()
    )]
    MissingModule {
        /// Its name.
        missing: String,
        /// Where it should be.
        modules: PathBuf,
    },
    /// The modules were built for another kernel, which refuses them.
    #[error(
        "the modules in {} were built for the kernel {built_for}, not for {}, which is {release}",
        modules.display(), kernel.display()
    )]
    OtherKernel {
        /// The kernel's file.
        kernel: PathBuf,
        /// The kernel's release.
        release: String,
        /// The directory.
        modules: PathBuf,
        /// What they were built for.
        built_for: String,
    },
    /// A file's times and size could not be read.
    #[error("cannot look at {}: {source}", path.display())]
    Stat {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// See [`ModulesError`].
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// See [`VmlinuxError`].
    #[error(transparent)]
    Vmlinux(#[from] VmlinuxError),
    /// See [`InitramfsError`].
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// See [`CacheError`].
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn list(features: &[Feature]) -> String {
    features.iter().map(ToString::to_string).collect::<Vec<_>>().join(", no ")
}

/// A guest whose first process is the agent and whose root is the 9p share `root_tag`, read-only under a layer in memory.
/// Required besides `spec.required`: [`Feature::HOST_USERLAND`]; wanted besides `spec.wanted`, here and below: the agent's port.
///
/// # Errors
/// See [`BootError`].
pub fn root_over_9p(
    kernel: &Kernel,
    spec: &InitSpec<'_>,
    root_tag: &str,
    cache: &Cache,
) -> Result<BootFiles, BootError> {
    let root = InitRoot::Share(Source::NineP { tag: root_tag.to_owned() });
    prepare(kernel, Start::Quickest, spec, root, None, cache)
}

/// A guest whose first process is the agent and whose root is a file system of this kind on the disk with this serial number, read-only under a layer in
/// memory. With an `init` that program in it becomes the first process, and the agent runs beside it. Required besides `spec.required`:
/// [`Feature::CONTAINER_IMAGE`].
///
/// # Errors
/// See [`BootError`].
pub fn root_on_disk(
    kernel: &Kernel,
    spec: &InitSpec<'_>,
    (serial, file_system): (&str, &str),
    init: Option<&str>,
    modules: Option<InitModules>,
    cache: &Cache,
) -> Result<BootFiles, BootError> {
    let init = init.map(str::to_owned);
    let root = InitRoot::Disk { serial: serial.to_owned(), file_system: file_system.to_owned(), init, modules };
    prepare(kernel, Start::Quickest, spec, root, None, cache)
}

/// A guest of somebody else's initramfs. With a `spec`, the agent is in it as `/belljar/agent`, beside the
/// modules that the initramfs may lack; to be reached by `rdinit=/belljar/agent` or from a shell.
///
/// # Errors
/// See [`BootError`].
pub fn foreign_initramfs(
    kernel: &Kernel,
    initrd: &Path,
    spec: Option<&InitSpec<'_>>,
    cache: &Cache,
) -> Result<BootFiles, BootError> {
    if let Some(spec) = spec {
        return prepare(kernel, Start::Quickest, spec, InitRoot::Initramfs, Some(initrd), cache);
    }
    initramfs::check_foreign(initrd)?;
    let mut files = kernel_alone(kernel, cache)?;
    files.initrd = Some(initrd.to_owned());
    Ok(files)
}

/// A guest's own kernel with its own initramfs, both taken out of its disk. The agent is in the initramfs too, and is to be started by
/// `rdinit=/belljar/agent`: it starts `init`, which the kernel would have started, and goes to the guest's root when that is there.
/// `by_uefi`: UEFI firmware starts it, which takes a kernel only as it is, an EFI program (the kernel's `admin-guide/efi-stub.rst`).
///
/// # Errors
/// See [`BootError`].
pub fn guests_initramfs(
    kernel: &Kernel,
    initrd: &Path,
    init: &str,
    by_uefi: bool,
    processor: &Processor,
    agent: &[u8],
    cache: &Cache,
) -> Result<BootFiles, BootError> {
    let spec = InitSpec { processor, agent, modules: None, required: &[], wanted: &[] };
    let start = if by_uefi { Start::ByUefi } else { Start::Quickest };
    prepare(kernel, start, &spec, InitRoot::OfGuest { init: init.to_owned() }, Some(initrd), cache)
}

/// In which form a kernel is started.
#[derive(Clone, Copy)]
enum Start {
    Quickest,
    /// As it is.
    ByUefi,
}

/// The quickest form of a kernel, without an initramfs.
///
/// # Errors
/// See [`VmlinuxError`].
pub fn kernel_alone(kernel: &Kernel, cache: &Cache) -> Result<BootFiles, BootError> {
    kernel_in_form(kernel, Start::Quickest, cache)
}

fn kernel_in_form(kernel: &Kernel, start: Start, cache: &Cache) -> Result<BootFiles, BootError> {
    let bootable = match start {
        Start::Quickest => vmlinux::bootable(kernel, cache)?,
        Start::ByUefi => Bootable::AsIs { path: kernel.path.clone(), why: NoPvh::ByUefi },
    };
    let release = kernel.release.as_ref().map_or("of unknown release", |r| r.as_str());
    let mut choices = vec![format!("kernel {} ({release})", kernel.path.display())];
    let mut mended = Vec::new();
    let (path, pvh) = match bootable {
        Bootable::Pvh { path, hit, flaw } => {
            mended.extend(flaw.map(|flaw| said_of_flaw("unpacked kernel", &path, &flaw)));
            choices.push(match hit {
                None => "started by PVH".to_owned(),
                Some(true) => format!("started by PVH as {}, unpacked by an earlier run", path.display()),
                Some(false) => format!("started by PVH as {}, unpacked now", path.display()),
            });
            (path, true)
        }
        Bootable::AsIs { path, why } => {
            choices.push(format!("started as it is, not by PVH: {why}"));
            (path, false)
        }
    };
    Ok(BootFiles { kernel: path, initrd: None, pvh, choices, mended })
}

fn said_of_flaw(what: &str, path: &Path, flaw: &str) -> String {
    format!("the {what} in the cache was not as it was made ({flaw}) and was made anew: {}", path.display())
}

fn prepare(
    kernel: &Kernel,
    start: Start,
    spec: &InitSpec<'_>,
    root: InitRoot,
    foreign: Option<&Path>,
    cache: &Cache,
) -> Result<BootFiles, BootError> {
    let wanted = spec.processor.arch;
    if let Some(arch) = kernel.arch.filter(|&arch| arch != wanted) {
        let package = spec.processor.kernel_package;
        return Err(BootError::Arch { kernel: kernel.path.clone(), arch, wanted, package });
    }
    let (modules, chosen) = choose_modules(kernel, spec, &root)?;
    let mut files = kernel_in_form(kernel, start, cache)?;
    files.choices.extend(chosen);

    let name = format!("initrd-{}", key(spec, &root, &modules, foreign)?);
    let cached = cache.get_or_write(&name, |out, at| {
        let modules = read_modules(kernel, spec, &modules)?;
        let archive =
            InitramfsSpec { agent: spec.agent, root: root.clone(), modules: &modules, alone: foreign.is_none() };
        let written = match foreign {
            Some(foreign) => initramfs::prepend(&archive, foreign, out),
            None => initramfs::build(&archive, io::BufWriter::new(&*out)).map_err(InitramfsError::Write),
        };
        written.map_err(|error| match error {
            InitramfsError::Write(source) => {
                CacheError { what: "the initramfs".to_owned(), path: at.to_owned(), source }.into()
            }
            other => BootError::from(other),
        })
    })?;
    files.mended.extend(cached.flaw.map(|flaw| said_of_flaw("initramfs", &cached.path, &flaw)));
    let when = if cached.hit { "made by an earlier run" } else { "made now" };
    files.choices.push(match foreign {
        None => format!("initramfs {} ({when})", cached.path.display()),
        Some(f) => {
            format!("initramfs {} with Belljar's agent before it: {} ({when})", f.display(), cached.path.display())
        }
    });
    files.initrd = Some(cached.path);
    Ok(files)
}

/// The modules to insert, and what there is to say about them.
fn choose_modules(
    kernel: &Kernel,
    spec: &InitSpec<'_>,
    root: &InitRoot,
) -> Result<(Vec<Module>, Vec<String>), BootError> {
    let Some(index) = spec.modules else {
        let rely = match root {
            InitRoot::Share(_) | InitRoot::Disk { .. } => {
                "no modules: all that is needed has to be built into the kernel"
            }
            InitRoot::Initramfs | InitRoot::OfGuest { .. } => {
                "no modules added: the initramfs has to have what it needs"
            }
        };
        return Ok((Vec::new(), vec![rely.to_owned()]));
    };
    let of_root = match root {
        InitRoot::Share(_) => Feature::HOST_USERLAND,
        InitRoot::Disk { .. } => Feature::CONTAINER_IMAGE,
        InitRoot::Initramfs | InitRoot::OfGuest { .. } => &[],
    };
    let required: Vec<_> = of_root.iter().chain(spec.required).copied().collect();
    let features: Vec<_> = required.iter().copied().filter(|&f| index.feature(f) == Presence::Absent).collect();
    if !features.is_empty() {
        let (kernel, modules) = (kernel.path.clone(), index.dir().to_owned());
        return Err(BootError::Lacks { kernel, modules, features, package: spec.processor.kernel_package });
    }
    let port = [Feature::VirtioPci, Feature::VirtioConsole].into_iter().filter(|f| !required.contains(f));
    let wanted = port.chain(spec.wanted.iter().copied());
    let (have, lack): (Vec<_>, Vec<_>) = wanted.partition(|&f| index.feature(f) != Presence::Absent);
    // EROFS wants it by way of a library, in kernels that have it apart.
    let first = matches!(root, InitRoot::Disk { .. }).then_some(Feature::Crc32c);
    let first = first.filter(|&crc| index.feature(crc) == Presence::Module);
    let names = first.iter().chain(&required).chain(&have).flat_map(Feature::modules).copied();
    let resolved = index.resolve(names)?;
    if let Some(missing) = resolved.missing.into_iter().next() {
        return Err(BootError::MissingModule { missing, modules: index.dir().to_owned() });
    }
    let names: Vec<_> = resolved.insert.iter().map(|m| m.name.as_str()).collect();
    let mut choices = vec![format!("modules from {}: {}", index.dir().display(), names.join(" "))];
    if !lack.is_empty() {
        choices.push(format!("the kernel has no {}", list(&lack)));
    }
    Ok((resolved.insert, choices))
}

fn read_modules(kernel: &Kernel, spec: &InitSpec<'_>, modules: &[Module]) -> Result<Vec<(String, Vec<u8>)>, BootError> {
    let mut read = Vec::new();
    for module in modules {
        let bytes = modules::read_module(&module.path)?;
        if let (Some(release), Some(built_for)) = (&kernel.release, modules::built_for(&bytes))
            && release.as_str() != built_for
        {
            return Err(BootError::OtherKernel {
                kernel: kernel.path.clone(),
                release: release.to_string(),
                modules: spec.modules.map(|m| m.dir().to_owned()).unwrap_or_default(),
                built_for,
            });
        }
        read.push((module.name.clone(), bytes));
    }
    Ok(read)
}

/// A root as part of a name.
fn root_name(root: &InitRoot) -> Vec<u8> {
    match root {
        InitRoot::Share(source) => to_bytes(source).unwrap_or_default(),
        InitRoot::Initramfs => Vec::new(),
        InitRoot::OfGuest { .. } | InitRoot::Disk { .. } => to_bytes(root).unwrap_or_default(),
    }
}

/// All that decides an initramfs's content.
fn key(spec: &InitSpec<'_>, root: &InitRoot, modules: &[Module], foreign: Option<&Path>) -> Result<String, BootError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&LAYOUT.to_le_bytes());
    let mut put = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    put(spec.agent);
    put(&root_name(root));
    let mut fingerprint = |path: &Path| {
        cache::fingerprint(path, &mut hasher).map_err(|source| BootError::Stat { path: path.to_owned(), source })
    };
    for module in modules {
        fingerprint(&module.path)?;
    }
    foreign.map_or(Ok(()), &mut fingerprint)?;
    Ok(cache::short(&hasher))
}
