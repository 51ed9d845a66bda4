//! Removing directories that a guest has filled: as deep, as full and as unreadable as it liked.
//!
//! A walk down by names ends at a path's longest length, one down by descriptors at the most that a process may have open, and a
//! recursion at the stack's end. So nothing is walked down: what a directory holds is moved up to the top, one level at a time, and
//! removed there.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, mkdirat, open, openat, renameat, unlinkat},
    io::Errno,
};

/// How a directory is opened: through no link.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory with all that is in it, and follows no link on the way. What is not there is no error; what is no directory
/// is removed as it is.
///
/// # Errors
/// The first thing that could not be removed; the rest is gone all the same, as far as it can be.
pub fn remove(path: &Path) -> io::Result<()> {
    let top = match open_directory(CWD, path) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, path, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    let emptied = empty(&top);
    drop(top);
    emptied?;
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Opens a directory, and makes it one that we can read and write.
fn open_directory(at: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> Result<OwnedFd, Errno> {
    match openat(at, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Without leave to read it there is only its place, by which the mode can be set all the same.
            let place =
                openat(at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let by_place = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
            rustix::fs::chmod(&*by_place, Mode::RWXU)?;
            openat(at, name, DIRECTORY, Mode::empty())
        }
        opened => opened,
    }
}

fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved = Moved::default();
    // Each level of what is below comes up here in its turn.
    loop {
        let mut left = 0_u64;
        let mut failed = None;
        let mut came_up = false;
        let _ = fchmod(top, Mode::RWXU);
        for_each(top.as_fd(), |name, is_directory| {
            let done = if is_directory {
                flatten(top, name, &mut moved)
            } else {
                unlinkat(top, name, AtFlags::empty()).map(|()| false)
            };
            match done {
                Ok(up) => came_up |= up,
                Err(Errno::NOENT) => {}
                Err(error) => {
                    left += 1;
                    failed.get_or_insert(error);
                }
            }
        })?;
        if let (Some(error), false) = (failed, came_up) {
            return Err(error.into());
        }
        if left == 0 && !came_up {
            return Ok(());
        }
    }
}

/// Empties a directory below the top by moving its directories there, and removes it. Tells whether something was moved.
fn flatten(top: &OwnedFd, name: &CStr, moved: &mut Moved) -> Result<bool, Errno> {
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        done => return done.map(|()| false),
    }
    let dir = open_directory(top.as_fd(), name)?;
    fchmod(&dir, Mode::RWXU)?;
    let mut came_up = false;
    let mut failed = None;
    let each = for_each(dir.as_fd(), |inner, is_directory| {
        let done = if is_directory {
            match unlinkat(&dir, inner, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {
                    came_up = true;
                    moved.up(top, &dir, inner)
                }
                done => done,
            }
        } else {
            unlinkat(&dir, inner, AtFlags::empty())
        };
        if let Err(error) = done {
            failed.get_or_insert(error);
        }
    });
    drop(dir);
    each?;
    if let Some(error) = failed {
        return Err(error);
    }
    unlinkat(top, name, AtFlags::REMOVEDIR)?;
    Ok(came_up)
}

/// Names of what was moved up, which no guest could have chosen all of.
#[derive(Debug, Default)]
struct Moved(u64);

impl Moved {
    fn up(&mut self, top: &OwnedFd, from: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        // A directory that goes to another one is written to: its `..` changes.
        let _ = open_directory(from.as_fd(), name).and_then(|dir| fchmod(&dir, Mode::RWXU));
        loop {
            self.0 += 1;
            let new = format!(".belljar-removed-{}", self.0);
            // A directory takes the place of an empty one, and of nothing else.
            match mkdirat(top, &*new, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error),
            }
            return renameat(from, name, top, &*new);
        }
    }
}

/// Calls `f` with the name of each thing in a directory, and whether it is a directory itself.
fn for_each(dir: BorrowedFd<'_>, mut f: impl FnMut(&CStr, bool)) -> Result<(), Errno> {
    // Some at a time: what is added or removed on the way may or may not be seen.
    let mut names: Vec<(CString, bool)> = Vec::new();
    let mut entries = Dir::read_from(dir)?;
    loop {
        names.clear();
        while names.len() < 1000 {
            let Some(entry) = entries.next() else { break };
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            names.push((name.to_owned(), is_directory));
        }
        if names.is_empty() {
            return Ok(());
        }
        for (name, is_directory) in &names {
            f(name, *is_directory);
        }
    }
}

/// Opens a directory for a look into it.
///
/// # Errors
/// If it is none, or cannot be read.
pub fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, DIRECTORY, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A directory so deep that neither its path nor a descriptor for each level can be had.
    fn deep(top: &Path, levels: usize) {
        fs::create_dir(top).unwrap();
        let mut at = open_to_read(top).unwrap();
        let name = "d".repeat(200);
        for _ in 0..levels {
            mkdirat(&at, &*name, Mode::RWXU).unwrap();
            openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
            at = openat(&at, &*name, DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn depth_is_no_shelter() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        deep(&top, 3000);
        fs::create_dir(top.join(".belljar-removed-1")).unwrap();
        fs::write(top.join(".belljar-removed-2"), "").unwrap();
        remove(&top).unwrap();
        assert!(fs::symlink_metadata(&top).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("kept"), "").unwrap();
        symlink(&other, top.join("a/link")).unwrap();
        symlink(&other, top.join("link")).unwrap();
        fs::write(top.join("n".repeat(255)), "").unwrap();
        rustix::fs::mknodat(CWD, top.join("a/b/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists() && other.join("kept").exists());
        // A link in place of the directory itself.
        symlink(&other, &top).unwrap();
        remove(&top).unwrap();
        assert!(fs::symlink_metadata(&top).is_err() && other.join("kept").exists());
        remove(&top).unwrap();
    }

    #[test]
    fn what_cannot_be_read_or_written_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/b/c/d")).unwrap();
        fs::write(top.join("a/b/file"), "").unwrap();
        for closed in ["a/b/c/d", "a/b/c", "a/b", "a", ""] {
            fs::set_permissions(top.join(closed), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        }
        remove(&top).unwrap();
        assert!(fs::symlink_metadata(&top).is_err());
    }

    #[test]
    fn many_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("many")).unwrap();
        for n in 0..5000 {
            fs::write(top.join(format!("many/{n}")), "").unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
