//! Mounting: overlays, and places to mount on.

use std::ffi::CString;
use std::fs;
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::text;

/// What makes an overlay behave like one file system. `redirect_dir` (Linux 4.10): without it the rename of a directory that was
/// there before is `EXDEV`. `metacopy` (4.19): a new owner or mode does not copy the file, so that [`crate::owner`] can give a large
/// workspace to somebody. No `index`, which hard links would need: it wants file handles, and 9p has none.
const OVERLAY_OPTIONS: &str = ",redirect_dir=on,metacopy=on";

/// `mount(2)`, with a text for data.
pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, target, kind, flags, data.as_c_str())
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

/// How many links one after another are followed to a directory that is to be made.
const MOST_LINKS: u32 = 8;

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

/// Makes a directory and those above it.
///
/// # Errors
/// Which of them could not be made, and why.
pub(crate) fn make_all(path: &str) -> Result<(), (String, Errno)> {
    make_through(path, MOST_LINKS)
}

/// The same, and what links in the path lead to, where that is not there: systems whose root is an image have such links, to what their init would
/// make at the boot (`/mnt`, which is `/var/mnt`).
fn make_through(path: &str, links: u32) -> Result<(), (String, Errno)> {
    let mut so_far = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        so_far.push('/');
        so_far.push_str(name);
        match rustix::fs::mkdir(&so_far, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST)
                if links > 0
                    && let Some(to) = dangling(&so_far) =>
            {
                make_through(&to, links - 1)?;
            }
            Ok(()) | Err(Errno::EXIST) => {}
            // Read-only: fine where it is there.
            Err(_) if Path::new(&so_far).is_dir() => {}
            Err(errno) => return Err((so_far, errno)),
        }
    }
    Ok(())
}

/// Where a link leads at whose end there is nothing.
fn dangling(path: &str) -> Option<String> {
    let is_nowhere = fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let to = fs::read_link(path).ok().filter(|_| is_nowhere)?;
    let to = to.to_str()?;
    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
    Some(if to.starts_with('/') { to.to_owned() } else { format!("{above}/{to}") })
}

/// The nearest directory above that exists.
fn existing_parent(path: &str) -> String {
    Path::new(path)
        .ancestors()
        .skip(1)
        .find(|parent| parent.is_dir())
        .map_or_else(|| "/".into(), |parent| parent.to_string_lossy().into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_made_where_links_lead_to_nothing() {
        let dir = std::env::temp_dir().join(format!("belljar-mounts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("there")).unwrap();
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.join(name)).unwrap();
        link("var/mnt", "relative");
        link(&at("absolute/of"), "second");
        link("second", "first");
        link("there", "fine");
        link("loop", "loop");
        for name in ["relative/a", "first/b/c", "fine/d", "plain/e"] {
            make_directory(&at(name)).unwrap();
            assert!(dir.join(name).is_dir(), "{name}");
        }
        assert!(dir.join("var/mnt/a").is_dir() && dir.join("absolute/of/b/c").is_dir() && dir.join("there/d").is_dir());
        assert!(make_directory(&at("loop/f")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
