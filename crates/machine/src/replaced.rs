//! Files that a guest holds open for writing although their name is another file's by now.
//!
//! QEMU's 9p changes a file's length, mode and times by its name (until QEMU 10.1), so that a guest which cuts the file that it has
//! open cuts the one that took its place. Nothing here can keep it from that; but whoever loses data by it is to hear of it. QEMU holds
//! the old file open for the guest, so the host's kernel knows of it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often it is looked: a look takes about a tenth of a millisecond.
pub(crate) const LOOK: Duration = Duration::from_millis(250);
/// What the kernel adds to the name of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";
/// Most files that are told of: one that is replaced every second is not worth a line each time.
const MOST: usize = 20;

/// Looks for such files.
#[derive(Debug)]
pub(crate) struct ReplacedFiles {
    /// Where QEMU's descriptors are.
    descriptors: PathBuf,
    /// Directories that the guest can write to.
    shares: Vec<PathBuf>,
    told: HashSet<PathBuf>,
}

impl ReplacedFiles {
    pub(crate) fn new(qemu: i32, shares: Vec<PathBuf>) -> Self {
        Self { descriptors: format!("/proc/{qemu}/fd").into(), shares, told: HashSet::new() }
    }

    /// What there is to say that was not said before.
    pub(crate) fn look(&mut self) -> Vec<String> {
        // A QEMU that has ended has nothing open.
        let open = fs::read_dir(&self.descriptors).into_iter().flatten().flatten();
        let replaced: Vec<_> = open.filter_map(|entry| self.replaced(&entry.path())).collect();
        let new = replaced.into_iter().filter(|path| self.told.len() < MOST && self.told.insert(path.clone()));
        new.map(|path| {
            format!(
                "{} was replaced while the guest has the old file open for writing: over 9p, what cuts the old one, or changes its \
                 mode, does it to the new one, which may lose data; have the guest close it first, or give it the directory with \
                 --workspace-mode cow (see the manual, Shares)",
                path.to_string_lossy().replace(char::is_control, "?")
            )
        })
        .collect()
    }

    /// The path at which another file is than the one behind this descriptor.
    fn replaced(&self, descriptor: &Path) -> Option<PathBuf> {
        let link = fs::read_link(descriptor).ok()?.into_os_string().into_vec();
        let name = Path::new(OsStr::from_bytes(link.strip_suffix(DELETED)?));
        if !self.shares.iter().any(|share| name.starts_with(share)) || !is_for_writing(descriptor) {
            return None;
        }
        let id = |found: fs::Metadata| (found.dev(), found.ino());
        let open = id(fs::metadata(descriptor).ok()?);
        // Not a file whose own name ends so.
        let is_named_so = fs::symlink_metadata(OsStr::from_bytes(&link)).is_ok_and(|found| id(found) == open);
        let is_another = fs::symlink_metadata(name).is_ok_and(|found| found.is_file() && id(found) != open);
        (is_another && !is_named_so).then(|| name.to_owned())
    }
}

fn is_for_writing(descriptor: &Path) -> bool {
    let Some((number, process)) = descriptor.file_name().zip(descriptor.parent().and_then(Path::parent)) else {
        return false;
    };
    let info = fs::read_to_string(process.join("fdinfo").join(number)).unwrap_or_default();
    let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & 0o3 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_written_to_and_was_replaced_is_told_of_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let share = dir.join("share");
        fs::create_dir(&share).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let mut files = ReplacedFiles::new(me, vec![share.clone()]);
        let write = |path: &Path| fs::File::options().create(true).append(true).open(path).unwrap();
        let replace = |path: &Path| {
            fs::write(dir.join("next"), "new").unwrap();
            fs::rename(dir.join("next"), path).unwrap();
        };

        let log = share.join("log");
        let open = write(&log);
        assert_eq!(files.look(), [""; 0]);
        replace(&log);
        let said = files.look();
        assert!(said.len() == 1 && said[0].starts_with(&format!("{} was replaced", log.display())), "{said:?}");
        assert_eq!(files.look(), [""; 0], "said once");
        drop(open);

        // Removed and not made again, only read, elsewhere, or really named so.
        let _gone = write(&share.join("gone"));
        fs::remove_file(share.join("gone")).unwrap();
        fs::write(share.join("read"), "old").unwrap();
        let _read = fs::File::open(share.join("read")).unwrap();
        replace(&share.join("read"));
        let _elsewhere = write(&dir.join("elsewhere"));
        replace(&dir.join("elsewhere"));
        fs::write(share.join("x"), "").unwrap();
        let _named = write(&share.join("x (deleted)"));
        assert_eq!(files.look(), [""; 0]);

        // Removed and made again.
        fs::write(share.join("gone"), "").unwrap();
        assert_eq!(files.look().len(), 1);
    }
}
