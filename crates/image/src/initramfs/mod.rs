//! Initramfs archives: one of our own, or an addition to somebody else's.
//!
//! What is in ours, for the agent (`belljar_proto::message`):
//!
//! ```text
//! /belljar/agent          the agent, static
//! /belljar/init.conf      InitConfig, postcard
//! /belljar/modules/*.ko   unpacked modules
//! /init -> belljar/agent  only in an archive that stands alone, as are /dev, /proc, /sys, /run,
//! /dev/console, /dev/null and /tmp
//! ```

mod contents;
mod cpio;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use belljar_proto::message::{INIT_AGENT_PATH, INIT_CONFIG_PATH, INIT_MODULE_DIR, InitConfig, InitRoot};

pub use contents::ModuleNames;
pub use cpio::{Node, Writer};

use crate::bounded;

/// Somebody else's initramfs has at most this many bytes.
const MAX_FOREIGN: u64 = 4 << 30;

/// What goes into an archive.
#[derive(Debug)]
pub struct InitramfsSpec<'a> {
    /// The agent's program.
    pub agent: &'a [u8],
    /// Where the root comes from.
    pub root: InitRoot,
    /// Names and unpacked bytes, in the order in which they are to be inserted.
    pub modules: &'a [(String, Vec<u8>)],
    /// Whether the archive stands alone: it then has an `/init` and the directories of a root.
    pub alone: bool,
}

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

/// Writes the archive; the same specification always gives the same bytes.
///
/// # Errors
/// Those of `out`.
pub fn build(spec: &InitramfsSpec<'_>, out: impl Write) -> io::Result<()> {
    let mut cpio = Writer::new(out);
    let dir = |mode| Node::Dir { mode };
    if spec.alone {
        for (name, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)] {
            cpio.add(name, &dir(mode))?;
        }
        cpio.add("dev/console", &Node::CharDevice { mode: 0o600, major: 5, minor: 1 })?;
        cpio.add("dev/null", &Node::CharDevice { mode: 0o666, major: 1, minor: 3 })?;
        cpio.add("init", &Node::Symlink { target: relative(INIT_AGENT_PATH) })?;
    }
    cpio.add("belljar", &dir(0o755))?;
    cpio.add(relative(INIT_AGENT_PATH), &Node::File { mode: 0o755, content: spec.agent })?;
    cpio.add(relative(INIT_MODULE_DIR), &dir(0o755))?;
    let mut paths = Vec::new();
    for (name, content) in spec.modules {
        let path = format!("{INIT_MODULE_DIR}/{name}.ko");
        cpio.add(relative(&path), &Node::File { mode: 0o644, content })?;
        paths.push(path);
    }
    let config =
        postcard::to_allocvec(&InitConfig { modules: paths, root: spec.root.clone() }).map_err(io::Error::other)?;
    cpio.add(relative(INIT_CONFIG_PATH), &Node::File { mode: 0o644, content: &config })?;
    cpio.finish()
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
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
    use super::cpio::tests::{Entry, read};
    use super::*;
    use crate::decompress::tests::{gzip, pack_with};
    use belljar_proto::message::Source;
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

    fn entry<'a>(entries: &'a [Entry], name: &str) -> &'a Entry {
        entries.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn the_agent_finds_what_it_was_promised() {
        let modules = [("a".to_owned(), b"A".to_vec()), ("b_b".to_owned(), b"B".to_vec())];
        let entries = read(&bytes(&spec(&modules, true)));
        assert_eq!(entry(&entries, "belljar/agent").content, b"\x7fELF agent");
        assert_eq!(entry(&entries, "belljar/agent").mode, 0o100_755);
        assert_eq!(entry(&entries, "init").content, b"belljar/agent");
        assert_eq!(entry(&entries, "dev/console").device, (5, 1));
        let config: InitConfig = postcard::from_bytes(&entry(&entries, "belljar/init.conf").content).unwrap();
        assert_eq!(config.modules, ["/belljar/modules/a.ko", "/belljar/modules/b_b.ko"]);
        assert_eq!(entry(&entries, "belljar/modules/b_b.ko").content, b"B");
        // A directory comes before what is in it: the kernel makes none on its own.
        for (i, e) in entries.iter().enumerate() {
            if let Some((parent, _)) = e.name.rsplit_once('/') {
                assert!(entries[..i].iter().any(|d| d.name == parent), "{}", e.name);
            }
        }
    }

    #[test]
    fn the_same_in_the_same_out() {
        assert_eq!(bytes(&spec(&[], true)), bytes(&spec(&[], true)));
    }

    #[test]
    fn an_addition_overrides_nothing() {
        let entries = read(&bytes(&spec(&[], false)));
        assert!(entries.iter().all(|e| e.name == "belljar" || e.name.starts_with("belljar/")));
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
