//! Mounting: 9p, overlays, and places to mount on.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use belljar_proto::message::{Mount, MountFault, MountMode};
use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{modules, text};

/// Where the parts of a copy-on-write share are.
const PARTS: &str = "/run/belljar";
/// Message size, in bytes. The kernel makes buffers of this size for each directory that is read, and before 6.1 for each message:
/// with 512000 a walk over many small files took a third more of an emulated processor, and large files gained nothing;
/// with 32768 large files took twice as long.
const MSIZE: u32 = 65_536;

/// What makes an overlay behave like one file system. `redirect_dir` (Linux 4.10): without it the rename of a directory that was
/// there before is `EXDEV`. `metacopy` (4.19): a new owner or mode does not copy the file, so that [`crate::owner`] can give a large
/// workspace to somebody. No `index`, which hard links would need: it wants file handles, and 9p has none.
const OVERLAY_OPTIONS: &str = ",redirect_dir=on,metacopy=on";

/// `mount(2)`, with a text for data.
pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())
}

/// How a 9p mount is to see the host's changes.
#[derive(Clone, Copy)]
pub(crate) enum Cache {
    /// Keeps what it has read: for what nobody else changes.
    Loose,
    /// Asks the host each time; keeps pages only for files mapped into memory, without which writing through such a mapping fails.
    Mmap,
}

/// Mounts a 9p share, without trying to load anything.
///
/// `access=any`: one attachment serves all the guest's users, who are then judged by the guest's kernel from the files'
/// owners and modes. With the default each user attaches anew, which costs a walk from the root per path and user
/// and changes nothing, as QEMU does not know the guest's users.
pub(crate) fn ninep(tag: &str, target: &str, flags: MountFlags, cache: Cache) -> Result<(), Errno> {
    let cache = match cache {
        Cache::Loose => "loose",
        Cache::Mmap => "mmap",
    };
    let options = format!("trans=virtio,version=9p2000.L,msize={MSIZE},cache={cache},access=any");
    mount(tag, target, "9p", flags, &options)
}

/// Puts a writable layer in memory over `lower`. `scratch` gets a file system of its own, which is to be in memory and
/// to take extended attributes.
pub(crate) fn overlay(lower: &str, scratch: &str, target: &str) -> Result<(), (String, Errno)> {
    mount("tmpfs", scratch, "tmpfs", MountFlags::empty(), "mode=0755")
        .map_err(|errno| (format!("mount tmpfs on {scratch}"), errno))?;
    let (upper, work) = (format!("{scratch}/upper"), format!("{scratch}/work"));
    // The merged directory has the upper one's mode and owner.
    let like = rustix::fs::stat(lower).map_err(|errno| (format!("stat {lower}"), errno))?;
    for directory in [&upper, &work] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(like.st_mode & 0o7777))
            .map_err(|errno| (format!("mkdir {directory}"), errno))?;
    }
    let _ = rustix::fs::chmod(&upper, Mode::from_raw_mode(like.st_mode & 0o7777));
    let _ = rustix::fs::chown(
        &upper,
        Some(rustix::fs::Uid::from_raw(like.st_uid)),
        Some(rustix::fs::Gid::from_raw(like.st_gid)),
    );
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mount = |more: &str| mount("overlay", target, "overlay", MountFlags::empty(), &format!("{options}{more}"));
    let mounted = match mount(OVERLAY_OPTIONS) {
        // A kernel that does not know them.
        Err(Errno::INVAL) => mount(""),
        other => other,
    };
    mounted.map_err(|errno| (format!("mount overlay on {target}"), errno))
}

/// Makes a directory and those above it. On a read-only file system an empty directory above gets a small file system in memory;
/// so does `/run`, which is in memory on a system that is up, and hides nothing there that lasts.
pub(crate) fn make_directory(path: &str) -> Result<(), String> {
    match make_all(path) {
        Ok(()) => Ok(()),
        Err((_, Errno::ROFS)) => {
            let host = existing_parent(path);
            let is_empty = fs::read_dir(&host).is_ok_and(|mut entries| entries.next().is_none());
            if host == "/" || !(is_empty || host == "/run") {
                return Err(format!(
                    "mkdir {path}: EROFS (read-only file system): choose a path for the share that exists in the guest"
                ));
            }
            mount("tmpfs", &host, "tmpfs", MountFlags::empty(), "mode=0755,size=1m")
                .map_err(|errno| format!("mount tmpfs on {host}: {}", text::errno(errno)))?;
            make_all(path).map_err(|(at, errno)| format!("mkdir {at}: {}", text::errno(errno)))
        }
        Err((at, errno)) => Err(format!("mkdir {at}: {}", text::errno(errno))),
    }
}

fn make_all(path: &str) -> Result<(), (String, Errno)> {
    let mut so_far = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        so_far.push('/');
        so_far.push_str(name);
        match rustix::fs::mkdir(&so_far, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // Read-only: fine where it is there.
            Err(_) if Path::new(&so_far).is_dir() => {}
            Err(errno) => return Err((so_far, errno)),
        }
    }
    Ok(())
}

/// The nearest directory above that exists.
fn existing_parent(path: &str) -> String {
    Path::new(path)
        .ancestors()
        .skip(1)
        .find(|parent| parent.is_dir())
        .map_or_else(|| "/".into(), |parent| parent.to_string_lossy().into_owned())
}

/// Mounts one share as the host asked.
pub(crate) fn share(wanted: &Mount) -> Result<(), MountFault> {
    let failed = |detail| MountFault::Failed { detail };
    let (tag, path) = (&*wanted.tag, &*wanted.path);
    if !path.starts_with('/') || path.split('/').any(|name| name == "..") {
        return Err(failed(format!("{path:?} is not an absolute path")));
    }
    make_directory(path).map_err(failed)?;
    match wanted.mode {
        MountMode::ReadWrite => ninep_with_modules(tag, path, MountFlags::empty(), Cache::Mmap),
        MountMode::ReadOnly => ninep_with_modules(tag, path, MountFlags::RDONLY, Cache::Loose),
        MountMode::CopyOnWrite => {
            let (lower, scratch) = (format!("{PARTS}/lower/{tag}"), format!("{PARTS}/cow/{tag}"));
            for directory in [&lower, &scratch] {
                make_directory(directory).map_err(failed)?;
            }
            ninep_with_modules(tag, &lower, MountFlags::RDONLY, Cache::Loose)?;
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

fn ninep_with_modules(tag: &str, target: &str, flags: MountFlags, cache: Cache) -> Result<(), MountFault> {
    let first = match ninep(tag, target, flags, cache) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    // ENODEV: no such file system. EINVAL: it has no virtio transport. ENOENT: no device of this tag, perhaps for want of the
    // bus's driver.
    let (errno, tried) = if matches!(first, Errno::NODEV | Errno::INVAL | Errno::NOENT) {
        let tried = modules::load(&["virtio_pci", "9pnet_virtio", "9p"]);
        match ninep(tag, target, flags, cache) {
            Ok(()) => return Ok(()),
            Err(errno) => (errno, tried),
        }
    } else {
        (first, String::new())
    };
    let detail = format!("mount 9p {tag} on {target}: {}", text::errno(errno));
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_9p = known.split_whitespace().any(|word| word == "9p");
    let has_transport = fs::exists("/sys/bus/virtio/drivers/9pnet_virtio").unwrap_or(false);
    Err(match errno {
        Errno::NODEV => MountFault::No9p { detail: join(&detail, &tried) },
        Errno::INVAL | Errno::NOENT if !has_9p || !has_transport => {
            MountFault::No9p { detail: join(&format!("{detail}; no virtio transport"), &tried) }
        }
        Errno::NOENT => MountFault::Failed { detail: format!("{detail}: the machine has no share of this tag") },
        _ => MountFault::Failed { detail },
    })
}

fn join(detail: &str, tried: &str) -> String {
    if tried.is_empty() { detail.to_owned() } else { format!("{detail}; {tried}") }
}

/// Makes pseudo-terminals available in a system that has not cared for them.
pub(crate) fn terminals() {
    let _ = make_directory("/dev/pts");
    let flags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
    let _ = mount("devpts", "/dev/pts", "devpts", flags, "mode=0620,ptmxmode=0666");
    link("pts/ptmx", "/dev/ptmx");
}

/// Makes a symbolic link where nothing is.
pub(crate) fn link(target: &str, at: &str) {
    let _ = rustix::fs::symlinkat(target, CWD, at);
}
