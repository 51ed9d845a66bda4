//! Writes a tree as an EROFS file system, which Linux 5.4 and later mount, read-only and uncompressed.
//!
//! ```text
//! block 0          superblock, at byte 1024
//! from block 1     the bytes of files, each from the beginning of a block
//! then             inodes, with their attributes and what short links say behind them, the root first
//! then             names in directories, and what long links say, each from the beginning of a block
//! ```
//!
//! The layout is that of the kernel's `fs/erofs/erofs_fs.h`. Nothing is compressed or shared, so that no feature is needed which the first versions do not
//! have. Of the same tree the same bytes come.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
};

use crate::{
    sink::BLOCK,
    tree::{Body, Directory, Extent, Node, NodeId, ROOT, Tree},
};

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_AT: u64 = 1024;
const BLOCK_BITS: u8 = 12;
/// Bytes of an inode (`erofs_inode_extended`), and of the slots by whose number one is named.
const INODE: usize = 64;
const SLOT: usize = 32;
/// Where the first inode is among the inodes: its number is not 0, which means that a directory's entry is none.
const FIRST: u64 = 2048;
/// Bytes of an entry in a directory, beside its name.
const ENTRY: usize = 12;
/// Bytes before the attributes of an inode.
const ATTRIBUTES_HEADER: usize = 12;

/// How an inode's bytes are kept (`i_format`: an extended inode, and its layout).
const PLAIN: u16 = 1;
const INLINE: u16 = 1 | 2 << 1;

/// The beginnings of attributes' names, which are written as numbers. The longest are first.
const PREFIXES: &[(&[u8], u8)] = &[
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"user.", 1),
];

/// Where an inode is, and what it needs beside.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Its byte among the inodes; 0 if it has none.
    at: u64,
    /// The first block of its bytes.
    block: u32,
    size: u64,
    inline: bool,
    /// Directories in it.
    inner: u32,
}

/// Writes all but the bytes of files, from the block `next` on. Gives the number of blocks of the file system.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write(tree: &Tree, file: &File, next: u32) -> io::Result<u32> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, "the file system has too many blocks");
    let order = in_order(tree);
    let mut places: HashMap<NodeId, Place> = HashMap::with_capacity(order.len());
    let mut at = FIRST;
    for &id in &order {
        let Some(node) = tree.node(id) else { continue };
        let (place, after) = place(tree, node, at);
        places.insert(id, place);
        at = after;
    }
    let inode_blocks = u32::try_from(at.div_ceil(BLOCK as u64)).map_err(|_| too_large())?;
    let first_block = next.checked_add(inode_blocks).ok_or_else(too_large)?;
    let mut end = first_block;
    for &id in &order {
        let (Some(node), Some(place)) = (tree.node(id), places.get_mut(&id)) else { continue };
        match &node.body {
            Body::File(Extent { block, .. }) => place.block = *block,
            Body::Directory(_) | Body::Symlink(_) if !place.inline => {
                place.block = end;
                let blocks = u32::try_from(place.size.div_ceil(BLOCK as u64)).map_err(|_| too_large())?;
                end = end.checked_add(blocks).ok_or_else(too_large)?;
            }
            _ => {}
        }
    }
    let mut out = BufWriter::with_capacity(1 << 20, At { file, at: u64::from(next) * BLOCK as u64 });
    let mut at = 0;
    for (number, &id) in (1_u32..).zip(&order) {
        let (Some(node), Some(place)) = (tree.node(id), places.get(&id)) else { continue };
        let bytes = inode(node, place, number);
        pad(&mut out, place.at - at)?;
        out.write_all(&bytes)?;
        at = place.at + bytes.len() as u64;
    }
    pad(&mut out, u64::from(inode_blocks) * BLOCK as u64 - at)?;
    let number_of = |id: NodeId| places.get(&id).map_or(0, |place| place.at / SLOT as u64);
    for &id in &order {
        let (Some(node), Some(place)) = (tree.node(id), places.get(&id)) else { continue };
        let written = match &node.body {
            Body::Directory(directory) => {
                write_names(&mut out, &names_of(tree, id, directory), number_of)?;
                place.size
            }
            Body::Symlink(to) if !place.inline => {
                out.write_all(to)?;
                to.len() as u64
            }
            _ => 0,
        };
        pad(&mut out, written.next_multiple_of(BLOCK as u64) - written)?;
    }
    out.flush()?;
    let root = u16::try_from(number_of(ROOT)).map_err(|_| too_large())?;
    file.write_all_at(&superblock(root, order.len() as u64, end, next), SUPERBLOCK_AT)?;
    file.set_len(u64::from(end) * BLOCK as u64)?;
    Ok(end)
}

/// Writes on at a place of a file.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pad(out: &mut impl Write, mut bytes: u64) -> io::Result<()> {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    while bytes > 0 {
        let piece = usize::try_from(bytes).unwrap_or(BLOCK).min(BLOCK);
        out.write_all(&ZEROS[..piece])?;
        bytes -= piece as u64;
    }
    Ok(())
}

/// All files, each once, the root first and what is in a directory together.
fn in_order(tree: &Tree) -> Vec<NodeId> {
    let mut order = vec![ROOT];
    let mut seen = std::collections::HashSet::from([ROOT]);
    let mut at = 0;
    while let Some(&id) = order.get(at) {
        at += 1;
        let Some(directory) = tree.directory(id) else { continue };
        order.extend(directory.children.values().map(|child| child.node).filter(|&id| seen.insert(id)));
    }
    order
}

/// Where an inode goes, which may be at `at`, and where the next one may be.
fn place(tree: &Tree, node: &Node, at: u64) -> (Place, u64) {
    let own = INODE + attributes_size(node);
    let offset = (at % BLOCK as u64) as usize;
    let (size, inner) = match &node.body {
        Body::Directory(directory) => {
            let inner = directory.children.values().filter(|child| tree.directory(child.node).is_some()).count();
            (names_size(directory), inner as u32)
        }
        Body::File(extent) => (extent.size, 0),
        Body::Symlink(to) => (to.len() as u64, 0),
        Body::CharDevice(_) | Body::BlockDevice(_) | Body::Fifo => (0, 0),
    };
    let link = if let Body::Symlink(to) = &node.body { to.len() } else { 0 };
    // What is behind an inode is in one block with it.
    let inline = link > 0 && own + link <= BLOCK;
    let whole = if inline { own + link } else { INODE };
    let start = if offset + whole > BLOCK { at.next_multiple_of(BLOCK as u64) } else { at };
    let end = start + (own + if inline { link } else { 0 }) as u64;
    (Place { at: start, block: 0, size, inline, inner }, end.next_multiple_of(SLOT as u64))
}

/// The number of an attribute's prefix, and the rest of its name; none if the file system cannot hold it.
pub(crate) fn attribute(name: &[u8]) -> Option<(u8, &[u8])> {
    let split = PREFIXES.iter().find_map(|&(prefix, index)| Some((prefix, index, name.strip_prefix(prefix)?)));
    // A prefix that is a whole name has nothing behind it, and all others have.
    split.filter(|(prefix, _, rest)| prefix.ends_with(b".") != rest.is_empty()).map(|(_, index, rest)| (index, rest))
}

/// The attributes that the file system can hold, as it writes them.
fn attributes(node: &Node) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in &node.attributes {
        let Some((index, rest)) = attribute(name) else { continue };
        let (Ok(length), Ok(size)) = (u8::try_from(rest.len()), u16::try_from(value.len())) else { continue };
        bytes.extend([length, index]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn attributes_size(node: &Node) -> usize {
    if node.attributes.is_empty() {
        return 0;
    }
    match attributes(node).len() {
        0 => 0,
        size => ATTRIBUTES_HEADER + size,
    }
}

/// An inode, with what is behind it.
fn inode(node: &Node, place: &Place, number: u32) -> Vec<u8> {
    let (kind, where_or_what) = match &node.body {
        Body::Directory(_) => (0o040_000, place.block),
        Body::File(_) => (0o100_000, place.block),
        Body::Symlink(_) => (0o120_000, place.block),
        Body::CharDevice(device) => (0o020_000, *device),
        Body::BlockDevice(device) => (0o060_000, *device),
        Body::Fifo => (0o010_000, 0),
    };
    let names = if matches!(node.body, Body::Directory(_)) { place.inner + 2 } else { node.names };
    let attributes = attributes(node);
    let count = if attributes.is_empty() { 0 } else { (1 + attributes.len() / 4) as u16 };
    let mut bytes = Vec::with_capacity(INODE + attributes.len() + ATTRIBUTES_HEADER);
    bytes.extend((if place.inline { INLINE } else { PLAIN }).to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend((kind | (node.mode & 0o7777)).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(place.size.to_le_bytes());
    bytes.extend(where_or_what.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    bytes.extend(node.owner.0.to_le_bytes());
    bytes.extend(node.owner.1.to_le_bytes());
    bytes.extend(node.mtime.0.to_le_bytes());
    bytes.extend(node.mtime.1.to_le_bytes());
    bytes.extend(names.to_le_bytes());
    bytes.resize(INODE, 0);
    if count > 0 {
        bytes.resize(INODE + ATTRIBUTES_HEADER, 0);
        bytes.extend(attributes);
    }
    if let Body::Symlink(to) = &node.body
        && place.inline
    {
        bytes.extend(to);
    }
    bytes
}

/// The names in a directory, in the order of their bytes, with what each is.
fn names_of<'a>(tree: &Tree, id: NodeId, directory: &'a Directory) -> Vec<(&'a [u8], NodeId, u8)> {
    let mut names: Vec<(&[u8], NodeId, u8)> = vec![(b".", id, 2), (b"..", directory.parent, 2)];
    names.extend(directory.children.iter().map(|(name, child)| {
        let kind = match tree.node(child.node).map(|node| &node.body) {
            Some(Body::File(_)) => 1,
            Some(Body::Directory(_)) => 2,
            Some(Body::CharDevice(_)) => 3,
            Some(Body::BlockDevice(_)) => 4,
            Some(Body::Fifo) => 5,
            Some(Body::Symlink(_)) => 7,
            None => 0,
        };
        (&**name, child.node, kind)
    }));
    names.sort_by_key(|&(name, ..)| name);
    names
}

/// How many names of these lengths go into each block, and the bytes that all take.
fn blocks_of(lengths: impl Iterator<Item = usize>) -> (Vec<usize>, u64) {
    let (mut blocks, mut here, mut used) = (Vec::new(), 0, 0);
    for length in lengths {
        if used + ENTRY + length > BLOCK {
            blocks.push(here);
            (here, used) = (0, 0);
        }
        here += 1;
        used += ENTRY + length;
    }
    let size = (blocks.len() * BLOCK + used) as u64;
    blocks.push(here);
    (blocks, size)
}

fn names_size(directory: &Directory) -> u64 {
    // In the order in which they are written: what fits into a block depends on it.
    let mut names: Vec<&[u8]> = vec![b".", b".."];
    names.extend(directory.children.keys().map(|name| &**name));
    names.sort_unstable();
    blocks_of(names.iter().map(|name| name.len())).1
}

fn write_names(
    out: &mut impl Write,
    names: &[(&[u8], NodeId, u8)],
    number_of: impl Fn(NodeId) -> u64,
) -> io::Result<()> {
    let (blocks, _) = blocks_of(names.iter().map(|(name, ..)| name.len()));
    let last = blocks.len() - 1;
    let mut rest = names;
    for (at, count) in blocks.into_iter().enumerate() {
        let (here, after) = rest.split_at(count);
        rest = after;
        let mut name_at = count * ENTRY;
        for &(name, id, kind) in here {
            out.write_all(&number_of(id).to_le_bytes())?;
            out.write_all(&(name_at as u16).to_le_bytes())?;
            out.write_all(&[kind, 0])?;
            name_at += name.len();
        }
        for (name, ..) in here {
            out.write_all(name)?;
        }
        if at < last {
            pad(out, (BLOCK - name_at) as u64)?;
        }
    }
    Ok(())
}

fn superblock(root: u16, inodes: u64, blocks: u32, inodes_at: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend([0; 8]); // no checksum, no feature that others may ignore
    bytes.extend([BLOCK_BITS, 0]);
    bytes.extend(root.to_le_bytes());
    bytes.extend(inodes.to_le_bytes());
    bytes.extend([0; 12]); // when it was made
    bytes.extend(blocks.to_le_bytes());
    bytes.extend(inodes_at.to_le_bytes());
    bytes.resize(128, 0);
    bytes
}
