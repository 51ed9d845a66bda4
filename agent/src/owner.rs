//! Files that look as if they belonged to who runs the command: what a copy-on-write layer shows can be given to anybody, for the host
//! sees nothing of it.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::text;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bits that a change of owner takes from a file.
const SET_ID: u32 = 0o6000;

/// Gives a directory and all below it to a user. What is mounted below is left alone, and no link is followed. The top comes last, so
/// that it tells whether all of it was done: then there is nothing to do.
pub(crate) fn give(top: &str, uid: u32, gid: u32) -> Result<(), (String, Errno)> {
    let at = |path: &str| {
        let path = if path.is_empty() { top.to_owned() } else { format!("{top}/{path}") };
        move |errno| (path, errno)
    };
    let root = rustix::fs::open(top, DIRECTORY, Mode::empty()).map_err(at(""))?;
    let is_given = |stat: &rustix::fs::Stat| (stat.st_uid, stat.st_gid) == (uid, gid);
    if is_given(&rustix::fs::fstat(&root).map_err(at(""))?) {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    // By path below the top: a tree can be deeper than there are descriptors.
    let mut left = vec![Vec::new()];
    while let Some(path) = left.pop() {
        let shown = text::lossy(&path);
        let dir = match open_below(&root, &path) {
            Ok(dir) => dir,
            // Gone or replaced meanwhile, or something else is mounted there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
            Err(errno) => return Err(at(&shown)(errno)),
        };
        for entry in Dir::read_from(&dir).map_err(at(&shown))? {
            let entry = entry.map_err(at(&shown))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let below = if path.is_empty() { name.to_bytes().to_vec() } else { [&path, name.to_bytes()].join(&b'/') };
            let given = (|| {
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if !is_given(&stat) {
                    rustix::fs::chownat(&dir, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & SET_ID != 0 {
                        rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
                    }
                }
                Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
            })();
            match given {
                Ok(true) => left.push(below),
                Ok(false) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(at(&text::lossy(&below))(errno)),
            }
        }
    }
    rustix::fs::fchown(&root, owner.0, owner.1).map_err(at(""))
}

fn open_below(root: impl AsFd, path: &[u8]) -> Result<std::os::fd::OwnedFd, Errno> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&root, path, DIRECTORY, Mode::empty(), resolve) {
        // Before Linux 5.6.
        Err(Errno::NOSYS) => rustix::fs::openat(&root, path, DIRECTORY, Mode::empty()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn all_of_a_tree_is_given_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() {
            // The agent is root's; nobody else can give anything away.
            let refused = give(dir.path().to_str().unwrap(), 1234, 56).unwrap_err();
            return assert_eq!(refused.1, Errno::PERM);
        }
        let (top, beside) = (dir.path().join("top"), dir.path().join("beside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), "x").unwrap();
        fs::set_permissions(top.join("a/b/file"), PermissionsExt::from_mode(0o4755)).unwrap();
        fs::write(&beside, "x").unwrap();
        symlink(&beside, top.join("a/link")).unwrap();
        symlink(dir.path(), top.join("a/up")).unwrap();
        let owner = |path: &std::path::Path| {
            let found = fs::symlink_metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        give(top.to_str().unwrap(), 1234, 56).unwrap();
        for path in ["", "a", "a/b", "a/b/file", "a/link", "a/up"] {
            assert_eq!(owner(&top.join(path)), (1234, 56), "{path}");
        }
        assert_eq!(owner(&beside), (0, 0));
        assert_eq!(fs::metadata(top.join("a/b/file")).unwrap().mode() & 0o7777, 0o4755);
        // Once given, it is not walked again.
        fs::write(top.join("new"), "x").unwrap();
        give(top.to_str().unwrap(), 1234, 56).unwrap();
        assert_eq!(owner(&top.join("new")), (0, 0));
        assert_eq!(give("/no/such", 1, 1).unwrap_err(), ("/no/such".to_owned(), Errno::NOENT));
    }
}
