//! Initramfs archives with the agent: one that stands alone, or an addition to somebody else's.
//!
//! What is in ours, for the agent ([`crate::message`]):
//!
//! ```text
//! /belljar/agent          the agent, static
//! /belljar/init.conf      InitConfig, postcard
//! /belljar/modules/*.ko   unpacked modules
//! /init -> belljar/agent  only in an archive that stands alone, as are /dev, /proc, /sys, /run,
//! /dev/console, /dev/null and /tmp
//! ```

mod cpio;

use std::io::{self, Write};

pub use cpio::{Node, Writer};

use crate::frame::to_bytes;
use crate::message::{INIT_AGENT_PATH, INIT_CONFIG_PATH, INIT_MODULE_DIR, InitConfig, InitRoot};

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
    let config = to_bytes(&InitConfig { modules: paths, root: spec.root.clone() }).map_err(io::Error::other)?;
    cpio.add(relative(INIT_CONFIG_PATH), &Node::File { mode: 0o644, content: &config })?;
    cpio.finish()
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::cpio::tests::{Entry, read};
    use super::*;
    use crate::message::Source;

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
}
