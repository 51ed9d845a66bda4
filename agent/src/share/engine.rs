//! Directories that a container's engine has mounted before the agent began. Where an engine cannot mount what is to be written to and forgotten,
//! it mounts the directory itself elsewhere, only to be read, and the agent makes a copy of it in the container.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use belljar_proto::message::{Mount, MountFault};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::{Carrier, Cause, Use, make_place};

pub(super) struct Engine;

impl Carrier for Engine {
    fn file_system(&self) -> &'static str {
        "bind"
    }

    fn modules(&self) -> &'static [&'static str] {
        &[]
    }

    fn bus(&self) -> &'static [&'static str] {
        &[]
    }

    fn mount(&self, target: &str, _: Use) -> Result<(), Errno> {
        rustix::fs::stat(target).map(drop)
    }

    fn may_lack_modules(&self, _: Errno) -> bool {
        false
    }

    fn explain(&self, _: Errno) -> Cause {
        Cause::Other(Some("the container's engine did not mount it"))
    }
}

/// Sees that a share is where it is to be, as a copy of `copy_of` if that is given.
pub(super) fn place(share: &Mount, copy_of: Option<&str>) -> Result<(), MountFault> {
    let failed = |detail| MountFault::Failed { detail };
    match copy_of {
        Some(from) => {
            make_place(share)?;
            copy(from.as_ref(), share.path.as_ref()).map_err(failed)
        }
        None if Path::new(&share.path).is_dir() => Ok(()),
        None => Err(failed("the container's engine did not mount it".to_owned())),
    }
}

/// Copies what is in a directory, with modes, owners where that is permitted, times and symbolic links. Of a file with several names each
/// is a file of its own; sockets and devices are left out.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let mut left: Vec<(PathBuf, PathBuf)> = vec![(from.to_owned(), to.to_owned())];
    let mut made = Vec::new();
    while let Some((from, to)) = left.pop() {
        let fail = |error: io::Error| format!("copy {} to {}: {error}", from.display(), to.display());
        for entry in fs::read_dir(&from).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            match copy_one(&source, &target) {
                Ok(true) => left.push((source, target)),
                Ok(false) => {}
                Err(error) => return Err(format!("copy {}: {error}", source.display())),
            }
        }
        made.push((from, to));
    }
    // What is put into a directory changes its time.
    for (from, to) in made {
        let _ = fs::symlink_metadata(&from).map(|of| take_times(&of, &to));
    }
    Ok(())
}

/// Copies one entry; tells whether it is a directory, whose content is still to be copied.
fn copy_one(from: &Path, to: &Path) -> io::Result<bool> {
    let of = fs::symlink_metadata(from)?;
    let kind = FileType::from_raw_mode(of.mode());
    match kind {
        FileType::Directory => match fs::create_dir(to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        },
        FileType::RegularFile => drop(fs::copy(from, to)?),
        FileType::Symlink => symlink(fs::read_link(from)?, to)?,
        FileType::Fifo => rustix::fs::mknodat(CWD, to, kind, Mode::from_raw_mode(of.mode()), 0)?,
        _ => return Ok(false),
    }
    // Only root may give it away; whose it is then shows in the container as whose the copy is.
    let _ = lchown(to, Some(of.uid()), Some(of.gid()));
    if kind != FileType::Symlink {
        fs::set_permissions(to, fs::Permissions::from_mode(of.mode() & 0o7777))?;
    }
    take_times(&of, to);
    Ok(kind == FileType::Directory)
}

fn take_times(of: &fs::Metadata, to: &Path) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: of.atime(), tv_nsec: of.atime_nsec() as _ },
        last_modification: Timespec { tv_sec: of.mtime(), tv_nsec: of.mtime_nsec() as _ },
    };
    let _ = rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW);
}

#[cfg(test)]
mod tests {
    use belljar_proto::message::{MountMode, Source};

    use super::*;

    #[test]
    fn a_copy_is_like_what_it_was_made_of() {
        let dir = std::env::temp_dir().join(format!("belljar-copy-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("deep/er")).unwrap();
        fs::write(from.join("deep/er/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(from.join("deep/er/run"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        let old = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: old, last_modification: old };
        for path in ["deep/er/run", "deep"] {
            rustix::fs::utimensat(CWD, from.join(path), &times, AtFlags::empty()).unwrap();
        }
        let path = to.to_str().unwrap().to_owned();
        let copy_of = Some(from.to_str().unwrap().to_owned());
        let share = Mount {
            name: "w".into(),
            sources: vec![Source::Engine { copy_of: copy_of.clone() }],
            path,
            mode: MountMode::CopyOnWrite,
        };
        assert_eq!(place(&share, copy_of.as_deref()), Ok(()));
        let run = fs::symlink_metadata(to.join("deep/er/run")).unwrap();
        assert_eq!((run.mode() & 0o7777, run.mtime()), (0o755, 1_000_000));
        assert_eq!(fs::symlink_metadata(to.join("deep")).unwrap().mtime(), 1_000_000);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/shadow"));
        fs::write(to.join("deep/er/run"), "changed").unwrap();
        assert_eq!(fs::read(from.join("deep/er/run")).unwrap(), b"#!/bin/sh\n");
        fs::remove_dir_all(&dir).unwrap();
        let gone = place(&share, None);
        assert!(matches!(gone, Err(MountFault::Failed { detail }) if detail.contains("did not mount")));
    }
}
