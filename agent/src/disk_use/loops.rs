//! Loop devices. The kernel opens what is behind one as any reader does, so that no holder tells of it, nor is it anybody's alone.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{entries, number, of_number, read};
use crate::sys;

/// A loop device that has something behind it. Numbers are as the kernel writes them, `8:1`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loop {
    /// The kernel's name, such as `loop0`.
    pub(super) name: String,
    pub(super) behind: Behind,
}

/// What a loop device shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The block device of this number.
    Device(String),
    /// A file on the file system of this number.
    FileOn(String),
}

/// Those that there are.
pub(super) fn now() -> Vec<Loop> {
    let block = Path::new("/sys/block");
    let names = entries(block).into_iter().filter(|name| name.starts_with("loop"));
    let found = names.filter_map(|name| {
        let dir = block.join(&name);
        // One that has nothing behind it has no such directory.
        let file = read(&dir.join("loop/backing_file"))?;
        let behind = asked(&name, &number(&dir)).or_else(|| named(&file))?;
        Some(Loop { name, behind })
    });
    found.collect()
}

/// What the loop device itself says.
fn asked(name: &str, number: &str) -> Option<Behind> {
    let node = Path::new("/dev").join(name);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let is_it = |meta: &fs::Metadata| meta.file_type().is_block_device() && of_number(meta.rdev()) == number;
    if !fs::symlink_metadata(&node).is_ok_and(|meta| is_it(&meta)) {
        return None;
    }
    let device = rustix::fs::open(&node, flags, Mode::empty()).ok()?;
    let (on, is) = sys::loop_status(device.as_fd()).ok()?;
    // Of a file the kernel gives no number of its own, or that of its file system once more.
    Some(if is == 0 || is == on { Behind::FileOn(of_number(on)) } else { Behind::Device(of_number(is)) })
}

/// What is behind it by the name that it had, which may be another file's by now; for one that has no node in `/dev`.
fn named(file: &str) -> Option<Behind> {
    let meta = fs::metadata(file).ok()?;
    Some(if meta.file_type().is_block_device() {
        Behind::Device(of_number(meta.rdev()))
    } else {
        Behind::FileOn(of_number(meta.dev()))
    })
}
