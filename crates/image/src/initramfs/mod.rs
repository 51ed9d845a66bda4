//! Initramfs archives: one of our own, or an addition to somebody else's. What is in ours is in [`belljar_proto::initramfs`].

mod contents;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

pub use belljar_proto::initramfs::{InitramfsSpec, build};
pub use contents::ModuleNames;

use crate::bounded;

/// Somebody else's initramfs has at most this many bytes.
const MAX_FOREIGN: u64 = 4 << 30;

/// An archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The user's initramfs cannot be read.
    #[error("cannot read the initramfs {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The user's file is no initramfs.
    #[error("{} is not an initramfs: it looks like {looks_like}", path.display())]
    NotAnInitramfs {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        looks_like: &'static str,
    },
    /// The archive could not be written.
    #[error("cannot write the initramfs: {0}")]
    Write(io::Error),
}

/// Puts `ours` before a foreign initramfs, which is copied as it is.
///
/// The kernel unpacks archives one after the other, each at a multiple of four bytes
/// (`Documentation/driver-api/early-userspace/buffer-format.rst`). Ours comes first, as microcode does in every
/// distribution's: behind a packed archive it would depend on the decoder's notion of where that ends, and lz4's reads on.
///
/// # Errors
/// When the foreign file cannot be read or is no initramfs, or `out` cannot be written.
pub fn prepend(ours: &InitramfsSpec<'_>, foreign: &Path, out: &mut File) -> Result<(), InitramfsError> {
    let file = check_foreign(foreign)?;
    build(ours, io::BufWriter::new(&*out)).map_err(InitramfsError::Write)?; // padded to 512 bytes
    let copied = io::copy(&mut io::Read::take(file, MAX_FOREIGN), out).map_err(InitramfsError::Write)?;
    if copied == MAX_FOREIGN {
        let source = io::ErrorKind::FileTooLarge.into();
        return Err(InitramfsError::Read { path: foreign.to_owned(), source });
    }
    Ok(())
}

/// Opens somebody else's initramfs after a look at its first bytes.
///
/// # Errors
/// When it cannot be read or is no initramfs.
pub fn check_foreign(path: &Path) -> Result<File, InitramfsError> {
    use crate::decompress::Packing;
    use std::os::unix::fs::FileExt;
    let failed = |source| InitramfsError::Read { path: path.to_owned(), source };
    let file = bounded::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let mut head = [0; 1024];
    let n = file.read_at(&mut head, 0).map_err(failed)?;
    let head = &head[..n];
    let looks_like = match head {
        [] => "an empty file",
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => return Ok(file),
        _ if head.get(0x202..0x206) == Some(b"HdrS") => "a kernel (use --kernel)",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image (use --image)",
        [0x7f, b'E', b'L', b'F', ..] => "a program",
        // A plain ramdisk with a file system is old, but kernels still take it.
        _ if n == head.len() && (Packing::of(head) != Packing::None || n == 1024) => return Ok(file),
        _ => "something else",
    };
    Err(InitramfsError::NotAnInitramfs { path: path.to_owned(), looks_like })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::{gzip, pack_with};
    use belljar_proto::message::{InitRoot, Source};
    use std::io::Seek;

    fn spec<'a>(modules: &'a [(String, Vec<u8>)], alone: bool) -> InitramfsSpec<'a> {
        InitramfsSpec {
            agent: b"\x7fELF agent",
            root: InitRoot::Share(Source::NineP { tag: "belljar-root".into() }),
            modules,
            alone,
        }
    }

    fn bytes(spec: &InitramfsSpec<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        build(spec, &mut out).unwrap();
        out
    }

    #[test]
    fn the_cpio_program_reads_it() {
        let list = pack_with(&["cpio", "-t", "--quiet"], &bytes(&spec(&[], true)));
        assert!(String::from_utf8(list).unwrap().contains("belljar/init.conf\n"));
    }

    #[test]
    fn a_foreign_archive_follows_ours_unchanged_and_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = dir.path().join("initrd.gz");
        std::fs::write(&foreign, gzip(b"070701 whatever")).unwrap();
        let mut out = tempfile::tempfile().unwrap();
        prepend(&spec(&[], false), &foreign, &mut out).unwrap();
        out.rewind().unwrap();
        let all = bounded::read_all(out, 1 << 20).unwrap();
        let ours = bytes(&spec(&[], false));
        assert_eq!(ours.len() % 512, 0);
        assert!(all[..ours.len()] == ours && all[ours.len()..] == std::fs::read(&foreign).unwrap());
    }

    #[test]
    fn what_is_no_initramfs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (bytes, say) in
            [(&b""[..], "empty"), (b"QFI\xfb\0\0", "--image"), (b"\x7fELF\x02", "a program"), (b"hello", "something")]
        {
            std::fs::write(&path, bytes).unwrap();
            let error = check_foreign(&path).unwrap_err().to_string();
            assert!(error.contains(say), "{error}");
        }
        assert!(check_foreign(dir.path()).is_err());
        assert!(check_foreign(&dir.path().join("gone")).is_err());
    }
}
