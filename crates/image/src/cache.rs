//! Files that the next run can use again, such as a kernel taken out of its bzImage.
//!
//! A file appears in the cache whole or not at all: it is written without a name (`O_TMPFILE`) and linked when it
//! is complete, so that a killed process leaves nothing behind. Its name says what went into it. A second file beside it, its seal
//! (`NAME.seal`), says what came of that: a checksum, and the file's identity when the checksum was taken. A file is used only if it
//! still is what its seal says, see [`crate::stamp`]; one that is not is made anew, and that is told. What has not been used
//! for [`KEEP`] goes when something new comes; the time of the seal says when a file was used last.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Seek};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::sparse;
use crate::stamp::{self, Stamp};

/// How long a file that nobody uses stays.
pub const KEEP: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Every file of ours begins with this, so that clearing up touches nothing else.
const PREFIX: &str = "belljar-";
/// What a seal's name ends with.
const SEAL: &str = ".seal";
/// No seal is longer, in bytes.
const MAX_SEAL: u64 = 4096;

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
    /// The file.
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
    /// What was wrong with one that was there and had to be made anew.
    pub flaw: Option<String>,
}

/// A file on its way into the cache ([`Cache::begin`]).
#[derive(Debug)]
pub struct Unpublished {
    name: String,
    /// Empty at first, for its maker to fill.
    pub file: File,
    /// Where it is, if the cache cannot take it.
    scratch: Option<PathBuf>,
    found: Found,
}

/// What a file in the cache has to be.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    /// Checksum of its content, hexadecimal.
    hash: String,
    /// Whether that is one for which holes are not read ([`sparse`]); of older seals it is BLAKE3 of all bytes.
    #[serde(default)]
    sparse: bool,
    stamp: Stamp,
    /// When the stamp was taken, in nanoseconds since the epoch.
    stamped: u64,
    /// The host's boot in which the stamp was taken.
    boot_id: String,
}

impl Seal {
    /// Reads the whole file but its holes. What was read is what was there before the reading began, or the stamp will differ.
    fn of(file: &File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        let hash = sparse::check(file, stamp.size)?.hash.to_hex().as_str().to_owned();
        Ok(Self { hash, sparse: true, stamp, stamped: stamp::now(), boot_id: stamp::boot_id() })
    }

    /// Whether this file has the content that was sealed, which is read for that.
    fn is_of(&self, file: &File, read: &Self) -> io::Result<bool> {
        if self.sparse {
            return Ok(read.hash == self.hash);
        }
        let mut from = file;
        from.rewind()?;
        Ok(blake3::Hasher::new().update_reader(from)?.finalize().to_hex().as_str() == self.hash)
    }

    /// `None` if there is none, as beside the files of an older Belljar.
    fn read(path: &Path) -> Result<Option<Self>, String> {
        let bytes = match bounded::read(path, MAX_SEAL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|e| format!("its seal cannot be read: {e}"))?,
        };
        let mut parts = bytes.splitn(2, |b| *b == b'\n');
        let (sum, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let seal = serde_json::from_slice(body).ok();
        match seal.filter(|_| blake3::hash(body).to_hex().as_bytes() == sum) {
            Some(seal) => Ok(Some(seal)),
            None => Err("its seal is damaged".to_owned()),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut bytes = blake3::hash(&body).to_hex().as_bytes().to_vec();
        bytes.push(b'\n');
        bytes.extend(body);
        bytes
    }
}

/// What is known of a name in the cache.
#[derive(Debug)]
enum Found {
    /// The file is as it was made.
    Whole,
    Nothing,
    /// The file has no seal.
    Unsealed,
    /// The file is not as it was made.
    Flawed(String),
}

impl Found {
    fn flaw(&self) -> Option<String> {
        if let Self::Flawed(flaw) = self { Some(flaw.clone()) } else { None }
    }
}

impl Cache {
    /// `dir` is made when it is first needed. `scratch` is a directory that exists: files land there, for this run only ([`clear_scratch`]), when
    /// `dir` cannot be written or its file system has no unnamed files.
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
        let found = match self.find_or_why(name) {
            Ok(cached) => return Ok(cached),
            Err(found) => found,
        };
        if let Ok(mut file) = self.unnamed() {
            write(&mut file, &self.path(name))?;
            if let Ok(cached) = self.seal_and_link(name, &file, &found) {
                return Ok(cached);
            }
        }
        let (mut file, path) = self.scratch_file(name)?;
        write(&mut file, &path)?;
        Ok(Cached { path, hit: false, flaw: found.flaw() })
    }

    /// The file called `name`, if it is in the cache and as it was made.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Cached> {
        self.find_or_why(name).ok()
    }

    /// An empty file, which is to be `name` in the cache when its maker has filled it ([`Cache::publish`]): for what is not written in one go, as by another
    /// program. Dropped before that, it leaves nothing behind, unless only the run's directory could take it.
    ///
    /// # Errors
    /// When neither the cache nor the run's directory can take a file.
    pub fn begin(&self, name: &str) -> Result<Unpublished, CacheError> {
        let found = self.find_or_why(name).map_or_else(|found| found, |_| Found::Whole);
        let name = name.to_owned();
        match self.unnamed() {
            Ok(file) => Ok(Unpublished { name, file, scratch: None, found }),
            Err(_) => {
                let (file, path) = self.scratch_file(&name)?;
                Ok(Unpublished { name, file, scratch: Some(path), found })
            }
        }
    }

    /// Puts a file that was [begun](Cache::begin) into the cache.
    ///
    /// # Errors
    /// When it cannot be linked or sealed there.
    pub fn publish(&self, unpublished: Unpublished) -> Result<Cached, CacheError> {
        let Unpublished { name, file, scratch, found } = unpublished;
        if let Some(path) = scratch {
            return Ok(Cached { path, hit: false, flaw: found.flaw() });
        }
        self.seal_and_link(&name, &file, &found).map_err(|source| CacheError {
            path: self.path(&name),
            what: name,
            source,
        })
    }

    fn find_or_why(&self, name: &str) -> Result<Cached, Found> {
        let path = self.path(name);
        match self.look(&format!("{PREFIX}{name}")) {
            Found::Whole => {
                // The time tells what is in use; without the right to set it the file merely goes sooner.
                if let Ok(seal) = File::open(self.seal_path(name)) {
                    let _ = seal.set_times(FileTimes::new().set_modified(SystemTime::now()));
                }
                Ok(Cached { path, hit: true, flaw: None })
            }
            found => Err(found),
        }
    }

    fn seal_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{PREFIX}{name}{SEAL}"))
    }

    fn seal_and_link(&self, name: &str, file: &File, found: &Found) -> io::Result<Cached> {
        let path = self.path(name);
        // Whoever is killed between the two leaves a seal without a file, or beside one that it does not fit.
        file.sync_data()?;
        self.put(&self.seal_path(name), &Seal::of(file)?.to_bytes())?;
        match found {
            Found::Nothing | Found::Whole => link(file, &path)?,
            Found::Unsealed | Found::Flawed(_) => self.link_over(file, &path)?,
        }
        self.clear_up();
        Ok(Cached { path, hit: false, flaw: found.flaw() })
    }

    fn scratch_file(&self, name: &str) -> Result<(File, PathBuf), CacheError> {
        let name = format!("{PREFIX}{name}");
        let path = self.scratch.join(&name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        match options.open(&path) {
            Ok(file) => Ok((file, path)),
            Err(source) => Err(CacheError { what: name, path, source }),
        }
    }

    /// Whether the file of this name can be used.
    fn look(&self, name: &str) -> Found {
        let path = self.dir.join(name);
        if !usable(&path) {
            let there = std::fs::symlink_metadata(&path);
            return if there.is_ok() { Found::Flawed("it is no file of ours".to_owned()) } else { Found::Nothing };
        }
        let seal_path = self.dir.join(format!("{name}{SEAL}"));
        let sealed = match Seal::read(&seal_path) {
            Ok(Some(seal)) => seal,
            Ok(None) => return Found::Unsealed,
            Err(flaw) => return Found::Flawed(flaw),
        };
        let unreadable = |error: io::Error| Found::Flawed(format!("it cannot be read: {error}"));
        let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed();
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        let (file, metadata) = match opened.and_then(|file| file.metadata().map(|m| (file, m))) {
            Ok(opened) => opened,
            Err(error) => return unreadable(error),
        };
        if metadata.len() != sealed.stamp.size {
            return Found::Flawed(format!("it has {} bytes instead of {}", metadata.len(), sealed.stamp.size));
        }
        let same_boot = !sealed.boot_id.is_empty() && sealed.boot_id == stamp::boot_id();
        if same_boot && sealed.stamp.holds(sealed.stamped, &metadata) {
            return Found::Whole;
        }
        match Seal::of(&file).and_then(|read| Ok((sealed.is_of(&file, &read)?, read))) {
            Ok((true, read)) => {
                // Where it cannot be written, the next one reads everything again.
                let _ = self.put(&seal_path, &read.to_bytes());
                Found::Whole
            }
            Ok((false, _)) => Found::Flawed("its checksum is wrong".to_owned()),
            Err(error) => unreadable(error),
        }
    }

    /// Where the file called `name` is, or would be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{PREFIX}{name}"))
    }

    /// Puts a small file called `name` into the cache in place of one that may be there: whole, or not at all.
    ///
    /// # Errors
    /// Where the cache cannot be written to; what was there stays then.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.put(&self.path(name), content)
    }

    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = self.unnamed()?;
        io::Write::write_all(&mut file, content)?;
        self.link_over(&file, path)
    }

    /// Gives a file without a name this one, which another file may have.
    fn link_over(&self, file: &File, path: &Path) -> io::Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = self.dir.join(format!("{PREFIX}new-{}-{number}", std::process::id()));
        // Of a process with our number that was killed at this very point.
        let _ = std::fs::remove_file(&new);
        link(file, &new)?;
        // A rename replaces anything but a directory.
        if std::fs::symlink_metadata(path).is_ok_and(|there| there.is_dir()) {
            let _ = std::fs::remove_dir_all(path);
        }
        std::fs::rename(&new, path).inspect_err(|_| drop(std::fs::remove_file(&new)))
    }

    fn unnamed(&self) -> io::Result<File> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        unnamed_file(&self.dir, OFlags::empty())
    }

    /// Removes what nobody used for [`KEEP`]. A failure here is nobody's concern: the next run tries again.
    fn clear_up(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let age = |path: &Path| std::fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok();
        for entry in entries.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if !name.starts_with(PREFIX) {
                continue;
            }
            if let Some(sealed) = name.strip_suffix(SEAL)
                && usable(&self.dir.join(sealed))
            {
                continue;
            }
            let seal = self.dir.join(format!("{name}{SEAL}"));
            if age(&seal).or_else(|| age(&path)).is_some_and(|age| age > KEEP) {
                let _ = std::fs::remove_file(path);
                let _ = std::fs::remove_file(seal);
            }
        }
    }
}

/// Removes from a run's directory what no cache could take, once nobody needs it. What cannot be removed stays.
pub fn clear_scratch(scratch: &Path) {
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = std::fs::remove_file(entry.path());
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
pub fn short(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

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
        assert_eq!(put(&cache, "x").unwrap(), Cached { path: first.path, hit: true, flaw: None });
        assert_eq!(names(&dir.path().join("a/b")), ["belljar-x", "belljar-x.seal"]);
        assert_eq!(names(&dir.path().join("run")), [""; 0]);
    }

    #[test]
    fn what_another_program_writes_is_published_when_it_is_whole() {
        let (dir, cache) = cache();
        assert!(cache.find("x").is_none());
        let begun = cache.begin("x").unwrap();
        (&begun.file).write_all(b"half").unwrap();
        drop(begun);
        assert_eq!(names(&dir.path().join("a/b")), [""; 0], "what was given up leaves nothing");
        let begun = cache.begin("x").unwrap();
        (&begun.file).write_all(b"x").unwrap();
        assert!(cache.find("x").is_none());
        let made = cache.publish(begun).unwrap();
        assert_eq!((made.hit, std::fs::read(&made.path).unwrap()), (false, b"x".to_vec()));
        assert_eq!(cache.find("x"), Some(Cached { hit: true, ..made.clone() }));
        std::fs::write(&made.path, "y").unwrap();
        let begun = cache.begin("x").unwrap();
        (&begun.file).write_all(b"x").unwrap();
        assert_eq!(cache.publish(begun).unwrap().flaw.as_deref(), Some("its checksum is wrong"));
        // Where the cache takes nothing, the run's directory does.
        let cache = Cache::new("/proc/none", dir.path().join("run"));
        let begun = cache.begin("x").unwrap();
        assert_eq!(cache.publish(begun).unwrap().path, dir.path().join("run/belljar-x"));
    }

    /// What can become of the file `x` in the cache, and what is said of it then.
    #[test]
    fn what_is_not_as_it_was_made_is_made_anew() {
        use std::os::unix::fs::FileExt;

        type Damage = fn(&File, &Path);
        let cases: [(Damage, &str); 6] = [
            (|file, _| file.write_all_at(b"y", 0).unwrap(), "its checksum is wrong"),
            (|file, _| file.set_len(0).unwrap(), "it has 0 bytes instead of 1"),
            (|file, _| file.set_len(2).unwrap(), "it has 2 bytes instead of 1"),
            (|_, path| std::fs::write(format!("{}.seal", path.display()), "none").unwrap(), "its seal is damaged"),
            (
                |_, path| {
                    let seal = format!("{}.seal", path.display());
                    let text = std::fs::read_to_string(&seal).unwrap().replace("\"size\":1", "\"size\":2");
                    std::fs::write(seal, text).unwrap();
                },
                "its seal is damaged",
            ),
            (
                |_, path| {
                    std::fs::remove_file(path).unwrap();
                    std::fs::write(path, "z").unwrap();
                },
                "its checksum is wrong",
            ),
        ];
        for (damage, why) in cases {
            let (dir, cache) = cache();
            let path = put(&cache, "x").unwrap().path;
            assert!(put(&cache, "x").unwrap().hit);
            // With the times as they were, as a fault of the disk leaves them.
            let times = std::fs::metadata(&path).unwrap().modified().unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            damage(&file, &path);
            file.set_modified(times).unwrap();
            let mended = put(&cache, "x").unwrap();
            assert_eq!(mended, Cached { path: path.clone(), hit: false, flaw: Some(why.to_owned()) });
            assert_eq!(std::fs::read(&path).unwrap(), b"x");
            assert!(put(&cache, "x").unwrap().hit, "{why}");
            assert_eq!(names(&dir.path().join("a/b")), ["belljar-x", "belljar-x.seal"]);
        }
    }

    #[test]
    fn what_is_no_file_any_more_is_made_anew() {
        for name in ["belljar-x", "belljar-x.seal"] {
            for what in ["a directory", "a link", "a FIFO"] {
                let (dir, cache) = cache();
                put(&cache, "x").unwrap();
                let path = dir.path().join("a/b").join(name);
                std::fs::rename(&path, dir.path().join("moved")).unwrap();
                match what {
                    "a directory" => std::fs::create_dir_all(path.join("y/z")).unwrap(),
                    "a link" => std::os::unix::fs::symlink("../nowhere", &path).unwrap(),
                    _ => rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap(),
                }
                let mended = put(&cache, "x").unwrap();
                assert_eq!(std::fs::read(&mended.path).unwrap(), b"x", "{name} is {what}");
                assert_eq!(mended.path, dir.path().join("a/b/belljar-x"), "{name} is {what}");
                assert!(put(&cache, "x").unwrap().hit, "{name} is {what}");
            }
        }
    }

    #[test]
    fn what_holds_is_not_read_and_what_may_not_hold_is() {
        let (dir, cache) = cache();
        put(&cache, "x").unwrap();
        let path = dir.path().join("a/b/belljar-x.seal");
        let file = File::open(dir.path().join("a/b/belljar-x")).unwrap();
        let sealed = |change: &dyn Fn(&mut Seal)| {
            // As if the stamp had been taken later.
            let mut seal = Seal { stamped: stamp::now() + 1_000_000_000, ..Seal::of(&file).unwrap() };
            change(&mut seal);
            cache.put(&path, &seal.to_bytes()).unwrap();
            matches!(cache.look("belljar-x"), Found::Whole)
        };
        assert!(sealed(&|seal: &mut Seal| seal.hash = "not read".into()));
        assert!(
            !sealed(&|seal: &mut Seal| (seal.hash, seal.boot_id) = ("read".into(), String::new())),
            "nobody knows which boot"
        );
        assert!(
            !sealed(&|seal: &mut Seal| (seal.hash, seal.boot_id) = ("read".into(), "another".into())),
            "after a reboot"
        );
        assert!(
            !sealed(&|seal: &mut Seal| (seal.hash, seal.stamped) = ("read".into(), 0)),
            "a stamp as old as the change"
        );
        let older = |seal: &mut Seal, content: &[u8]| {
            let hash = blake3::hash(content).to_hex().as_str().to_owned();
            (seal.hash, seal.sparse, seal.boot_id) = (hash, false, "another".into());
        };
        assert!(sealed(&|seal: &mut Seal| older(seal, b"x")), "the seal of an older Belljar");
        assert!(!sealed(&|seal: &mut Seal| older(seal, b"y")));
    }

    #[test]
    fn holes_are_not_read() {
        let (_dir, cache) = cache();
        let begun = cache.begin("x").unwrap();
        // Hours, if they were.
        begun.file.set_len(8 << 40).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&begun.file, b"x", 5 << 40).unwrap();
        let path = cache.publish(begun).unwrap().path;
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(cache.find("x").is_some(), "read anew");
        std::os::unix::fs::FileExt::write_all_at(&file, b"y", 6 << 40).unwrap();
        assert!(cache.find("x").is_none());
    }

    #[test]
    fn what_has_no_seal_is_made_anew() {
        let (dir, cache) = cache();
        let path = put(&cache, "x").unwrap().path;
        std::fs::write(&path, "from elsewhere").unwrap();
        std::fs::remove_file(dir.path().join("a/b/belljar-x.seal")).unwrap();
        assert_eq!(put(&cache, "x").unwrap(), Cached { path: path.clone(), hit: false, flaw: None });
        assert_eq!(std::fs::read(path).unwrap(), b"x");
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
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("a/b/belljar-x")).unwrap();
        let made = put(&cache, "x").unwrap();
        assert!(!made.hit && made.flaw.is_some(), "{made:?}");
        assert!(std::fs::symlink_metadata(&made.path).unwrap().is_file());
        assert_eq!(
            (std::fs::read(made.path).unwrap(), std::fs::read(elsewhere).unwrap()),
            (b"x".into(), b"theirs".into())
        );
    }

    #[test]
    fn what_nobody_used_goes_and_what_is_not_ours_stays() {
        let (dir, cache) = cache();
        let old = put(&cache, "old").unwrap().path;
        let foreign = dir.path().join("a/b/foreign");
        std::fs::write(&foreign, "").unwrap();
        let past = SystemTime::now() - KEEP - Duration::from_secs(60);
        let lone = dir.path().join("a/b/belljar-lone.seal");
        std::fs::write(&lone, "").unwrap();
        let age = |file: &Path| File::options().write(true).open(file).unwrap().set_modified(past).unwrap();
        for file in [&old, &foreign, &lone] {
            age(file);
        }
        put(&cache, "new").unwrap();
        let both = ["belljar-new", "belljar-new.seal", "belljar-old", "belljar-old.seal", "foreign"];
        assert_eq!(names(&dir.path().join("a/b")), both, "the seal says when it was used");
        age(&dir.path().join("a/b/belljar-old.seal"));
        put(&cache, "newer").unwrap();
        let left = ["belljar-new", "belljar-new.seal", "belljar-newer", "belljar-newer.seal", "foreign"];
        assert_eq!(names(&dir.path().join("a/b")), left);
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
