//! The root of a guest that Belljar initialises, read-only under a layer in memory.
//!
//! One of the host's directories is entered when the host says so and not at the boot, for a guest can be frozen only as long as nothing of the host's is
//! mounted. A disk of the machine's own is entered at once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use belljar_proto::message::{InitModules, Source};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::share::{self, Use};
use crate::{mounts, text};

/// File systems of the initramfs that go over into the root, with all that is mounted below them.
const GO_OVER: &[&str] = &["/proc", "/sys", "/dev", "/run", "/tmp"];

/// How long the kernel may take to find a disk that the machine has had from its start.
const DISK_LIMIT: Duration = Duration::from_secs(60);

/// Makes the places that [`enter`] needs.
pub(crate) fn prepare() -> Result<(), String> {
    for path in ["/belljar", "/belljar/lower", "/belljar/layer", "/belljar/root"] {
        directory(path)?;
    }
    Ok(())
}

/// Goes over to a host directory, read-only, under a layer in memory.
pub(crate) fn enter(source: &Source) -> Result<(), String> {
    share::attach(source, "/belljar/lower", Use::Reading)
        .map_err(|errno| step(&format!("mount the {} root", share::file_system(source)), errno))?;
    go_over()
}

/// Goes over to what is on the disk with this serial number.
pub(crate) fn enter_disk(serial: &str, file_system: &str) -> Result<(), String> {
    let device = find_disk(serial, "the root is")?;
    mounts::mount(&device, "/belljar/lower", file_system, MountFlags::RDONLY, "").map_err(|errno| {
        let lacks = if errno == Errno::NODEV {
            format!(": this kernel has no file system {file_system}")
        } else {
            String::new()
        };
        step(&format!("mount {device}, on which is the root ({file_system}){lacks}"), errno)
    })?;
    go_over()
}

/// Mounts the kernel's modules where programs look for them, under a layer in memory, in the root that was entered. The init of that root finds them there,
/// and nothing else of how they came.
pub(crate) fn mount_modules(modules: &InitModules) -> Result<(), String> {
    let InitModules { serial, file_system, release } = modules;
    let device = find_disk(serial, "the kernel's modules are")?;
    let place = format!("/lib/modules/{release}");
    mounts::make_directory(&place)?;
    let (lower, layer) = ("/run/.belljar-modules", "/run/.belljar-layer");
    directory(lower)?;
    directory(layer)?;
    mounts::mount(&device, lower, file_system, MountFlags::RDONLY, "")
        .map_err(|errno| step(&format!("mount {device}, on which the kernel's modules are ({file_system})"), errno))?;
    mounts::overlay(lower, layer, &place).map_err(|(what, errno)| step(&what, errno))?;
    // What lies over them holds them.
    for path in [layer, lower] {
        let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
        let _ = rustix::fs::rmdir(path);
    }
    Ok(())
}

fn step(what: &str, errno: Errno) -> String {
    format!("{what}: {}", text::errno(errno))
}

/// The device of the disk with this serial number; what is on it is for a person.
fn find_disk(serial: &str, what: &str) -> Result<String, String> {
    let deadline = Instant::now() + DISK_LIMIT;
    loop {
        let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut names = disks.filter_map(|disk| disk.file_name().into_string().ok());
        let is_it = |name: &String| {
            let disk = Path::new("/sys/block").join(name);
            let said = fs::read(disk.join("serial")).unwrap_or_default();
            // A SCSI disk's is on a page of vital product data, behind a header of four bytes (SPC-4, "Unit Serial Number VPD page").
            let page = fs::read(disk.join("device/vpd_pg80")).unwrap_or_default();
            [&said, page.get(4..).unwrap_or_default()].iter().any(|said| said.trim_ascii() == serial.as_bytes())
        };
        if let Some(name) = names.find(is_it) {
            return Ok(format!("/dev/{name}"));
        }
        if Instant::now() > deadline {
            let limit = DISK_LIMIT.as_secs();
            return Err(format!(
                "the disk {serial}, on which {what}, was not found within {limit} s: this kernel has no driver for virtio's disks"
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Puts the layer over what is mounted, and goes there.
fn go_over() -> Result<(), String> {
    mounts::overlay("/belljar/lower", "/belljar/layer", "/belljar/root").map_err(|(what, errno)| step(&what, errno))?;
    // Where there is an init of the root's own, or the kernel lacks a file system, not all of them are mounted.
    let device = |path: &str| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let initramfs = device("/").map_err(|errno| step("look at the initramfs", errno))?;
    for path in GO_OVER.iter().filter(|path| device(path).is_ok_and(|device| device != initramfs)) {
        let target = format!("/belljar/root{path}");
        // A link there would lead out of the new root; the layer takes its going.
        if fs::symlink_metadata(&target).is_ok_and(|there| !there.is_dir()) {
            rustix::fs::unlink(target.as_str()).map_err(|errno| step(&format!("make room for {path}"), errno))?;
        }
        let go_over = || rustix::mount::mount_move(*path, target.as_str());
        match go_over() {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                directory(&target)?;
                go_over().map_err(|errno| step(&format!("move {path}"), errno))?;
            }
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
