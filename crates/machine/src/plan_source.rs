//! What a guest boots from, looked at: what processor it is for, and the kernel of a root directory.

use std::path::{Path, PathBuf};

use belljar_guest_spec::{BootSource, BusChoice};
use belljar_image::{
    boot::InitSpec,
    cache::Cache,
    kernel::{self, Arch, Kernel, Userland},
    modules::{Feature, ModuleIndex},
    processor::Processor,
    rootdir::{self, OwnModules},
};
use belljar_model::EventKind;
use belljar_oci::facts::INITS;

use crate::{
    access::rungs::{self, Rung, Start},
    backend::container::root::ImageRoot,
    plan::PlanError,
    plan_choices::Choices,
    plan_image::{self, Facts, ImageReader},
    qemu::{
        args::MachineConfig,
        platform::{self, Platform},
    },
    share::Kind,
    spec::KernelModules,
    tpm,
};

/// Where kernels and modules of the host are looked for.
const HOST_ROOT: &str = "/";

/// A guest's source that was looked at, as far as that tells what processor the guest has.
pub(crate) enum Found<'a> {
    Image { reader: Box<ImageReader<'a>>, bus: BusChoice },
    Root { root: &'a Path, arch: Option<Arch>, kernel: Option<&'a Path>, modules: Option<&'a Path> },
    ContainerImage { image: Option<ImageRoot>, kernel: Option<&'a Path>, modules: Option<&'a Path> },
    Initramfs { kernel: Kernel, initrd: &'a Path, modules: Option<&'a Path> },
}

impl<'a> Found<'a> {
    /// Looks at a source. Of a container image it is known what `image` says, if it was got.
    pub(crate) fn look_at(
        source: &'a BootSource,
        image: Option<ImageRoot>,
        qemu_img: &'a Path,
        cache: &'a Cache,
    ) -> Result<Self, PlanError> {
        let processors = platform::processors();
        Ok(match source {
            BootSource::Image { path, format, bus, access: _ } => {
                let by_us = rungs::choose(source).iter().any(|rung| rung.start != Start::ByImage);
                let image = plan_image::look_at(qemu_img, path, format.as_deref(), by_us)?;
                Self::Image { reader: Box::new(ImageReader::new(image, qemu_img, cache)), bus: *bus }
            }
            BootSource::RootDir { root, kernel, modules } => {
                let root = root.as_deref().unwrap_or(Path::new(HOST_ROOT));
                let arch = rootdir::check(root, &processors)?.arch;
                Self::Root { root, arch, kernel: kernel.as_deref(), modules: modules.as_deref() }
            }
            BootSource::ContainerImage { image: _, pull: _, kernel, modules, access: _ } => {
                Self::ContainerImage { image, kernel: kernel.as_deref(), modules: modules.as_deref() }
            }
            BootSource::Initramfs { kernel, initrd, modules, access: _ } => {
                Self::Initramfs { kernel: Kernel::open(kernel, &processors)?, initrd, modules: modules.as_deref() }
            }
        })
    }

    /// What the guest runs on, and what says so, if something does.
    pub(crate) fn platform(&self) -> (&'static Platform, Option<&'static str>) {
        let (arch, said_by) = match self {
            Self::Image { reader, .. } => {
                (reader.facts().ok().and_then(Facts::arch), "the system on its disk is for it")
            }
            Self::Root { arch, .. } => (*arch, "the programs in its root are for it"),
            Self::ContainerImage { image, .. } => (image.as_ref().and_then(ImageRoot::arch), "the image is for it"),
            Self::Initramfs { kernel, .. } => (kernel.arch, "its kernel is for it"),
        };
        match arch.and_then(platform::of) {
            Some(platform) => (platform, Some(said_by)),
            None => (platform::default(), None),
        }
    }
}

/// The kernel for a root: the one that was named, or the newest that is installed and will do; and its modules. That for another processor than the
/// host's is installed in the root directory itself, if anywhere.
pub(crate) fn kernel_for_root(
    root: Option<&Path>,
    kernel: Option<&Path>,
    modules: Option<&Path>,
    processor: &Processor,
    choices: &mut Choices,
) -> Result<(Kernel, Option<ModuleIndex>), PlanError> {
    let is_hosts = platform::default().processor.runs(processor.arch);
    let userland = if root.is_some() { Userland::Directory } else { Userland::ContainerImage };
    let roots: Vec<PathBuf> = match root {
        _ if is_hosts => vec![HOST_ROOT.into()],
        Some(root) => vec![root.to_owned()],
        None => Vec::new(),
    };
    if let Some(path) = kernel {
        let kernel = Kernel::open(path, &platform::processors())?;
        let dir = modules.map(Path::to_owned).or_else(|| kernel.find_modules(&roots));
        let index = dir.as_deref().map(ModuleIndex::load).transpose()?;
        return Ok((kernel, index));
    }
    if roots.is_empty() {
        return Err(PlanError::NoKernelForImage { arch: processor.arch, package: processor.kernel_package });
    }
    let found = kernel::discover(&roots, &platform::processors());
    let chosen = found.choose(userland, processor)?;
    let passed = found.passed_over(chosen, userland, processor);
    let passed: Vec<String> = passed.map(|l| format!("{}: {}", l.path.display(), l.why)).collect();
    let why = if passed.is_empty() {
        "the newest installed kernel that has what is needed".to_owned()
    } else {
        format!("the newest installed kernel that has what is needed; passed over {}", passed.join("; "))
    };
    choices.add("kernel", chosen.kernel.path.display().to_string(), why);
    let index = match modules {
        Some(dir) => Some(ModuleIndex::load(dir)?),
        None => chosen.modules.clone(),
    };
    Ok((chosen.kernel.clone(), index))
}

/// The kernel's modules, where the root does not have them; if they were `asked` for, also where it has others.
pub(crate) fn modules_for_root(
    own: impl FnOnce(&str, &Path) -> OwnModules,
    kernel: &Kernel,
    index: &ModuleIndex,
    asked: bool,
    choices: &mut Choices,
) -> Option<KernelModules> {
    let dir = index.dir().canonicalize().unwrap_or_else(|_| index.dir().to_owned());
    let Some(release) = kernel.release.as_ref().map(|r| r.as_str().to_owned()) else {
        let why =
            "the kernel's file does not say its release, so that it is not known where modprobe will look for them";
        choices.add("modules in the guest", "those of the root, if any", why);
        return None;
    };
    let own = own(&release, &dir);
    let (chosen, why) = match own {
        OwnModules::Same => return None,
        OwnModules::Other if !asked => ("the root's own".to_owned(), "the root has some for the kernel's release"),
        OwnModules::Other => (dir.display().to_string(), "they were asked for, over those that the root has"),
        OwnModules::None => (dir.display().to_string(), "the root has none for the kernel's release"),
    };
    choices.add("modules in the guest", chosen, why);
    (own == OwnModules::None || asked).then_some(KernelModules { dir, release })
}

/// The program of a container image that becomes its first process: that of `init=` among the words for the kernel, else the one that it has.
pub(crate) fn own_init(
    source: &BootSource,
    image: &ImageRoot,
    append: &[String],
    choices: &mut Choices,
) -> Result<String, PlanError> {
    let words = append.iter().flat_map(|words| words.split_ascii_whitespace());
    let (init, why) = match words.filter_map(|word| word.strip_prefix("init=")).next_back() {
        Some(init) if init.starts_with('/') => (init.to_owned(), "init= says so"),
        Some(init) => {
            return Err(PlanError::NoInit(format!(
                "init={init} is no path: say it from the root on, as init=/sbin/init"
            )));
        }
        None => {
            let init = image.facts.init.clone().ok_or_else(|| {
                let looked = INITS.map(|path| format!("/{path}")).join(", ");
                PlanError::NoInit(format!(
                    "{source} has no init of its own that could run (looked for {looked}); leave --access out, so that Belljar's agent is the first process, \
                     or name a program with --append init=PATH"
                ))
            })?;
            (init, "the image has it")
        }
    };
    choices.add("init", &init, why);
    Ok(init)
}

/// Tells of an `init=` among the words for the kernel that nobody goes by, where Belljar's agent is the first process.
pub(crate) fn tell_of_unused_init(source: &BootSource, append: &[String], choices: &mut Choices) {
    let how = match source {
        BootSource::ContainerImage { .. } => "with --access initrd (`access = \"initrd\"`) it runs",
        BootSource::RootDir { .. } => {
            "--rootfs container:DIR with --access initrd has an init of the directory's own run"
        }
        BootSource::Image { .. } | BootSource::Initramfs { .. } => return,
    };
    let mut words = append.iter().flat_map(|words| words.split_ascii_whitespace());
    if let Some(word) = words.find(|word| word.starts_with("init=")) {
        let message = format!("{word} has no effect, for Belljar's agent is this guest's first process; {how}");
        choices.0.push(EventKind::Warning { message });
    }
}

/// What an initramfs that Belljar writes is to have in any case.
pub(crate) fn init_spec<'a>(
    platform: &'static Platform,
    agent: &'static [u8],
    modules: Option<&'a ModuleIndex>,
) -> InitSpec<'a> {
    InitSpec { processor: &platform.processor, agent, modules, required: &[], wanted: &[] }
}

/// What the devices that a guest may have want of the kernel. It is the same for all guests, whatever they have: devices are plugged into
/// copies of a guest that booted without them.
const WANTED: &[Feature] = &[
    Feature::VirtioRng,
    Feature::VirtioNet,
    Feature::AfPacket,
    Feature::VirtioBlk,
    Feature::VirtioScsi,
    Feature::Nvme,
    Feature::FileSystem("ext4"),
];

/// The same, and what shares of these kinds want. A kernel tells QEMU of its panic, so that nothing which a test does to the console hides it.
pub(crate) fn wanted(platform: &Platform, kinds: &[&Kind]) -> Vec<Feature> {
    let mut wanted: Vec<Feature> = WANTED.to_vec();
    wanted.extend(platform.panic_device.map(|device| match device {
        "pvpanic" => Feature::Pvpanic,
        _ => Feature::PvpanicPci,
    }));
    for &feature in kinds.iter().flat_map(|kind| kind.features).chain(&[Feature::Overlay]) {
        if !wanted.contains(&feature) {
            wanted.push(feature);
        }
    }
    wanted
}

/// Attaches what the rungs need to the machine, and puts the kernel's command line together.
pub(crate) fn attach(config: &mut MachineConfig, rungs: &[&Rung], append: &[String]) {
    if let Some(kernel) = &mut config.kernel {
        kernel.add(&format!("console={}", config.platform.console));
        config.tpm.iter().filter_map(tpm::word).for_each(|word| kernel.add(word));
    }
    for rung in rungs {
        (rung.attach)(config);
    }
    if let Some(kernel) = &mut config.kernel {
        append.iter().for_each(|words| kernel.add(words));
    }
}

/// The guest in a person's words.
pub(crate) fn title(source: &BootSource) -> String {
    match source {
        BootSource::Image { path, .. } => path.display().to_string(),
        BootSource::Initramfs { kernel, initrd, .. } => format!("{} with {}", kernel.display(), initrd.display()),
        BootSource::RootDir { kernel: Some(kernel), .. } => format!("{} with a root directory", kernel.display()),
        BootSource::ContainerImage { image, .. } => format!("the image {image} as a machine"),
        BootSource::RootDir { kernel: None, .. } => "the host's kernel with a root directory".into(),
    }
}
