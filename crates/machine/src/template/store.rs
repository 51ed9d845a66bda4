//! Where templates are kept, in such a way that any number of processes can use, make and drop them at the same time.
//!
//! ```text
//! KEY/           a template: manifest, ram, state, disk0…; the time of `used` says when it was used last, the size of `failed` how
//!                many copies failed since one did not, and `note-…` what cannot be done with it
//! KEY.making/    one that is being made, as long as `lock` in it is locked; `lock` says which guest and by whom
//! dropped-…/     one that is being removed
//! ```
//!
//! A template appears by a rename and goes by a rename. Whoever uses one holds its files open, so that it may go meanwhile. The lock is
//! held by the process that makes the template and ends with it; what is left of a maker that was killed has a lock that nobody holds,
//! and is cleared away by the next start of Belljar ([`TemplateStore::sweep`]).

use std::{
    fs::{self, DirBuilder, File, FileTimes},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use belljar_image::open_without_waiting;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{
    Template,
    key::TemplateKey,
    manifest::{FORMAT, Flaw, Frozen, Manifest, Part, boot_id, now},
};

const MANIFEST: &str = "manifest";
const LOCK: &str = "lock";
const USED: &str = "used";
const FAILED: &str = "failed";
const MAKING: &str = ".making";
const DROPPED: &str = "dropped-";
/// What is said in a lock is no longer, in bytes.
const MAX_ANNOUNCED: u64 = 16 << 10;
/// So long is believed what was noted of a template: it may have been the host's doing.
const NOTE_HOLDS: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of it.
const MAX_NOTE: u64 = 4 << 10;

/// Where templates are kept.
#[derive(Clone, Debug)]
pub struct TemplateStore {
    dir: PathBuf,
    limit: u64,
}

/// One template, for a person.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its key.
    pub key: TemplateKey,
    /// Which guest it is; none if that cannot be told any more.
    pub guest: Option<String>,
    /// The template that it was made of, which may be gone by now.
    pub base: Option<TemplateKey>,
    /// Bytes that it takes on the disk.
    pub size: u64,
    /// When it was made.
    pub made: Option<SystemTime>,
    /// When it was used last.
    pub used: SystemTime,
}

/// A template that is being made, for a person.
#[derive(Clone, Debug)]
pub struct BeingMade {
    /// Its key.
    pub key: TemplateKey,
    /// Which guest it will be; none if its maker has not said so yet.
    pub guest: Option<String>,
    /// Process id of its maker.
    pub maker: Option<u32>,
    /// Since when.
    pub since: Option<SystemTime>,
    /// Bytes that it takes on the disk so far.
    pub size: u64,
}

/// What a maker says in its lock.
#[derive(Debug, Serialize, Deserialize)]
struct Announced {
    guest: String,
    maker: u32,
    /// Seconds since the epoch.
    since: u64,
}

/// The right to make a template, which nobody else has meanwhile. Dropping it removes what was made so far.
#[derive(Debug)]
pub(crate) struct Making {
    store: TemplateStore,
    key: TemplateKey,
    dir: PathBuf,
    lock: Option<File>,
}

/// What came of asking for the right to make a template.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is ours.
    Ours(Making),
    /// Somebody else made the template meanwhile.
    Made,
    /// Somebody else is making it.
    Taken,
}

/// What is known of a guest that was frozen.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) guest: String,
    pub(crate) base: Option<TemplateKey>,
    pub(crate) qemu: String,
    pub(crate) boot_millis: u64,
    pub(crate) session: Frozen,
}

impl TemplateStore {
    /// `dir` is made when it is needed; the least recently used templates go when all take more than `limit` bytes.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, limit: u64) -> Self {
        Self { dir: dir.into(), limit }
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The most bytes that all of them may take.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    fn path(&self, key: &TemplateKey) -> PathBuf {
        self.dir.join(key.as_str())
    }

    /// Opens a template and sees to it that it is as it was made. One that is not is removed, and the flaw told; one that the host cannot
    /// look at now stays.
    pub(crate) fn find(&self, key: &TemplateKey) -> Result<Option<Template>, Flaw> {
        let dir = self.path(key);
        if !fs::symlink_metadata(&dir).is_ok_and(|m| m.is_dir() && is_ours(&m)) {
            return Ok(None);
        }
        match open(&dir, key) {
            Ok(template) => {
                touch(&dir.join(USED));
                Ok(Some(template))
            }
            // Another process dropped it this very moment.
            Err(_) if fs::symlink_metadata(&dir).is_err() => Ok(None),
            Err(flaw) => {
                if !flaw.is_the_hosts() {
                    self.remove(key);
                }
                Err(flaw)
            }
        }
    }

    /// Removes a template; those who use it go on.
    pub fn remove(&self, key: &TemplateKey) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!("{DROPPED}{}-{number}-{}", std::process::id(), now()));
        if fs::rename(self.path(key), &aside).is_ok() {
            // What cannot be removed now is tried again with the next clearing-up.
            let _ = fs::remove_dir_all(&aside);
        }
    }

    /// Remembers that a copy failed for no known reason; gives how often that was so since one did not.
    pub(crate) fn count_failure(&self, key: &TemplateKey) -> usize {
        // Where it cannot be written it is the first time each time.
        let counted = new_file(&self.path(key).join(FAILED), false).and_then(|file| {
            let count = file.metadata()?.len() + 1;
            file.set_len(count).map(|()| count)
        });
        counted.ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(1)
    }

    /// Remembers that a copy went on.
    pub(crate) fn forget_failures(&self, key: &TemplateKey) {
        let _ = fs::remove_file(self.path(key).join(FAILED));
    }

    /// Remembers of a template what cannot be done with it, under a name of lower-case letters and spaces. It is forgotten after a while, and
    /// with the template.
    pub(crate) fn note(&self, key: &TemplateKey, name: &str, why: &str) {
        // Where it cannot be written, it is tried again.
        drop(fs::write(self.path(key).join(note_name(name)), why));
    }

    /// What was remembered.
    pub(crate) fn noted(&self, key: &TemplateKey, name: &str) -> Option<String> {
        let file = open_part(&self.path(key), &note_name(name)).ok()?;
        let age = file.metadata().and_then(|m| m.modified()).ok()?.elapsed().unwrap_or_default();
        let mut text = String::new();
        file.take(MAX_NOTE).read_to_string(&mut text).ok()?;
        (age < NOTE_HOLDS && !text.is_empty()).then_some(text)
    }

    /// Asks for the right to make a template. With `wait` it is waited for until nobody else has it.
    pub(crate) fn claim(&self, key: &TemplateKey, wait: bool) -> io::Result<Claim> {
        let dir = self.dir.join(format!("{key}{MAKING}"));
        loop {
            if self.path(key).exists() {
                return Ok(Claim::Made);
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let path = dir.join(LOCK);
            let lock = match new_file(&path, false) {
                Ok(lock) => lock,
                // The maker before us took the directory away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if wait {
                lock.lock()?;
            } else if let Err(error) = lock.try_lock() {
                return match error {
                    fs::TryLockError::WouldBlock => Ok(Claim::Taken),
                    fs::TryLockError::Error(error) => Err(error),
                };
            }
            // Whoever had it before may have renamed or removed the directory: then this lock is of no use.
            if !is_same(&path, &lock) {
                continue;
            }
            let making = Making { store: self.clone(), key: key.clone(), dir: dir.clone(), lock: Some(lock) };
            if self.path(key).exists() {
                return Ok(Claim::Made);
            }
            clear(&dir)?;
            return Ok(Claim::Ours(making));
        }
    }

    /// All templates, most recently used first.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn list(&self) -> io::Result<Vec<Kept>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut kept = Vec::new();
        for entry in entries.flatten() {
            let Some(key) = entry.file_name().to_str().and_then(TemplateKey::parse) else { continue };
            let dir = entry.path();
            let manifest =
                open_without_waiting(&dir.join(MANIFEST)).ok().and_then(|f| Manifest::read(&f, key.as_str()).ok());
            let time = |name: &str| fs::metadata(dir.join(name)).and_then(|m| m.modified()).ok();
            kept.push(Kept {
                size: size_of(&dir),
                made: manifest.as_ref().map(|m| SystemTime::UNIX_EPOCH + Duration::from_secs(m.made)),
                base: manifest.as_ref().and_then(|m| TemplateKey::parse(m.base.as_ref()?)),
                guest: manifest.map(|m| m.guest),
                used: time(USED).or_else(|| time(MANIFEST)).unwrap_or(SystemTime::UNIX_EPOCH),
                key,
            });
        }
        kept.sort_by_key(|k| std::cmp::Reverse(k.used));
        Ok(kept)
    }

    /// Removes the least recently used templates until all take no more than `limit` bytes, and what killed makers left.
    /// Gives those that were removed.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn prune(&self, limit: u64) -> io::Result<Vec<Kept>> {
        self.prune_but(None, limit)
    }

    fn prune_but(&self, spare: Option<&TemplateKey>, limit: u64) -> io::Result<Vec<Kept>> {
        self.sweep();
        let mut total: u64 = 0;
        let mut removed = Vec::new();
        for kept in self.list()? {
            total = total.saturating_add(kept.size);
            if total > limit && spare != Some(&kept.key) {
                self.remove(&kept.key);
                total -= kept.size;
                removed.push(kept);
            }
        }
        Ok(removed)
    }

    /// Removes what nobody is at work on any more. Costs a look at one directory where there is nothing to do.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(DROPPED) {
                let _ = fs::remove_dir_all(entry.path());
            } else if name.strip_suffix(MAKING).and_then(TemplateKey::parse).is_some() {
                remove_if_abandoned(&entry.path());
            }
        }
    }

    /// The templates that are being made now, by whichever process.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn being_made(&self) -> io::Result<Vec<BeingMade>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut making = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(key) = name.to_str().and_then(|n| n.strip_suffix(MAKING)).and_then(TemplateKey::parse) else {
                continue;
            };
            let dir = entry.path();
            let Ok(lock) = open_without_waiting(&dir.join(LOCK)) else { continue };
            // Shared: whoever looks at the same time is not taken for a maker.
            if !matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)) {
                continue;
            }
            let mut text = String::new();
            let said = lock.take(MAX_ANNOUNCED).read_to_string(&mut text).ok();
            let said: Option<Announced> = said.and_then(|_| serde_json::from_str(&text).ok());
            let since = said.as_ref().map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s.since));
            let (maker, size) = (said.as_ref().map(|s| s.maker), size_of(&dir));
            making.push(BeingMade { key, guest: said.map(|s| s.guest), maker, since, size });
        }
        making.sort_by_key(|m| m.since);
        Ok(making)
    }
}

/// Removes what a maker left, unless somebody is at work on it.
fn remove_if_abandoned(dir: &Path) {
    let path = dir.join(LOCK);
    match open_without_waiting(&path) {
        Ok(lock) => {
            if lock.try_lock().is_ok() && is_same(&path, &lock) {
                // While the lock is held: whoever waits for it sees that its file is gone.
                let _ = fs::remove_dir_all(dir);
            }
        }
        // Killed before there was one, or about to make it: then it begins anew.
        Err(_) => drop(fs::remove_dir(dir)),
    }
}

impl Making {
    /// Where the template's files are made.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says whose template is being made, for those who ask meanwhile.
    pub(crate) fn announce(&self, guest: &str) {
        let said = Announced { guest: guest.to_owned(), maker: std::process::id(), since: now() / 1_000_000_000 };
        let text = serde_json::to_vec(&said).unwrap_or_default();
        if let Some(lock) = &self.lock {
            // A courtesy: the lock itself is what counts.
            let _ = lock.set_len(0).and_then(|()| lock.write_all_at(&text, 0));
        }
    }

    /// Removes what was made so far, for another try.
    pub(crate) fn clear(&self) -> io::Result<()> {
        clear(&self.dir)
    }

    /// A new file of the template.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        new_file(&self.dir.join(name), true)
    }

    /// A new file for the volume of this number.
    pub(crate) fn create_volume(&self, number: usize) -> io::Result<File> {
        self.create(&format!("{VOLUME}{number}"))
    }

    /// Makes the template known. The memory's checksum was taken when it was copied.
    pub(crate) fn publish(mut self, facts: Facts, ram: blake3::Hash) -> io::Result<Template> {
        let mut names: Vec<String> = fs::read_dir(&self.dir)?
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| name == RAM || name == STATE || name.starts_with(VOLUME))
            .collect();
        names.sort();
        let mut parts = Vec::new();
        for name in &names {
            let file = open_part(&self.dir, name)?;
            parts.push(Part::of(name, &file, (name == RAM).then_some(ram))?);
        }
        let manifest = Manifest {
            format: FORMAT,
            key: self.key.as_str().to_owned(),
            guest: facts.guest,
            base: facts.base.map(|key| key.as_str().to_owned()),
            qemu: facts.qemu,
            made: now() / 1_000_000_000,
            boot_millis: facts.boot_millis,
            session: facts.session,
            parts,
            boot_id: boot_id(),
        };
        write_manifest(&self.dir, &manifest)?;
        touch(&self.dir.join(USED));
        let template = open_parts(&self.dir, manifest)?;
        fs::rename(&self.dir, self.store.path(&self.key))?;
        // The lock's file went along.
        self.lock = None;
        let _ = self.store.prune_but(Some(&self.key), self.store.limit);
        Ok(template)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // While the lock is held: whoever waits for it sees that its file is gone.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes all but the lock.
fn clear(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten().filter(|e| e.file_name() != LOCK) {
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

/// Names of a template's parts; those of volumes have a number behind them.
pub(super) const RAM: &str = "ram";
pub(super) const STATE: &str = "state";
pub(super) const VOLUME: &str = "disk";

fn open(dir: &Path, key: &TemplateKey) -> Result<Template, Flaw> {
    let read = |part: &str| {
        let part = part.to_owned();
        move |source| Flaw::Read { part, source }
    };
    let file = open_part(dir, MANIFEST).map_err(read("the manifest"))?;
    let mut manifest = Manifest::read(&file, key.as_str())?;
    let boot = boot_id();
    let rebooted = boot.is_empty() || manifest.boot_id != boot;
    let mut fresh = false;
    for part in &mut manifest.parts {
        let file = open_part(dir, &part.name).map_err(read(&part.name))?;
        // The device's state is small and read whole by each clone.
        if let Some(restamped) = part.verify(&file, rebooted || part.name == STATE)? {
            fresh |= restamped.stamp != part.stamp || part.name != STATE;
            *part = restamped;
        }
    }
    if fresh || rebooted {
        manifest.boot_id = boot;
        // Where it cannot be written, the next one reads everything again.
        let _ = write_manifest(dir, &manifest);
    }
    open_parts(dir, manifest).map_err(read("a part"))
}

fn open_parts(dir: &Path, manifest: Manifest) -> io::Result<Template> {
    let mut volumes = Vec::new();
    while manifest.parts.iter().any(|p| p.name == format!("{VOLUME}{}", volumes.len())) {
        volumes.push(open_part(dir, &format!("{VOLUME}{}", volumes.len()))?);
    }
    let template = Template { ram: open_part(dir, RAM)?, state: open_part(dir, STATE)?, volumes, manifest };
    if template.is_unchanged() { Ok(template) } else { Err(io::Error::other("it changed while it was opened")) }
}

fn open_part(dir: &Path, name: &str) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let file = File::options().read(true).custom_flags(flags.cast_signed()).open(dir.join(name))?;
    let metadata = file.metadata()?;
    if metadata.is_file() && is_ours(&metadata) { Ok(file) } else { Err(io::Error::other("it is not a file of ours")) }
}

/// A file that only we can read: a guest's memory may hold secrets.
fn new_file(path: &Path, fresh: bool) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
    let mut options = File::options();
    options.read(true).write(true).mode(0o600).custom_flags(flags.cast_signed());
    if fresh {
        options.create_new(true)
    } else {
        options.create(true).truncate(false)
    };
    options.open(path)
}

fn note_name(name: &str) -> String {
    format!("note-{}", name.replace(' ', "-"))
}

/// Whole, or not at all.
fn write_manifest(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let new = dir.join(format!("{MANIFEST}.{}", std::process::id()));
    let _ = fs::remove_file(&new);
    io::Write::write_all(&mut new_file(&new, true)?, &manifest.write())?;
    fs::rename(&new, dir.join(MANIFEST))
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw()
}

fn is_same(path: &Path, file: &File) -> bool {
    let of = |m: fs::Metadata| (m.dev(), m.ino());
    fs::symlink_metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|here| of(here) == of(there)))
}

/// The time tells what is in use; where it cannot be set, a template merely goes sooner.
fn touch(path: &Path) {
    let now = FileTimes::new().set_modified(SystemTime::now());
    let _ = new_file(path, false).and_then(|file| file.set_times(now));
}

fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.blocks() * 512).sum()
}
