//! The directory of a run: its logs and, unless the user wants it elsewhere, its output directory.

use std::{
    io,
    path::{Path, PathBuf},
};

use belljar_machine::tree;
use belljar_model::RunId;
use fs_err as fs;
use jiff::Timestamp;

/// The event log.
pub const EVENTS: &str = "events.jsonl";
/// Everything that came over the serial console, as it came.
pub const CONSOLE: &str = "console.log";
/// What QEMU itself said.
pub const QEMU_LOG: &str = "qemu.log";
/// The command that started QEMU.
pub const QEMU_COMMAND: &str = "qemu.cmd";
/// The output directory.
pub const OUT: &str = "out";
/// Locked while the run goes on, so that nobody clears it away.
const LOCK: &str = "lock";

/// A run's directory, kept from being cleared away for as long as this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    id: RunId,
    _lock: fs::File,
}

impl RunDir {
    /// Makes a new directory under `parent`, and clears away the oldest ended runs there beyond `keep`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(parent: &Path, keep: usize) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        prune(parent, keep);
        let now = Timestamp::now();
        loop {
            let random = getrandom::u32().map_err(io::Error::other)?;
            let id = RunId::new(now, random);
            let path = parent.join(id.as_str());
            match fs::create_dir(&path) {
                Ok(()) => return Self::claim(path, id),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Uses the directory that the user named, which must be empty or not there yet.
    ///
    /// # Errors
    /// If it cannot be made, or holds something already.
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        if fs::read_dir(path)?.next().is_some() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} is not empty, and the logs of a run are never written over", path.display()),
            ));
        }
        let random = getrandom::u32().map_err(io::Error::other)?;
        Self::claim(fs::canonicalize(path)?, RunId::new(Timestamp::now(), random))
    }

    fn claim(path: PathBuf, id: RunId) -> io::Result<Self> {
        let lock = fs::File::create(path.join(LOCK))?;
        lock.file().try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                io::Error::other("another run has just taken it for its own directory")
            }
            std::fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self { path, id, _lock: lock })
    }

    /// The run's id.
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Removes the oldest ended runs until `keep` are left. Failing to is no reason not to run.
fn prune(parent: &Path, keep: usize) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let mut runs: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && e.path().join(LOCK).is_file())
        .map(|e| e.path())
        .collect();
    runs.sort();
    let surplus = runs.len().saturating_sub(keep);
    for run in runs.into_iter().take(surplus) {
        let ended = fs::File::open(run.join(LOCK)).is_ok_and(|lock| lock.file().try_lock().is_ok());
        if ended {
            drop(tree::remove(&run));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ended_runs_are_cleared_away() {
        let parent = tempfile::tempdir().unwrap();
        let ended = RunDir::create(parent.path(), 10).unwrap().path().to_owned();
        let going = RunDir::create(parent.path(), 10).unwrap();
        fs::create_dir(parent.path().join("somebody-elses")).unwrap();
        let newest = RunDir::create(parent.path(), 0).unwrap();
        assert!(!ended.exists());
        assert!(going.path().exists() && newest.path().exists());
        assert!(parent.path().join("somebody-elses").exists());
    }

    #[test]
    fn what_a_guest_left_as_deep_as_it_could_is_cleared_away() {
        let parent = tempfile::tempdir().unwrap();
        let ended = RunDir::create(parent.path(), 10).unwrap().file(OUT);
        fs::create_dir(&ended).unwrap();
        let mut at = tree::open_to_read(&ended).unwrap();
        for _ in 0..2500 {
            rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        }
        drop(at);
        let newest = RunDir::create(parent.path(), 0).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert!(newest.path().exists());
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        drop(RunDir::at(&path).unwrap());
        let error = RunDir::at(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("not empty"), "{error}");
    }
}
