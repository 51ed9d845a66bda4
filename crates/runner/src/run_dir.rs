//! The directory of a run: its logs and, unless the user wants it elsewhere, its output directory.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use belljar_machine::{PASSWORD_PROGRAM, backend, tree};
use belljar_model::RunId;
use fs_err as fs;
use jiff::Timestamp;
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::beneath;

/// The event log.
pub const EVENTS: &str = "events.jsonl";
/// The output directory.
pub const OUT: &str = "out";
/// The directory with those of guests.
const GUESTS: &str = "guests";
/// Where the files of a guest are while it runs, relative to the run's directory.
pub(crate) fn of_guest(instance: u64) -> String {
    format!("{GUESTS}/{instance}")
}

/// Locked while the run goes on, so that nobody clears it away.
const LOCK: &str = "lock";

/// A directory that guests can write to while the run goes on.
#[derive(Debug)]
struct Goal {
    /// As it was named, absolute.
    shown: PathBuf,
    /// The directory that guests get.
    shared: OwnedFd,
    /// Where it is in there.
    inside: PathBuf,
}

/// A run's directory, kept from being cleared away for as long as this lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    dir: OwnedFd,
    /// Where it goes when the run has ended, if that is elsewhere.
    goal: Option<Goal>,
    id: RunId,
    scratch: Scratch,
    _lock: fs::File,
}

/// What guests of the run needed that no cache could take. It goes with the run's last guest, or with this.
#[derive(Debug)]
struct Scratch(Option<PathBuf>);

impl Scratch {
    fn clear(&mut self) {
        if let Some(dir) = self.0.take() {
            backend::clear(&dir);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
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

    /// Uses the directory that the user named though it lies in one that guests can write to: while they run, the run's record is kept under
    /// `parent`, out of their reach. [`RunDir::deliver`] moves it.
    ///
    /// # Errors
    /// As [`RunDir::at`] and [`RunDir::create`].
    pub fn aside(path: &Path, shared: &Path, parent: &Path, keep: usize) -> io::Result<Self> {
        // What can be said against the directory is said before anything runs.
        let named = Self::at(path)?;
        let shared = fs::canonicalize(shared)?;
        let inside = named.path.strip_prefix(&shared).map_err(io::Error::other)?.to_owned();
        fs::remove_file(named.path.join(LOCK))?;
        let goal = Goal { shown: std::path::absolute(path)?, shared: beneath::directory(&shared)?, inside };
        Ok(Self { goal: Some(goal), ..Self::create(parent, keep)? })
    }

    /// Keeps an ended run from being cleared away for as long as the file lives; `None` where nobody would clear it away.
    #[must_use]
    pub fn hold(run: &Path) -> Option<fs::File> {
        let lock = fs::File::open(run.join(LOCK)).ok()?;
        lock.file().try_lock_shared().ok()?;
        Some(lock)
    }

    /// Whether a path lies in a directory, or is it, whether it is there already or not.
    #[must_use]
    pub fn lies_in(path: &Path, dir: &Path) -> bool {
        let Ok(path) = std::path::absolute(path) else { return false };
        let Ok(dir) = fs::canonicalize(dir) else { return false };
        // What is not there yet will be a directory and no link, also where the path leads out of it again.
        let mut real = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    real.push(name);
                    if let Ok(there) = fs::canonicalize(&real) {
                        real = there;
                    }
                }
                Component::ParentDir => drop(real.pop()),
                _ => {}
            }
        }
        real.starts_with(dir)
    }

    /// Where the run's files are when it has ended.
    #[must_use]
    pub fn shown(&self) -> &Path {
        self.goal.as_ref().map_or(&self.path, |goal| &goal.shown)
    }

    /// Leaves what guests need that no cache could take: somebody else is to start them.
    pub fn keep_scratch(&mut self) {
        self.scratch.0 = None;
    }

    /// Moves the record to where the user wants it, when no guest runs any more. Nothing is followed or written over there that a guest may
    /// have left.
    ///
    /// # Errors
    /// If it cannot be moved; what could not stays where it is, and the message says where.
    pub fn deliver(&mut self) -> io::Result<()> {
        let Some(goal) = self.goal.take() else { return Ok(()) };
        self.scratch.clear();
        let moved = self.deliver_to(&goal).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "cannot move the run's record to {}, which the guest could write to: {error}\nit is in {}",
                    goal.shown.display(),
                    self.path.display()
                ),
            )
        });
        match moved {
            Ok(()) => {
                // Nothing but the lock is left.
                let _ = fs::remove_dir_all(&self.path);
                Ok(())
            }
            Err(error) => {
                self.goal = Some(goal);
                Err(error)
            }
        }
    }

    fn deliver_to(&self, goal: &Goal) -> io::Result<()> {
        let dir = beneath::walk(&goal.shared, &goal.inside, true)?;
        for entry in rustix::fs::Dir::read_from(&dir)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Err(io::Error::other("it is not empty: something in a guest wrote there"));
            }
        }
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if name != LOCK {
                beneath::transfer(&self.dir, &dir, &name)?;
            }
        }
        let (own, found) = (rustix::fs::fstat(&dir)?, rustix::fs::stat(&goal.shown));
        if !found.is_ok_and(|found| (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)) {
            return Err(io::Error::other(
                "it was moved there, but the name leads elsewhere by now: something in a guest changed a directory on the way",
            ));
        }
        Ok(())
    }

    fn claim(path: PathBuf, id: RunId) -> io::Result<Self> {
        let dir = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // Whoever a test runs as may write to its output directory, but nobody else of this host's.
        rustix::fs::fchmod(&dir, Mode::RWXU).map_err(|e| {
            io::Error::new(e.kind(), format!("it cannot be closed to other users: {}", io::Error::from(e)))
        })?;
        let lock = fs::File::create(path.join(LOCK))?;
        lock.file().try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                io::Error::other("another run has just taken it for its own directory")
            }
            std::fs::TryLockError::Error(error) => error,
        })?;
        let scratch = Scratch(Some(path.clone()));
        Ok(Self { path, dir, goal: None, id, scratch, _lock: lock })
    }

    /// Opens a file of it to be read, wherever its path leads by now.
    ///
    /// # Errors
    /// If it is not there, or a link is.
    pub fn open(&self, name: &str) -> io::Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?.into())
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
    for (at, run) in runs.into_iter().enumerate() {
        let ended = fs::File::open(run.join(LOCK)).is_ok_and(|lock| lock.file().try_lock().is_ok());
        if ended && at < surplus {
            drop(tree::remove(&run));
        } else if ended {
            sweep(&run);
        }
    }
}

/// Removes from the directory of an ended run what a killed Belljar left there beside its logs. No link is followed.
fn sweep(run: &Path) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(run, flags, Mode::empty()) else { return };
    let remove = |dir: &OwnedFd| {
        let _ = rustix::fs::unlinkat(dir, PASSWORD_PROGRAM, AtFlags::empty());
    };
    remove(&dir);
    let Ok(guests) = rustix::fs::openat(&dir, GUESTS, flags, Mode::empty()) else { return };
    let Ok(entries) = rustix::fs::Dir::read_from(&guests) else { return };
    for entry in entries.filter_map(Result::ok) {
        if let Ok(guest) = rustix::fs::openat(&guests, entry.file_name(), flags, Mode::empty()) {
            remove(&guest);
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
    fn what_a_killed_run_left_for_ssh_is_cleared_away() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = parent.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let program = |dir: &Path| {
            fs::create_dir_all(dir).unwrap();
            let path = dir.join(PASSWORD_PROGRAM);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            path
        };
        let of = |run: &RunDir| [program(run.path()), program(&run.file(&of_guest(3)))];
        let ended = RunDir::create(parent.path(), 10).unwrap();
        let (left, kept) = (of(&ended), ended.file(EVENTS));
        fs::write(&kept, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, ended.file("guests/link")).unwrap();
        let others = program(&elsewhere);
        drop(ended);
        let going = RunDir::create(parent.path(), 10).unwrap();
        let needed = of(&going);
        let _newest = RunDir::create(parent.path(), 10).unwrap();
        assert!(left.iter().all(|path| !path.exists()) && kept.exists());
        assert!(needed.iter().all(|path| path.exists()) && others.exists(), "of a run that goes on, and behind a link");
    }

    #[test]
    fn what_a_guest_left_as_deep_as_it_could_is_cleared_away() {
        let parent = tempfile::tempdir().unwrap();
        let ended = RunDir::create(parent.path(), 10).unwrap().file(OUT);
        fs::create_dir(&ended).unwrap();
        let mut at = tree::open_to_read(&ended).unwrap();
        for _ in 0..2500 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        drop(at);
        let newest = RunDir::create(parent.path(), 0).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
        assert!(newest.path().exists());
    }

    #[test]
    fn a_record_is_kept_out_of_reach_and_delivered() {
        let top = tempfile::tempdir().unwrap();
        let (shared, runs) = (top.path().join("shared"), top.path().join("runs"));
        fs::create_dir(&shared).unwrap();
        let goal = shared.join("reports/run");
        let aside = || {
            let run = RunDir::aside(&goal, &shared, &runs, 10).unwrap();
            fs::write(run.file(EVENTS), "true").unwrap();
            fs::create_dir(run.file("guests")).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", run.file("guests/link")).unwrap();
            run
        };
        assert!(RunDir::lies_in(&goal, &shared) && !RunDir::lies_in(&runs, &shared));
        let mut run = aside();
        assert!(!run.path().starts_with(&shared) && run.shown() == goal);
        run.deliver().unwrap();
        assert_eq!(fs::read_to_string(goal.join(EVENTS)).unwrap(), "true");
        assert!(fs::symlink_metadata(goal.join("guests/link")).unwrap().is_symlink());
        assert!(!run.path().exists() && !goal.join(LOCK).exists());

        // What the guest did to the place is not followed, and not believed.
        let elsewhere = top.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::remove_dir_all(shared.join("reports")).unwrap();
        let mut run = aside();
        fs::rename(shared.join("reports"), shared.join("x")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, shared.join("reports")).unwrap();
        let error = run.deliver().unwrap_err().to_string();
        assert!(error.contains("symbolic link") && error.contains(&run.path().display().to_string()), "{error}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::remove_file(shared.join("reports")).unwrap();
        fs::create_dir_all(&goal).unwrap();
        fs::write(goal.join(EVENTS), "forged").unwrap();
        assert!(run.deliver().unwrap_err().to_string().contains("not empty"));
        assert_eq!(fs::read_to_string(run.file(EVENTS)).unwrap(), "true");
    }

    #[test]
    fn nobody_else_reaches_into_a_run() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let mode = |run: &RunDir| fs::metadata(run.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&RunDir::create(parent.path(), 10).unwrap()), 0o700);
        let given = parent.path().join("given");
        fs::create_dir(&given).unwrap();
        fs::set_permissions(&given, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(mode(&RunDir::at(&given).unwrap()), 0o700);
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
