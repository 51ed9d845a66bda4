//! What there is to know of a tree without mounting it, kept behind its file system.
//!
//! ```text
//! … file system │ JSON, zeros │ "BELLJAR1" │ bytes of JSON and zeros (64 bits, little-endian)
//! ```

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

use crate::{
    sink::BLOCK,
    tree::{Body, Extent, NodeId, Tree},
};

const MARK: &[u8; 8] = b"BELLJAR1";
/// Bytes at most.
const MOST: u64 = 1 << 20;
/// Programs that a root has; the first found says what processor it is for.
const PROGRAMS: &[&str] = &["bin/sh", "usr/bin/sh", "bin/busybox", "usr/bin/env", "bin/true", "sbin/init"];
/// First processes that a system has of its own, from the root on: where the kernel looks for one, and systemd.
pub const INITS: [&str; 6] =
    ["sbin/init", "etc/init", "bin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "usr/sbin/init"];
/// Releases of kernels with modules that are told of.
const MOST_RELEASES: usize = 64;

/// What is known of a root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// For which processor its programs are, by the number in their ELF headers; none where that cannot be seen.
    pub machine: Option<u16>,
    /// Whether it has a `/bin/sh`.
    pub shell: bool,
    /// The first process that it has of its own, if any.
    pub init: Option<String>,
    /// The releases of kernels for which it has modules.
    pub modules: Vec<String>,
    /// Extended attributes that are not kept, some of them: the file system cannot hold them, or they would tell things to that which is put over it.
    pub left_out: Vec<String>,
    /// Of a directory, what was passed over, some of it: sockets, and what is mounted in it.
    #[serde(default)]
    pub passed_over: Vec<String>,
}

impl Facts {
    /// Looks at a tree whose bytes are in `file`.
    pub(crate) fn of(tree: &mut Tree, file: &File) -> Self {
        let programs: Vec<_> = PROGRAMS.iter().filter_map(|path| Some((*path, tree.find(path.as_bytes())?))).collect();
        let machine = programs.iter().find_map(|(_, id)| elf_machine(tree, *id, file));
        let init = INITS.iter().find(|path| is_program(tree, path)).map(|path| format!("/{path}"));
        Self {
            machine,
            shell: programs.iter().any(|(path, _)| path.ends_with("/sh")),
            init,
            modules: modules(tree),
            left_out: tree.left_out(),
            passed_over: Vec::new(),
        }
    }

    /// Puts them behind the file system, which ends with the file.
    pub(crate) fn append(&self, file: &File) -> io::Result<()> {
        let at = file.metadata()?.len();
        let mut bytes = serde_json::to_vec(self)?;
        bytes.resize((bytes.len() + MARK.len() + 8).next_multiple_of(BLOCK) - MARK.len() - 8, 0);
        let length = bytes.len() as u64;
        bytes.extend(MARK);
        bytes.extend(length.to_le_bytes());
        file.write_all_at(&bytes, at)
    }

    /// Reads what is behind a file system.
    ///
    /// # Errors
    /// Where there is nothing of the kind.
    pub fn read(file: &File) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "nothing is known of the file system in it");
        let size = file.metadata()?.len();
        let end = size.checked_sub(16).ok_or_else(wrong)?;
        let mut tail = [0; 16];
        file.read_exact_at(&mut tail, end)?;
        let (mark, length) = tail.split_at(8);
        let length = length.try_into().map(u64::from_le_bytes).map_err(|_| wrong())?;
        if mark != MARK || length > MOST || length > end {
            return Err(wrong());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| wrong())?];
        file.read_exact_at(&mut bytes, end - length)?;
        let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        Ok(serde_json::from_slice(&bytes[..used])?)
    }
}

fn is_program(tree: &mut Tree, path: &str) -> bool {
    let Some(id) = tree.find(path.as_bytes()) else { return false };
    tree.node(id).is_some_and(|node| matches!(node.body, Body::File(_)) && node.mode & 0o111 != 0)
}

fn elf_machine(tree: &Tree, id: NodeId, file: &File) -> Option<u16> {
    let Body::File(Extent { block, size }) = tree.node(id)?.body else { return None };
    let mut head = [0; 20];
    if size < head.len() as u64 {
        return None;
    }
    file.read_exact_at(&mut head, u64::from(block) * BLOCK as u64).ok()?;
    let machine = [head[18], head[19]];
    head.starts_with(b"\x7fELF").then(|| match head[5] {
        1 => u16::from_le_bytes(machine),
        _ => u16::from_be_bytes(machine),
    })
}

fn modules(tree: &mut Tree) -> Vec<String> {
    let Some(all) = tree.find(b"lib/modules") else { return Vec::new() };
    let Some(all) = tree.directory(all) else { return Vec::new() };
    let has_some = |child: NodeId| {
        tree.directory(child)
            .is_some_and(|own| [&b"modules.dep"[..], b"kernel"].iter().any(|name| own.children.contains_key(*name)))
    };
    let named = all.children.iter().filter(|(_, child)| has_some(child.node));
    named.filter_map(|(name, _)| String::from_utf8(name.to_vec()).ok()).take(MOST_RELEASES).collect()
}
