//! What the directories that a guest gets do not show: a mount namespace in which parts of the host's tree are covered.
//!
//! QEMU itself stays where it is, with the user's own rights, groups and `/dev/kvm`: nothing about its process changes. Only the
//! *directories* that it serves come from another mount namespace. A second process (`belljar __exec --view …`) goes into a new mount
//! namespace, and where only that permits it into a new user namespace, covers there what is to be hidden by empty directories and
//! files, opens the shared directories, and hands their descriptors over; QEMU serves `/proc/self/fd/N`. A descriptor leads through the
//! mounts of the namespace in which it was opened, whoever uses it. As QEMU is in no user namespace, the owners of files
//! look in the guest as they do on the host.
//!
//! The namespace ends with the last descriptor of it, and with it the covers: QEMU holds one as long as it runs, which is longer than
//! any guest can look.
//!
//! What is covered is decided before ([`super::hidden`]). Shares are opened first, so that one below a covered directory is still reached;
//! then the covers are laid, the deepest first.
//!
//! A cover holds against a guest that only reads. One that may write to the directory in which the covered one is can rename that: the
//! kernel keeps only those mounts in their places that are in the *caller's* namespace. So what must stay out of reach may lie in
//! no writable share (`crate::conceal`).

#![expect(
    clippy::disallowed_methods,
    reason = "it blocks, in real time, until a process that this one has made answers"
)]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::process::{Signal, getegid, geteuid, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::{Shim, descriptors};

/// What makes the shim a process that opens directories, and not one that becomes QEMU.
pub(super) const WORD: &str = "--view";
const SHARE: &str = "--share";
const COVER: &str = "--cover";

/// How long a view may take. It takes some milliseconds; where a mount is that of a server which does not answer, for ever.
const LIMIT: Duration = Duration::from_secs(60);
/// Most of what the process says when it fails that is told.
const MAX_SAID: u64 = 4096;

/// What is to be opened, and what is not to be seen there. All paths are absolute and lead through no link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Directories to be opened.
    pub shares: Vec<PathBuf>,
    /// What is to be empty, the deepest first.
    pub covers: Vec<PathBuf>,
}

/// Directories in which some things cannot be seen.
#[derive(Debug)]
pub struct Views {
    /// In the order of [`Order::shares`].
    pub dirs: Vec<OwnedFd>,
    /// Keeps the covers where they are: to be held by whoever uses the directories, as long as they are used.
    pub namespace: OwnedFd,
}

/// Why nothing can be hidden.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The process that does it could not be started.
    #[error("cannot start a process in a mount namespace of its own: {0}")]
    Start(#[from] io::Error),
    /// It failed.
    #[error("{0}")]
    Refused(String),
    /// It did not end.
    #[error("the directories for the guest were not opened within {} s: a file system below them does not answer", LIMIT.as_secs())]
    TimedOut,
}

/// A step that failed in the process that does it.
#[derive(Debug, Error)]
#[error("cannot {what}: {source}")]
pub struct StepError {
    what: String,
    source: io::Error,
}

/// Opens directories in which some things cannot be seen.
///
/// # Errors
/// When the host does not permit it, and whenever anything that was to be covered is not.
pub fn open(shim: &Shim, order: &Order) -> Result<Views, ViewError> {
    let (ours, theirs) = descriptors::channel()?;
    let mut command = shim.begin();
    command.arg(WORD);
    let words = [(SHARE, &order.shares), (COVER, &order.covers)];
    for (word, path) in words.into_iter().flat_map(|(word, paths)| paths.iter().map(move |path| (word, path))) {
        command.arg(word).arg(path);
    }
    command.env_clear().stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn()?);
    // The socket's other end is to be the child's alone, so that its end is seen.
    drop(command);
    let deadline = Instant::now() + LIMIT;
    let wanted = order.shares.len() + 1;
    if !readable(ours.as_fd(), deadline)? {
        return Err(ViewError::TimedOut);
    }
    match descriptors::receive(ours.as_fd(), wanted) {
        Ok(mut dirs) => {
            let namespace = dirs.pop().ok_or_else(|| ViewError::Refused("no namespace came".into()))?;
            Ok(Views { dirs, namespace })
        }
        Err(error) => {
            let said = child.said();
            Err(ViewError::Refused(if said.is_empty() { error.to_string() } else { said }))
        }
    }
}

/// A child that is killed and reaped whatever happens.
struct Reaped(Child);

impl Reaped {
    fn said(&mut self) -> String {
        use std::io::Read;
        let mut said = Vec::new();
        if let Some(stderr) = self.0.stderr.take() {
            // It has closed its socket, so it is at its end.
            let _ = self.0.kill();
            let _ = stderr.take(MAX_SAID).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        said.trim().trim_start_matches("belljar: error: ").to_owned()
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn readable(fd: std::os::fd::BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The process that opens: reads its words, and hands the descriptors over on its standard input.
pub(super) fn serve(words: impl Iterator<Item = OsString>) -> Result<(), StepError> {
    let order =
        parse(words).ok_or_else(|| StepError { what: "read a view's words".into(), source: Errno::INVAL.into() })?;
    let step = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| StepError { what, source }
    };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| step("tie its life to Belljar's")(e.into()))?;
    separate()?;
    let open = |path: &Path, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| step(&format!("open {}", path.display()))(e.into()))
    };
    let namespace = open(Path::new("/proc/self/ns/mnt"), OFlags::RDONLY)?;
    let mut all = Vec::new();
    for share in &order.shares {
        all.push(open(share, OFlags::PATH | OFlags::DIRECTORY)?);
    }
    cover(&order.covers)?;
    all.push(namespace);
    descriptors::send_on(io::stdin().as_fd(), &all).map_err(step("hand the directories over"))
}

/// Goes where mounts are nobody else's.
fn separate() -> Result<(), StepError> {
    let step = |what: &str, source: Errno| StepError { what: what.to_owned(), source: source.into() };
    match unshare(UnshareFlags::NEWNS) {
        Ok(()) => {
            // The host would see what is mounted here where its mounts are shared, which is what systemd makes them.
            return mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .map_err(|e| step("keep its mounts from the host's", e));
        }
        Err(Errno::PERM) => {}
        Err(error) => return Err(step("get a mount namespace", error)),
    }
    // There, what is mounted does not reach the namespace from which the mounts came.
    own_users(UnshareFlags::NEWNS)
}

/// Goes into a user namespace in which the user is who it was, and all others are nobody.
pub(super) fn own_users(and: UnshareFlags) -> Result<(), StepError> {
    let step = |what: &str, source: Errno| StepError { what: what.to_owned(), source: source.into() };
    let (user, group) = (geteuid(), getegid());
    unshare(UnshareFlags::NEWUSER | and).map_err(|e| step("get a user namespace", e))?;
    let write = |file: &str, text: String| {
        let written = fs::OpenOptions::new().write(true).open(file).and_then(|mut f| f.write_all(text.as_bytes()));
        written.map_err(|source| StepError { what: format!("write {file}"), source })
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{0} {0} 1", user.as_raw()))?;
    write("/proc/self/gid_map", format!("{0} {0} 1", group.as_raw()))
}

#[expect(deprecated, reason = "the new name is unsafe for a flag that is not used here; this process has one thread")]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    rustix::thread::unshare(flags)
}

/// Lays something empty over each path.
fn cover(paths: &[PathBuf]) -> Result<(), StepError> {
    // Nothing is read from it any more, and it is there wherever a namespace could be made.
    const STORE: &str = "/proc";
    if paths.is_empty() {
        return Ok(());
    }
    let step = |path: &Path, source: io::Error| StepError { what: format!("hide {}", path.display()), source };
    // What cannot be mounted over has to be known before the only directory that may be missing is covered.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("belljar", STORE, "tmpfs", flags, c"mode=0755,size=1m").map_err(|e| step(Path::new(STORE), e.into()))?;
    let mut prepared = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        // One of its own for each: two directories with the same inode number confuse a guest's kernel.
        let empty = Path::new(STORE).join(n.to_string());
        let kind = match if path == Path::new(STORE) { fs::symlink_metadata("/") } else { fs::symlink_metadata(path) } {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_out_of_reach(path) => continue,
            Err(error) => return Err(step(path, error)),
        };
        let made = if kind.is_dir() {
            fs::create_dir(&empty)
        } else {
            fs::write(&empty, "").and_then(|()| fs::set_permissions(&empty, fs::Permissions::from_mode(0o444)))
        };
        made.map_err(|e| step(path, e))?;
        prepared.push((empty, path));
    }
    mount_remount(STORE, flags | MountFlags::RDONLY, c"").map_err(|e| step(Path::new(STORE), e.into()))?;
    // The store last, for the others come out of it.
    prepared.sort_by_key(|(_, path)| *path == Path::new(STORE));
    for (empty, path) in prepared {
        match mount_bind(&empty, path) {
            // It went away this moment.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(step(path, error.into())),
        }
    }
    Ok(())
}

/// Whether a path leads through a directory that this user may not pass, and that is not this user's own, who could open it: what reaches the host with
/// the same rights reaches nothing behind it.
fn is_out_of_reach(path: &Path) -> bool {
    let is_closed = |dir: &&Path| accessat(CWD, *dir, Access::EXEC_OK, AtFlags::EACCESS) == Err(Errno::ACCESS);
    // From the root downwards: behind the first that is closed nothing is known.
    let mut dirs: Vec<&Path> = path.ancestors().skip(1).collect();
    dirs.reverse();
    let closed = dirs.into_iter().find(is_closed);
    closed.is_some_and(|dir| fs::symlink_metadata(dir).is_ok_and(|dir| dir.uid() != geteuid().as_raw()))
}

fn parse(mut words: impl Iterator<Item = OsString>) -> Option<Order> {
    let mut order = Order::default();
    while let Some(word) = words.next() {
        let path = PathBuf::from(words.next()?);
        let list = match word.to_str()? {
            SHARE => &mut order.shares,
            COVER => &mut order.covers,
            _ => return None,
        };
        list.push(path.is_absolute().then_some(path)?);
    }
    Some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_others_are_refused() {
        let words = |text: &str| parse(text.split_whitespace().map(OsString::from).collect::<Vec<_>>().into_iter());
        let order = words("--share /a --cover /a/b/c --cover /d").unwrap();
        assert_eq!((order.shares.len(), order.covers.len()), (1, 2));
        for wrong in ["--share", "--share a", "--other /a", "/a"] {
            assert_eq!(words(wrong), None, "{wrong}");
        }
    }
}
