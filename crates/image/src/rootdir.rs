//! A host directory that is to be a guest's root.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::bounded::le;
use crate::kernel::Arch;
use crate::processor::{self, Processor};

/// Programs that a root file system has; the first found says what processor it is for.
const PROGRAMS: &[&str] = &["bin/sh", "usr/bin/sh", "bin/busybox", "usr/bin/env", "bin/true", "sbin/init"];
/// Directories of which a root without any of those still has one.
const DIRECTORIES: &[&str] = &["usr/bin", "bin", "sbin", "usr/local/bin"];

/// A directory that will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootDir {
    /// Absolute, symbolic links resolved.
    pub path: PathBuf,
    /// Whether it has a `/bin/sh`, without which no command line runs, only programs.
    pub shell: bool,
    /// What its programs are for; none where that could not be seen (no program that is ELF, or a file
    /// that only root may read).
    pub arch: Option<Arch>,
}

/// Why a directory cannot be a guest's root.
#[derive(Debug, thiserror::Error)]
pub enum RootDirError {
    /// No such directory.
    #[error("there is no directory {}", path.display())]
    NotFound {
        /// The directory asked for.
        path: PathBuf,
    },
    /// A file.
    #[error("{} is a file, and a root is a directory; a disk image is given with --image, an initramfs with --initrd", path.display())]
    NotADirectory {
        /// The file given.
        path: PathBuf,
    },
    /// Cannot be listed.
    #[error("cannot read the directory {}: {source}", path.display())]
    Read {
        /// The directory asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("the directory {} is empty; was something to be mounted there?", path.display())]
    Empty {
        /// The directory asked for.
        path: PathBuf,
    },
    /// No system in it.
    #[error(
        "{} does not look like the root of a system: it has none of {}, nor a bin or sbin directory{}", path.display(),
        PROGRAMS.join(", "), inside.as_ref().map(|d| format!("; {} does", d.display())).unwrap_or_default()
    )]
    NotARoot {
        /// The directory asked for.
        path: PathBuf,
        /// A directory in it that does look like one.
        inside: Option<PathBuf>,
    },
    /// For another processor.
    #[error("the programs in {} are for {found} (as {program} is); guests are {wanted}", path.display())]
    Arch {
        /// The directory asked for.
        path: PathBuf,
        /// The program that was looked at.
        program: &'static str,
        /// What it is for.
        found: Arch,
        /// What would do.
        wanted: String,
    },
}

/// Looks at a directory that is to be the root of a guest with one of `processors`. Symbolic links in it are followed as the guest
/// will follow them, and never out of it.
///
/// # Errors
/// When the directory cannot be read, holds no system, or one that none of the processors runs.
pub fn check(path: &Path, processors: &[&Processor]) -> Result<RootDir, RootDirError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => RootDirError::NotFound { path: path.to_owned() },
        io::ErrorKind::NotADirectory => RootDirError::NotADirectory { path: path.to_owned() },
        _ => RootDirError::Read { path: path.to_owned(), source },
    };
    let path = &std::fs::canonicalize(path).map_err(failed)?;
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotADirectory => RootDirError::NotADirectory { path: path.clone() },
        _ => RootDirError::Read { path: path.clone(), source },
    };
    if std::fs::read_dir(path).map_err(failed)?.next().is_none() {
        return Err(RootDirError::Empty { path: path.clone() });
    }
    let root = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    let root = File::from(root);

    let there: Vec<_> = PROGRAMS.iter().copied().filter(|p| exists(&root, p)).collect();
    if there.is_empty() && !DIRECTORIES.iter().any(|d| exists(&root, d)) {
        return Err(RootDirError::NotARoot { path: path.clone(), inside: root_inside(path) });
    }
    let known = there.iter().find_map(|&program| Some((program, elf_arch(&root, program)?)));
    let runs = |arch| processors.iter().any(|processor| processor.runs(arch));
    if let Some((program, found)) = known.filter(|&(_, found)| !runs(found)) {
        let wanted = processor::list(processors);
        return Err(RootDirError::Arch { path: path.clone(), program, found, wanted });
    }
    let shell = there.iter().any(|p| p.ends_with("/sh"));
    Ok(RootDir { path: path.clone(), shell, arch: known.map(|(_, arch)| arch) })
}

/// What a root has of a kernel's modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnModules {
    /// Nothing that is of use.
    None,
    /// The very directory that was asked about.
    Same,
    /// A directory of its own.
    Other,
}

/// Looks for the modules of the kernel `release` where programs in the root will look, and whether they are those in `dir`.
#[must_use]
pub fn own_modules(root: &Path, release: &str, dir: &Path) -> OwnModules {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(root, flags, Mode::empty()).map(File::from) else { return OwnModules::None };
    let own = format!("lib/modules/{release}");
    // Whatever else is there: `modprobe` wants the index, and a tree can be given one by depmod.
    if !["modules.dep", "kernel"].iter().any(|part| exists(&root, &format!("{own}/{part}"))) {
        return OwnModules::None;
    }
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let ids = open(&root, &own, OFlags::PATH).and_then(|f| rustix::fs::fstat(f).ok()).zip(rustix::fs::stat(dir).ok());
    if ids.is_some_and(|(own, asked)| id(own) == id(asked)) { OwnModules::Same } else { OwnModules::Other }
}

/// Opens a path below `root` with its absolute links taken from `root`, as a chroot would.
fn open(root: &File, path: &str, flags: OFlags) -> Option<File> {
    let flags = flags | OFlags::CLOEXEC;
    // EAGAIN: something was renamed meanwhile.
    let opened = (0..8)
        .map(|_| rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT))
        .find(|r| !matches!(r, Err(rustix::io::Errno::AGAIN)));
    match opened? {
        Ok(fd) => Some(fd.into()),
        // A kernel before 5.6, or a container that forbids it: the directory's own links, if any, lead out of it here.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            rustix::fs::openat(root, path, flags, Mode::empty()).ok().map(Into::into)
        }
        Err(_) => None,
    }
}

fn exists(root: &File, path: &str) -> bool {
    open(root, path, OFlags::PATH).is_some()
}

fn elf_arch(root: &File, program: &str) -> Option<Arch> {
    let mut head = Vec::new();
    open(root, program, OFlags::RDONLY | OFlags::NONBLOCK)?.take(20).read_to_end(&mut head).ok()?;
    let little_endian = head.get(5) == Some(&1);
    (head.starts_with(b"\x7fELF") && head.len() == 20).then(|| {
        let machine = le::u16(&head, 18).unwrap_or(0);
        Arch::from_elf_machine(if little_endian { machine } else { machine.swap_bytes() })
    })
}

/// Somebody who unpacks an archive often has one directory too many.
fn root_inside(path: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(path).ok()?.flatten().take(100);
    entries.map(|e| e.path()).find(|dir| dir.join("usr/bin").is_dir() || dir.join("bin/sh").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn elf(machine: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        bytes
    }

    fn text(dir: &Path) -> String {
        check(dir, &[&processor::X86_64]).map_or_else(|e| e.to_string(), |r| format!("{r:?}"))
    }

    #[test]
    fn this_hosts_own_root_will_do() {
        let root = check(Path::new("/"), &[&processor::X86_64]).unwrap();
        assert_eq!((root.shell, root.arch), (true, Some(Arch::X86_64)));
    }

    #[test]
    fn links_are_followed_as_the_guest_will() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/dash"), elf(183)).unwrap();
        // On the host this leads to the host's own shell.
        symlink("/usr/bin/dash", dir.path().join("usr/bin/sh")).unwrap();
        symlink("/usr/bin", dir.path().join("bin")).unwrap();
        let error = text(dir.path());
        assert!(error.contains("aarch64") && error.contains("bin/sh"), "{error}");

        fs::write(dir.path().join("usr/bin/dash"), elf(3)).unwrap();
        assert_eq!(check(dir.path(), &[&processor::X86_64]).unwrap().arch, Some(Arch::X86));
    }

    #[test]
    fn modules_are_looked_for_where_the_guest_will() {
        let dir = tempfile::tempdir().unwrap();
        let (root, given) = (dir.path().join("root"), dir.path().join("given"));
        let release = "6.1.0-56-amd64";
        fs::create_dir_all(&given).unwrap();
        fs::create_dir_all(root.join("usr/lib/modules").join(release)).unwrap();
        assert_eq!(own_modules(&root, release, &given), OwnModules::None);
        // An absolute link leads to the root's own directory, not to the host's.
        symlink("/usr/lib", root.join("lib")).unwrap();
        assert_eq!(own_modules(&root, release, &given), OwnModules::None, "an empty directory is of no use");
        let own = root.join("usr/lib/modules").join(release);
        fs::write(own.join("modules.dep"), "").unwrap();
        assert_eq!(own_modules(&root, release, &given), OwnModules::Other);
        assert_eq!(own_modules(&root, release, &own), OwnModules::Same);
        assert_eq!(own_modules(&root, "6.2", &own), OwnModules::None);
    }

    #[test]
    fn a_root_without_a_shell_is_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        let root = check(dir.path(), &[&processor::X86_64]).unwrap();
        assert_eq!((root.shell, root.arch), (false, None));
    }

    #[test]
    fn what_is_no_root_says_why() {
        let dir = tempfile::tempdir().unwrap();
        assert!(text(dir.path()).contains("is empty"));
        fs::write(dir.path().join("disk.qcow2"), "QFI").unwrap();
        assert!(text(&dir.path().join("disk.qcow2")).contains("--image"));
        assert!(text(&dir.path().join("gone")).contains("there is no directory"));
        assert!(text(&dir.path().join("disk.qcow2/x")).contains("is a file"));
        assert!(text(dir.path()).contains("does not look like"));
        fs::create_dir_all(dir.path().join("rootfs/usr/bin")).unwrap();
        assert!(text(dir.path()).contains("rootfs does"));
    }
}
