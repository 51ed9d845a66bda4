//! Kernels: what a file is, which are installed on this host, and which of those can do what a guest needs.

mod header;
mod installed;
mod version;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use header::{Arch, Format};
pub use installed::{Discovery, InstalledKernel, LookedAt, NoKernel, Userland, Why, discover};
pub use version::Release;

#[cfg(test)]
pub(crate) use header::fake_bzimage;

use crate::bounded;
use crate::processor::{self, Processor};

/// No kernel is larger, debug sections included.
pub(crate) const MAX_KERNEL: u64 = 2 << 30;

/// A kernel file that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Absolute, symbolic links resolved.
    pub path: PathBuf,
    /// What kind of file it is.
    pub format: Format,
    /// None where its header does not say (an x86 kernel older than 3.8).
    pub arch: Option<Arch>,
    /// What `uname -r` will say, where the file tells.
    pub release: Option<Release>,
    /// Where the packed kernel proper is in the file: offset and length in bytes.
    pub(crate) payload: Option<(u64, u64)>,
}

/// Why a file cannot be used as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No such file.
    #[error("there is no kernel {}", path.display())]
    NotFound {
        /// The file asked for.
        path: PathBuf,
    },
    /// Permission denied; Ubuntu installs kernels readable by root only.
    #[error("cannot read the kernel {}: only root may; mend: sudo chmod a+r {}", path.display(), path.display())]
    Forbidden {
        /// The file asked for.
        path: PathBuf,
    },
    /// Another failure of reading.
    #[error("cannot read the kernel {}: {source}", path.display())]
    Read {
        /// The file asked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a device, …
    #[error("{} is not a file but {what}; a kernel is a file such as /boot/vmlinuz-6.1.0-56-amd64", path.display())]
    NotAFile {
        /// The file asked for.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Its bytes are something else.
    #[error("{} is not a Linux kernel: it looks like {looks_like}", path.display())]
    NotAKernel {
        /// The file asked for.
        path: PathBuf,
        /// What it looks like.
        looks_like: &'static str,
    },
    /// A kernel that no guest can run.
    #[error("{} is a kernel for {arch}; only {guests} guests can be run", path.display())]
    Unsupported {
        /// The file asked for.
        path: PathBuf,
        /// What it is for.
        arch: String,
        /// What guests can be.
        guests: String,
    },
}

impl Kernel {
    /// Looks at a kernel file that is to run on one of `processors`.
    ///
    /// # Errors
    /// When the file cannot be read, is no kernel, or is one that none of the processors runs.
    pub fn open(path: &Path, processors: &[&Processor]) -> Result<Self, KernelError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KernelError::NotFound { path: path.to_owned() },
            io::ErrorKind::PermissionDenied => KernelError::Forbidden { path: path.to_owned() },
            _ => KernelError::Read { path: path.to_owned(), source },
        };
        let path = &std::fs::canonicalize(path).map_err(failed)?;
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "a device or the like" };
            return Err(KernelError::NotAFile { path: path.clone(), what });
        }
        let file = bounded::open(path).map_err(failed)?;
        let head = bounded::head(&file, header::HEAD).map_err(failed)?;
        let not = |looks_like| KernelError::NotAKernel { path: path.clone(), looks_like };
        let Some(mut header) = header::parse(&head) else { return Err(not(looks_like(&head))) };
        if header.format == Format::Image {
            header.release = banner(path).map_err(failed)?;
        }
        if header.format == Format::Vmlinux {
            header.release = banner(path).map_err(failed)?;
            if header.release.is_none() {
                return Err(not("another ELF program: it has no text \"Linux version\" in it"));
            }
        }
        let unsupported =
            |arch: String| KernelError::Unsupported { path: path.clone(), arch, guests: processor::list(processors) };
        // Only x86 has bzImages; old ones do not say more.
        let arch = header.arch.or((header.format == Format::BzImage).then_some(Arch::X86));
        match arch {
            Some(arch) if processors.iter().any(|processor| processor.runs(arch)) => {}
            Some(other) => return Err(unsupported(other.to_string())),
            None => return Err(unsupported("another architecture, packed as an EFI program".into())),
        }
        Ok(Kernel {
            path: path.clone(),
            format: header.format,
            arch: header.arch,
            release: header.release.map(Release::new),
            payload: header.payload,
        })
    }

    /// The directories below `roots` (such as `/`) that would hold this kernel's modules, whether or not they exist.
    #[must_use]
    pub fn module_dirs(&self, roots: &[PathBuf]) -> Vec<PathBuf> {
        let Some(release) = &self.release else { return Vec::new() };
        let below = ["lib/modules", "usr/lib/modules"];
        roots.iter().flat_map(|root| below.map(|dir| root.join(dir).join(release.as_str()))).collect()
    }

    /// The directory of its modules: the one that it lies in, else the first that exists of [`Kernel::module_dirs`] in the tree whose `/boot` it lies in, and
    /// then below `roots`.
    #[must_use]
    pub fn find_modules(&self, roots: &[PathBuf]) -> Option<PathBuf> {
        let dir = self.path.parent()?;
        // Its source tree has a directory `kernel` too.
        if ["modules.dep", "modules.builtin"].iter().any(|list| dir.join(list).is_file()) && dir.join("kernel").is_dir()
        {
            return Some(dir.to_owned());
        }
        let tree = dir.parent().filter(|_| dir.ends_with("boot")).map(Path::to_owned);
        let roots: Vec<PathBuf> = tree.into_iter().chain(roots.iter().cloned()).collect();
        self.module_dirs(&roots).into_iter().find(|dir| dir.is_dir())
    }
}

/// As much of a kernel's file as [`identify`] looks at, in bytes.
pub const IDENTITY: u64 = header::HEAD;

/// What a kernel's file says of itself in its first [`IDENTITY`] bytes: what it is for, and its release. None if it is no kernel. An unpacked kernel has its
/// release elsewhere.
#[must_use]
pub fn identify(head: &[u8]) -> Option<(Option<Arch>, Option<Release>)> {
    header::parse(head).map(|header| (header.arch, header.release.map(Release::new)))
}

/// Finds the banner of an unpacked kernel, reading piece by piece: with debug sections it may have a gigabyte.
fn banner(path: &Path) -> io::Result<Option<String>> {
    const OVERLAP: usize = 256;
    let mut source = bounded::open(path)?.take(MAX_KERNEL);
    let mut window = Vec::new();
    loop {
        let read = (&mut source).take(1 << 20).read_to_end(&mut window)?;
        if let Some(release) = header::release_in_banner(&window) {
            return Ok(Some(release));
        }
        if read == 0 {
            return Ok(None);
        }
        window.drain(..window.len().saturating_sub(OVERLAP));
    }
}

/// What a file that is no kernel probably is.
fn looks_like(head: &[u8]) -> &'static str {
    use crate::decompress::Packing;
    match head {
        [] => "an empty file",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image (use --image)",
        [b'0', b'7', b'0', b'7', ..] => "an initramfs (use --initrd)",
        [0x7f, b'E', b'L', b'F', ..] => "a program",
        [b'#', b'!', b'/' | b' ', ..] => "a script",
        [b'M', b'Z', ..] => "an EFI program",
        _ if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) => "a disk image with a boot sector (use --image)",
        _ if Packing::of(head) != Packing::None => "a packed file, maybe an initramfs (use --initrd)",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        std::fs::write(&path, bytes).unwrap();
        Kernel::open(&path, &[&processor::X86_64]).unwrap_err().to_string()
    }

    #[test]
    fn a_bzimage_is_opened_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vmlinuz-6.1");
        std::fs::write(&file, fake_bzimage("6.1.0-56-amd64", b"x")).unwrap();
        std::os::unix::fs::symlink("vmlinuz-6.1", dir.path().join("vmlinuz")).unwrap();
        let kernel = Kernel::open(&dir.path().join("vmlinuz"), &[&processor::X86_64]).unwrap();
        assert_eq!(kernel.path, file.canonicalize().unwrap());
        assert_eq!(kernel.release, Some(Release::new("6.1.0-56-amd64")));
        assert_eq!(
            kernel.module_dirs(&["/r".into()]),
            [PathBuf::from("/r/lib/modules/6.1.0-56-amd64"), "/r/usr/lib/modules/6.1.0-56-amd64".into()]
        );
    }

    #[test]
    fn modules_are_looked_for_in_the_kernels_own_tree_first() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().canonicalize().unwrap().join(path);
        let put = |path: &str| {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), fake_bzimage("6.1", b"x")).unwrap();
        };
        let found = |path: &str| {
            let kernel = Kernel::open(&at(path), &[&processor::X86_64]).unwrap();
            kernel.find_modules(&[at("host")]).map(|dir| dir.strip_prefix(at("")).unwrap().to_owned())
        };
        for path in [
            "a/boot/k",
            "a/other/k",
            "b/boot/k",
            "host/lib/modules/6.1/x",
            "a/usr/lib/modules/6.1/kernel/x",
            "a/usr/lib/modules/6.1/modules.dep",
            "src/vmlinux",
            "src/kernel/x",
        ] {
            put(path);
        }
        put("a/usr/lib/modules/6.1/vmlinuz");
        assert_eq!(found("a/boot/k"), Some("a/usr/lib/modules/6.1".into()));
        assert_eq!(found("a/usr/lib/modules/6.1/vmlinuz"), Some("a/usr/lib/modules/6.1".into()));
        assert_eq!(found("src/vmlinux"), Some("host/lib/modules/6.1".into()));
        assert_eq!(found("a/other/k"), Some("host/lib/modules/6.1".into()));
        assert_eq!(found("b/boot/k"), Some("host/lib/modules/6.1".into()));
        std::fs::remove_dir_all(at("host")).unwrap();
        assert_eq!(found("b/boot/k"), None);
    }

    #[test]
    fn an_unpacked_kernel_says_its_release_wherever_the_banner_is() {
        let mut elf = vec![0; 3 << 20];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16] = 2;
        elf[18] = 62;
        let at = (2 << 20) - 7; // over the edge of a piece
        elf[at..at + 24].copy_from_slice(b"Linux version 6.1-fake (");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::write(&path, &elf).unwrap();
        let kernel = Kernel::open(&path, &[&processor::X86_64]).unwrap();
        assert_eq!((kernel.format, kernel.release), (Format::Vmlinux, Some(Release::new("6.1-fake"))));
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(refusal(b"").contains("empty file"));
        assert!(refusal(b"QFI\xfb\0\0\0\x03").contains("--image"));
        assert!(refusal(b"070701000").contains("--initrd"));
        let mut arm = vec![0; 64];
        arm[56..60].copy_from_slice(b"ARM\x64");
        assert!(refusal(&arm).contains("aarch64"));
        assert!(refusal(&std::fs::read("/proc/self/exe").unwrap()).contains("a program"));
        assert!(matches!(Kernel::open(Path::new("/"), &[]), Err(KernelError::NotAFile { .. })));
        assert!(matches!(Kernel::open(Path::new("/nonexistent/k"), &[]), Err(KernelError::NotFound { .. })));
    }
}
