//! Files that the next run can use again, such as a kernel taken out of its bzImage.
//!
//! A file appears in the cache whole or not at all: it is written without a name (`O_TMPFILE`) and linked when it
//! is complete, so that a killed process leaves nothing behind. Its name says what went into it, so that a file is
//! never wrong, only unused; what has not been used for [`KEEP`] goes when something new comes.

use std::fs::{File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// How long a file that nobody uses stays.
pub const KEEP: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Every file of ours begins with this, so that clearing up touches nothing else.
const PREFIX: &str = "belljar-";

/// Where files are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    scratch: PathBuf,
}

/// A file could not be written to the cache, nor to the run's directory in its place.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {what} to {}: {source}{}", path.display(), hint(source))]
pub struct CacheError {
    /// What was to be written.
    pub what: String,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, or name other directories with BELLJAR_CACHE_DIR and --run-dir"
        }
        _ => "",
    }
}

/// What [`Cache::get_or_write`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The file, absolute if the cache's directories are.
    pub path: PathBuf,
    /// Whether it was there before.
    pub hit: bool,
}

impl Cache {
    /// `dir` is made when it is first needed. `scratch` is a directory that exists and goes with the run: files land
    /// there, for this run only, when `dir` cannot be written or its file system has no unnamed files.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), scratch: scratch.into() }
    }

    /// The file called `name` in the cache, written by `write` if it is not there yet. `name` must say all that
    /// decides its content. `write` gets an empty file, which it can read too, and the path to name in errors.
    ///
    /// # Errors
    /// What `write` returns, and [`CacheError`] where the file cannot be created at all.
    pub fn get_or_write<E>(&self, name: &str, write: impl Fn(&mut File, &Path) -> Result<(), E>) -> Result<Cached, E>
    where
        E: From<CacheError>,
    {
        let name = format!("{PREFIX}{name}");
        let path = self.dir.join(&name);
        if usable(&path) {
            // The time tells what is in use; without the right to set it the file merely goes sooner.
            if let Ok(file) = File::open(&path) {
                let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
            }
            return Ok(Cached { path, hit: true });
        }
        if let Ok(mut file) = self.unnamed() {
            write(&mut file, &path)?;
            // A file that lost its bytes in a power cut would be taken for good for ever.
            let linked = file.sync_data().and_then(|()| link(&file, &path));
            if linked.is_ok() {
                self.clear_up();
                return Ok(Cached { path, hit: false });
            }
        }
        let path = self.scratch.join(&name);
        let mut options = File::options();
        let mut file =
            options.read(true).write(true).create(true).truncate(true).open(&path).map_err(|source| CacheError {
                what: name.clone(),
                path: path.clone(),
                source,
            })?;
        write(&mut file, &path)?;
        Ok(Cached { path, hit: false })
    }

    /// Where the file called `name` is, or would be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{PREFIX}{name}"))
    }

    /// Puts a small file called `name` into the cache in place of one that may be there: whole, or not at all.
    ///
    /// # Errors
    /// Where the cache cannot be written to; what was there may be gone then.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        let mut file = self.unnamed()?;
        io::Write::write_all(&mut file, content)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => link(&file, &path),
        }
    }

    fn unnamed(&self) -> io::Result<File> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        unnamed_file(&self.dir, OFlags::empty())
    }

    /// Removes what nobody used for [`KEEP`]. A failure here is nobody's concern: the next run tries again.
    fn clear_up(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
            let old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if ours && old().is_some_and(|age| age > KEEP) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A file without a name in `dir`, which goes when its last descriptor does.
pub(crate) fn unnamed_file(dir: &Path, more: OFlags) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | more;
    Ok(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Only a plain file of our own is used: a cache that others can write to must not hand a guest its kernel.
fn usable(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.uid() == rustix::process::geteuid().as_raw())
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    file.set_permissions(Permissions::from_mode(0o600))?;
    // AT_EMPTY_PATH would want CAP_DAC_READ_SEARCH.
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        // Somebody else was quicker with the same content.
        Err(rustix::io::Errno::EXIST) if usable(path) => Ok(()),
        other => other.map_err(Into::into),
    }
}

/// Stands for a file's content without reading it: path, device, inode, size, and times to the nanosecond.
///
/// # Errors
/// When the file's metadata cannot be read.
pub fn fingerprint(path: &Path, into: &mut blake3::Hasher) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let m = std::fs::metadata(path)?;
    let path = path.as_os_str().as_bytes();
    into.update(&(path.len() as u64).to_le_bytes());
    into.update(path);
    for n in [m.dev(), m.ino(), m.size()] {
        into.update(&n.to_le_bytes());
    }
    // The change time too: it cannot be set back as the modification time can.
    for n in [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()] {
        into.update(&n.to_le_bytes());
    }
    Ok(())
}

/// The end of a hash as part of a file name.
pub(crate) fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let cache = Cache::new(dir.path().join("a/b"), dir.path().join("run"));
        (dir, cache)
    }

    fn put(cache: &Cache, name: &str) -> Result<Cached, CacheError> {
        cache.get_or_write(name, |f, path| {
            let mut written = String::new();
            f.write_all(name.as_bytes())
                .and_then(|()| f.seek(io::SeekFrom::Start(0)))
                .and_then(|_| f.read_to_string(&mut written))
                .map_err(|source| CacheError { what: name.into(), path: path.into(), source })?;
            assert_eq!(written, name, "what was written can be read");
            Ok(())
        })
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn written_once_then_found() {
        let (dir, cache) = cache();
        let first = put(&cache, "x").unwrap();
        assert!(!first.hit);
        assert_eq!(std::fs::read(&first.path).unwrap(), b"x");
        assert_eq!(put(&cache, "x").unwrap(), Cached { path: first.path, hit: true });
        assert_eq!(names(&dir.path().join("a/b")), ["belljar-x"]);
        assert_eq!(names(&dir.path().join("run")), [""; 0]);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let (dir, cache) = cache();
        let failed = cache.get_or_write("x", |f, _| {
            f.write_all(b"half").unwrap();
            Err(CacheError { what: "x".into(), path: PathBuf::new(), source: io::ErrorKind::StorageFull.into() })
        });
        assert!(failed.unwrap_err().to_string().contains("make room"));
        assert_eq!(names(&dir.path().join("a/b")), [""; 0]);
        assert_eq!(names(&dir.path().join("run")), [""; 0]);
    }

    #[test]
    fn without_a_cache_the_file_lands_in_the_runs_directory() {
        let (dir, _) = cache();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let cache = Cache::new(dir.path().join("file/below"), dir.path().join("run"));
        let cached = put(&cache, "x").unwrap();
        assert_eq!(cached.path, dir.path().join("run/belljar-x"));
        assert_eq!(std::fs::read(cached.path).unwrap(), b"x");
    }

    #[test]
    fn a_symbolic_link_in_the_cache_is_not_used() {
        let (dir, cache) = cache();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("a/b/belljar-x")).unwrap();
        assert_eq!(put(&cache, "x").unwrap().path, dir.path().join("run/belljar-x"));
    }

    #[test]
    fn what_nobody_used_goes_and_what_is_not_ours_stays() {
        let (dir, cache) = cache();
        let old = put(&cache, "old").unwrap().path;
        let foreign = dir.path().join("a/b/foreign");
        std::fs::write(&foreign, "").unwrap();
        let past = SystemTime::now() - KEEP - Duration::from_secs(60);
        for file in [&old, &foreign] {
            File::options().write(true).open(file).unwrap().set_modified(past).unwrap();
        }
        put(&cache, "new").unwrap();
        assert_eq!(names(&dir.path().join("a/b")), ["belljar-new", "foreign"]);
    }

    #[test]
    fn a_small_file_is_replaced_whole() {
        let (dir, cache) = cache();
        cache.replace("x", b"first").unwrap();
        cache.replace("x", b"2nd").unwrap();
        assert_eq!(std::fs::read(cache.path("x")).unwrap(), b"2nd");
        assert_eq!(names(&dir.path().join("a/b")), ["belljar-x"]);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(Cache::new(dir.path().join("file/below"), dir.path()).replace("x", b"").is_err());
    }

    #[test]
    fn a_fingerprint_changes_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let print = || {
            let mut h = blake3::Hasher::new();
            fingerprint(&file, &mut h).unwrap();
            short(&h)
        };
        std::fs::write(&file, "a").unwrap();
        let first = print();
        assert_eq!(first, print());
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "ab").unwrap();
        assert_ne!(first, print());
    }
}
