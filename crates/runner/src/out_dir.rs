//! The directory in which a guest leaves files.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The output directory of a run, held open, so that it is known again whatever a guest does to its name.
pub(crate) struct HeldOut {
    path: PathBuf,
    dir: std::fs::File,
}

impl HeldOut {
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn new(path: &Path) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { path: path.to_owned(), dir: rustix::fs::open(path, flags, Mode::empty())?.into() })
    }

    /// Whether it is still found by its name, and if not, what a person has to know.
    pub(crate) fn moved(&self) -> Option<String> {
        use std::os::{fd::AsRawFd, unix::fs::MetadataExt};
        let of = |m: std::fs::Metadata| (m.dev(), m.ino());
        let here = self.dir.metadata().map(of).ok()?;
        if std::fs::metadata(&self.path).map(of).is_ok_and(|there| there == here) {
            return None;
        }
        let name = std::fs::read_link(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).unwrap_or_default();
        let now = if std::fs::metadata(&name).map(of).is_ok_and(|there| there == here) {
            format!("what it left there is in {}", name.display())
        } else {
            "what it left there is lost".to_owned()
        };
        Some(format!(
            "the output directory {} was moved or removed while the command ran, by it or by somebody on the host: {now}; let --out name a directory that the workspace does not hold, and that nobody else uses",
            self.path.display()
        ))
    }
}

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
    fn an_output_directory_that_a_guest_moved_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (out, aside) = (dir.path().join("out"), dir.path().join("aside"));
        fs::create_dir(&out).unwrap();
        let held = HeldOut::new(&out).unwrap();
        assert_eq!(held.moved(), None);
        fs::rename(&out, &aside).unwrap();
        let moved = |held: &HeldOut| held.moved().unwrap();
        assert!(moved(&held).contains(&format!("is in {}", aside.display())), "{}", moved(&held));
        fs::create_dir(&out).unwrap();
        assert!(moved(&held).contains(&format!("is in {}", aside.display())), "{}", moved(&held));
        fs::remove_dir(&aside).unwrap();
        assert!(moved(&held).contains("is lost"), "{}", moved(&held));
        // A link to it is as good as its name.
        let held = HeldOut::new(&out).unwrap();
        fs::rename(&out, &aside).unwrap();
        symlink(&aside, &out).unwrap();
        assert_eq!(held.moved(), None);
    }

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
