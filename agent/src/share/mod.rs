//! The host's directories in the guest: mounted as the host asks, and let go of before a freeze.
//!
//! What one kind of share does differently is in a file of its own, which is a line in [`carrier`].

pub(crate) mod disk;
mod engine;
mod fuse;
mod ninep;
mod relay;
mod virtiofs;

use std::fs;
use std::time::{Duration, Instant};

use belljar_proto::message::{Mount, MountFault, MountMode, SetupReport, Source};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use self::disk::Unpacked;
use crate::mounts::{make_directory, overlay};
use crate::{modules, text};

/// How long shares that were unmounted may take to be let go of.
const LETTING_GO: Duration = Duration::from_secs(10);
/// Where the parts of a copy-on-write share are.
const PARTS: &str = "/run/belljar";

/// File systems through which a guest sees its host, whoever mounted them.
const OF_HOST: &[&str] = &["9p", "virtiofs", fuse::KIND];

/// What a share is mounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The guest writes to it, and sees what the host writes.
    Exchange,
    /// The guest reads what nobody changes meanwhile.
    Reading,
}

impl Use {
    fn flags(self) -> MountFlags {
        match self {
            Self::Exchange => MountFlags::empty(),
            Self::Reading => MountFlags::RDONLY,
        }
    }
}

/// One share of some kind.
trait Carrier {
    /// Its file system, as `/proc/filesystems` has it.
    fn file_system(&self) -> &'static str;
    /// The modules of that file system and of its transport, in the order in which they are to be loaded.
    fn modules(&self) -> &'static [&'static str];
    /// The modules without which the guest may not find the device, if one carries it.
    fn bus(&self) -> &'static [&'static str];
    /// Mounts it, without trying to load anything.
    fn mount(&self, target: &str, wanted: Use) -> Result<(), Errno>;
    /// Whether modules may help where [`Carrier::mount`] ended with this error.
    fn may_lack_modules(&self, errno: Errno) -> bool;
    /// What this error says when all modules have been tried.
    fn explain(&self, errno: Errno) -> Cause;
    /// Waits until nothing of it goes on in the guest, after it was unmounted; says what does.
    fn let_go(&self, _: Instant) -> Result<(), String> {
        Ok(())
    }
}

/// Why a share could not be mounted; with what more is known than the error's name, if anything.
enum Cause {
    /// The kernel lacks something.
    Lacks(Option<&'static str>),
    /// It lacks nothing.
    Other(Option<&'static str>),
}

fn carrier(source: &Source) -> Box<dyn Carrier + '_> {
    match source {
        Source::NineP { tag } => Box::new(ninep::NineP { tag }),
        Source::Fuse { port } => Box::new(fuse::Fuse { port }),
        Source::Disk => Box::new(disk::Disk),
        Source::Virtiofs { tag } => Box::new(virtiofs::Virtiofs { tag }),
        Source::Engine { .. } => Box::new(engine::Engine),
    }
}

/// The share's file system, as `/proc/filesystems` has it.
pub(crate) fn file_system(source: &Source) -> &'static str {
    carrier(source).file_system()
}

/// Mounts a share with what the kernel has already.
pub(crate) fn attach(source: &Source, target: &str, wanted: Use) -> Result<(), Errno> {
    carrier(source).mount(target, wanted)
}

/// Mounts shares as the host asked, all of them by the same kind: the first for which the kernel lacks nothing.
pub(crate) fn mount_all(shares: &[Mount], unpacked: Option<&Unpacked>) -> SetupReport {
    let mut report = SetupReport::default();
    let mut on_disk = Vec::new();
    for (index, share) in (0_u32..).zip(shares) {
        loop {
            let at = usize::try_from(report.source).unwrap_or(usize::MAX);
            let Some(source) = share.sources.get(at) else {
                let detail = "nothing carries it".to_owned();
                report.faults.push((index, MountFault::Failed { detail }));
                break;
            };
            let mounted = match (source, unpacked) {
                (Source::Disk, Some(unpacked)) => {
                    make_place(share).and_then(|()| unpacked.prepare(index, share, &on_disk)).map(|place| {
                        on_disk.push(place);
                    })
                }
                (Source::Engine { copy_of }, _) => engine::place(share, copy_of.as_deref()),
                _ => mount(share, source),
            };
            match mounted {
                Ok(()) => break,
                Err(MountFault::NoFileSystem { detail }) if at + 1 < share.sources.len() => {
                    report.source += 1;
                    report.lacking.push(detail);
                }
                Err(fault) => {
                    report.faults.push((index, fault));
                    break;
                }
            }
        }
    }
    if let Some(unpacked) = unpacked.filter(|_| !on_disk.is_empty()) {
        match unpacked.fill(&on_disk) {
            Ok(()) => report.places = on_disk.iter().map(disk::Place::shown).collect(),
            Err(detail) => {
                let failed = |place: &disk::Place| (place.number(), MountFault::Failed { detail: detail.clone() });
                report.faults.extend(on_disk.iter().map(failed));
            }
        }
    }
    report
}

/// Makes the place where a share is to be.
fn make_place(share: &Mount) -> Result<(), MountFault> {
    let failed = |detail| MountFault::Failed { detail };
    let path = &*share.path;
    if !path.starts_with('/') || path.split('/').any(|name| name == "..") {
        return Err(failed(format!("{path:?} is not an absolute path")));
    }
    make_directory(path).map_err(failed)
}

/// Where a share is mounted, what covers another first.
pub(crate) fn places(share: &Mount) -> Vec<String> {
    let mut places = vec![share.path.clone()];
    if share.mode == MountMode::CopyOnWrite {
        places.extend(parts(share));
    }
    places
}

/// Where the two parts of a share with a layer over it are: the share itself, and the layer.
fn parts(share: &Mount) -> [String; 2] {
    ["lower", "cow"].map(|part| format!("{PARTS}/{part}/{}", share.name))
}

/// Mounts one share as the host asked.
fn mount(share: &Mount, source: &Source) -> Result<(), MountFault> {
    let failed = |detail| MountFault::Failed { detail };
    make_place(share)?;
    let path = &*share.path;
    match share.mode {
        MountMode::ReadWrite => attach_or_load(share, source, path, Use::Exchange),
        MountMode::ReadOnly => attach_or_load(share, source, path, Use::Reading),
        MountMode::CopyOnWrite => {
            let [lower, scratch] = parts(share);
            for directory in [&lower, &scratch] {
                make_directory(directory).map_err(failed)?;
            }
            attach_or_load(share, source, &lower, Use::Reading)?;
            match overlay(&lower, &scratch, path) {
                Ok(()) => Ok(()),
                Err((what, Errno::NODEV)) if what.starts_with("mount overlay") => {
                    let _ = rustix::mount::unmount(scratch.as_str(), UnmountFlags::DETACH);
                    let tried = modules::load(&["overlay"]);
                    overlay(&lower, &scratch, path).map_err(|(what, errno)| MountFault::NoOverlay {
                        detail: join(&format!("{what}: {}", text::errno(errno)), &tried),
                    })
                }
                Err((what, errno)) => Err(failed(format!("{what}: {}", text::errno(errno)))),
            }
        }
    }
}

fn attach_or_load(share: &Mount, source: &Source, target: &str, wanted: Use) -> Result<(), MountFault> {
    let carrier = carrier(source);
    let Err(first) = carrier.mount(target, wanted) else { return Ok(()) };
    let (errno, tried) = if carrier.may_lack_modules(first) {
        let tried = modules::load(&[carrier.bus(), carrier.modules()].concat());
        match carrier.mount(target, wanted) {
            Ok(()) => return Ok(()),
            Err(errno) => (errno, tried),
        }
    } else {
        (first, String::new())
    };
    let detail = format!("mount {} {} on {target}: {}", carrier.file_system(), share.name, text::errno(errno));
    Err(match carrier.explain(errno) {
        Cause::Lacks(None) => MountFault::NoFileSystem { detail: join(&detail, &tried) },
        Cause::Lacks(Some(what)) => MountFault::NoFileSystem { detail: join(&format!("{detail}; {what}"), &tried) },
        Cause::Other(None) => MountFault::Failed { detail },
        Cause::Other(Some(what)) => MountFault::Failed { detail: format!("{detail}: {what}") },
    })
}

fn join(detail: &str, tried: &str) -> String {
    if tried.is_empty() { detail.to_owned() } else { format!("{detail}; {tried}") }
}

/// Whether the kernel knows this file system.
pub(crate) fn is_known(file_system: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.split_whitespace().any(|word| word == file_system)
}

/// Has the kernel know what shares of one of these kinds need, so that a copy can mount its own.
pub(crate) fn load(sources: &[Source]) {
    for source in sources {
        if *source == Source::Disk {
            modules::load(disk::DRIVERS);
            return;
        }
        let carrier = carrier(source);
        if !is_known(carrier.file_system()) {
            modules::load(carrier.modules());
        }
        if is_known(carrier.file_system()) {
            return;
        }
    }
}

/// What of these shares goes on although nothing of the host's is mounted any more.
pub(crate) fn not_let_go<'a>(sources: impl Iterator<Item = &'a Source>) -> Vec<String> {
    let deadline = Instant::now() + LETTING_GO;
    sources.filter_map(|source| carrier(source).let_go(deadline).err()).collect()
}

/// Where something of the host's is mounted, whoever mounted it.
pub(crate) fn mounted() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of_host = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        OF_HOST.contains(&kind).then(|| at.to_owned())
    };
    mounts.lines().filter_map(of_host).collect()
}
