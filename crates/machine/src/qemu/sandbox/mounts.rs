//! The mounts of this process's namespace: by which other paths the same files are seen.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use belljar_proto::mountinfo;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// File systems that are windows into the host's kernel, wherever they are mounted.
const KERNEL: &[&str] = &[
    "autofs",
    "binder",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// Of its file system.
    device: String,
    /// What of the file system is mounted.
    root: PathBuf,
    /// Where it is mounted.
    at: PathBuf,
    kind: String,
}

/// What is mounted. It is read again only when the kernel says that something was mounted or unmounted (proc_pid_mountinfo(5)).
#[derive(Debug)]
pub struct MountTable {
    file: File,
    mounts: Vec<Mount>,
}

impl MountTable {
    /// Reads it.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn read() -> io::Result<Self> {
        Self::of_process(Path::new("/proc/self"))
    }

    fn of_process(process: &Path) -> io::Result<Self> {
        let mut table = Self { file: File::open(process.join("mountinfo"))?, mounts: Vec::new() };
        table.fill()?;
        Ok(table)
    }

    /// Reads it again if it has changed; gives whether it has.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn renew(&mut self) -> io::Result<bool> {
        let mut changed = [PollFd::new(&self.file, PollFlags::PRI)];
        if poll(&mut changed, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            return Ok(false);
        }
        self.fill()?;
        Ok(true)
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut text = Vec::with_capacity(16 << 10);
        self.file.rewind()?;
        self.file.read_to_end(&mut text)?;
        self.mounts = parse(&text);
        Ok(())
    }

    /// All paths at which the files at these real paths are seen, themselves among them.
    #[must_use]
    pub fn seen(&self, paths: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        paths.iter().flat_map(|path| elsewhere(path, &self.mounts)).chain(paths.iter().cloned()).collect()
    }

    /// Where there are windows into the host's kernel.
    pub fn kernel(&self) -> impl Iterator<Item = PathBuf> {
        self.mounts.iter().filter(|m| KERNEL.contains(&&*m.kind)).map(|m| m.at.clone())
    }
}

#[cfg(test)]
impl MountTable {
    /// One that does not change.
    pub(super) fn of(text: &str) -> Self {
        Self { file: File::open("/dev/null").unwrap(), mounts: parse(text.as_bytes()) }
    }
}

/// Where else the same files are seen, through other mounts of the same file system.
fn elsewhere(path: &Path, mounts: &[Mount]) -> Vec<PathBuf> {
    // Of mounts over one another the last one is seen.
    let holds = |m: &&Mount| path.starts_with(&m.at);
    let Some(depth) = mounts.iter().filter(holds).map(|m| m.at.components().count()).max() else { return Vec::new() };
    let Some(own) = mounts.iter().filter(holds).rfind(|m| m.at.components().count() == depth) else {
        return Vec::new();
    };
    let Ok(inside) = path.strip_prefix(&own.at) else { return Vec::new() };
    let real = join(&own.root, inside);
    let others = mounts.iter().filter(|m| m.device == own.device && m.at != own.at);
    let seen = |m: &Mount| match real.strip_prefix(&m.root) {
        Ok(rest) => Some(join(&m.at, rest)),
        // A part of what is hidden.
        Err(_) => m.root.starts_with(&real).then(|| m.at.clone()),
    };
    others.filter_map(seen).collect()
}

/// As [`Path::join`], without a slash at the end.
fn join(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) }
}

fn parse(text: &[u8]) -> Vec<Mount> {
    let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
    let mount = |m: mountinfo::Mount| Mount { device: m.device, root: path(m.root), at: path(m.at), kind: m.kind };
    mountinfo::parse(text).into_iter().map(mount).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_is_read_again_when_something_was_mounted_and_not_before() {
        let own = MountTable::read().unwrap();
        assert!(own.kernel().any(|at| at == Path::new("/proc")), "{own:?}");

        let script = "echo there && read -r _ && mount -t tmpfs none /mnt && echo mounted && read -r _";
        let mut child = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "there");
        let mut table = MountTable::of_process(&PathBuf::from(format!("/proc/{}", child.id()))).unwrap();
        let mounted = |table: &MountTable| table.mounts.iter().any(|m| m.at == Path::new("/mnt") && m.kind == "tmpfs");
        assert!(!table.renew().unwrap() && !mounted(&table));

        child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "mounted");
        assert!(table.renew().unwrap() && mounted(&table));
        assert!(!table.renew().unwrap(), "once");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
