//! The root of a guest that has one of the host's directories for it: entered when the host says so and not at the boot, for a
//! guest can be frozen only as long as nothing of the host's is mounted.

use belljar_proto::message::Source;
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::share::{self, Use};
use crate::{mounts, text};

/// File systems of the initramfs that go over into the root, with all that is mounted below them.
const GO_OVER: &[&str] = &["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Makes the places that [`enter`] needs.
pub(crate) fn prepare() -> Result<(), String> {
    for path in ["/belljar", "/belljar/lower", "/belljar/layer", "/belljar/root"] {
        directory(path)?;
    }
    Ok(())
}

/// Goes over to a host directory, read-only, under a layer in memory.
pub(crate) fn enter(source: &Source) -> Result<(), String> {
    let step = |what: &str, errno: Errno| format!("{what}: {}", text::errno(errno));
    share::attach(source, "/belljar/lower", Use::Reading)
        .map_err(|errno| step(&format!("mount the {} root", share::file_system(source)), errno))?;
    mounts::overlay("/belljar/lower", "/belljar/layer", "/belljar/root").map_err(|(what, errno)| step(&what, errno))?;
    for path in GO_OVER {
        let target = format!("/belljar/root{path}");
        let go_over = || rustix::mount::mount_move(*path, target.as_str());
        match go_over() {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                directory(&target)?;
                go_over().map_err(|errno| step(&format!("move {path}"), errno))?;
            }
            // Nothing is mounted there: the kernel has no such file system.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(step(&format!("move {path}"), errno)),
        }
    }
    rustix::process::chdir("/belljar/root").map_err(|errno| step("chdir to the new root", errno))?;
    rustix::mount::mount_move(".", "/").map_err(|errno| step("move the new root", errno))?;
    rustix::process::chroot(".").map_err(|errno| step("chroot", errno))?;
    rustix::process::chdir("/").map_err(|errno| step("chdir /", errno))
}

fn directory(path: &str) -> Result<(), String> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(format!("mkdir {path}: {}", text::errno(errno))),
    }
}
