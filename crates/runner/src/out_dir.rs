//! The directory in which a guest leaves files.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Lets every user of the guest leave files, for they are not the host's users. The directory above keeps the host's other users out. A
/// guest that shares the directory above may put something else in its place at any time, so no link is followed.
///
/// # Errors
/// If there is no directory, or it is another user's.
pub fn open_to_all(out: &Path) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(out, flags, Mode::empty())?;
    Ok(rustix::fs::fchmod(&dir, Mode::RWXU | Mode::RWXG | Mode::RWXO)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use fs_err as fs;

    use super::*;

    #[test]
    fn only_a_real_directory_is_opened_to_all() {
        let dir = tempfile::tempdir().unwrap();
        let (own, others, link) = (dir.path().join("own"), dir.path().join("others"), dir.path().join("link"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for made in [&own, &others] {
            fs::create_dir(made).unwrap();
        }
        let before = mode(&others);
        symlink(&others, &link).unwrap();
        open_to_all(&own).unwrap();
        open_to_all(&link).unwrap_err();
        assert_eq!((mode(&own), mode(&others)), (0o777, before));
    }
}
