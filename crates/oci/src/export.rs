//! The files of an image as one tar archive, for an engine that is to import them.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Read, Write},
};

use tar::{Builder, EntryType, Header};

use crate::{
    image::Part,
    sink::BLOCK,
    tree::{Body, Node, NodeId, ROOT, Tree},
};

/// Bytes of a name that fit into a header.
const SHORT: usize = 100;

/// Writes all files of a tree whose bytes are in `data`.
pub(crate) fn write(tree: &Tree, data: &File, out: &File) -> io::Result<()> {
    let mut tar = Builder::new(BufWriter::with_capacity(1 << 20, out));
    let mut named: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut todo: Vec<(NodeId, Vec<u8>)> = vec![(ROOT, b"./".to_vec())];
    while let Some((id, path)) = todo.pop() {
        let Some(node) = tree.node(id) else { continue };
        if node.names > 1
            && let Some(first) = named.get(&id)
        {
            add(&mut tar, node, &path, Some((EntryType::Link, first)), data)?;
            continue;
        }
        let link = match &node.body {
            Body::Symlink(to) => Some((EntryType::Symlink, to)),
            _ => None,
        };
        add(&mut tar, node, &path, link, data)?;
        if let Body::Directory(directory) = &node.body {
            // The last is taken first.
            todo.extend(directory.children.iter().rev().map(|(name, child)| {
                let end: &[u8] = if tree.directory(child.node).is_some() { b"/" } else { b"" };
                (child.node, [&path, &**name, end].concat())
            }));
        }
        if node.names > 1 {
            named.insert(id, path);
        }
    }
    tar.into_inner()?.flush()
}

fn add(
    tar: &mut Builder<BufWriter<&File>>,
    node: &Node,
    path: &[u8],
    link: Option<(EntryType, &Vec<u8>)>,
    data: &File,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    let mut size = 0;
    let mut part = None;
    header.set_entry_type(match (&link, &node.body) {
        (Some((kind, _)), _) => *kind,
        (None, Body::Directory(_)) => EntryType::Directory,
        (None, Body::CharDevice(_)) => EntryType::Char,
        (None, Body::BlockDevice(_)) => EntryType::Block,
        (None, Body::Fifo) => EntryType::Fifo,
        (None, Body::File(extent)) => {
            size = extent.size;
            let written = Part { file: data, at: u64::from(extent.block) * BLOCK as u64, left: extent.size };
            // Zeros at the end of the last file are in no block that was written.
            part = Some(written.chain(io::repeat(0)).take(extent.size));
            EntryType::Regular
        }
        // Never without its link.
        (None, Body::Symlink(_)) => EntryType::Symlink,
    });
    if let Body::CharDevice(number) | Body::BlockDevice(number) = node.body {
        header.set_device_major((number >> 8) & 0xfff)?;
        header.set_device_minor((number & 0xff) | ((number >> 12) & 0xfff00))?;
    }
    header.set_mode(node.mode.into());
    header.set_uid(node.owner.0.into());
    header.set_gid(node.owner.1.into());
    header.set_mtime(u64::try_from(node.mtime.0).unwrap_or(0));
    header.set_size(size);
    let mut more: Vec<(String, &[u8])> = Vec::new();
    let old = header.as_old_mut();
    if path.len() <= SHORT {
        old.name[..path.len()].copy_from_slice(path);
    } else {
        more.push(("path".to_owned(), path));
    }
    if let Some((_, to)) = link {
        if to.len() <= SHORT {
            old.linkname[..to.len()].copy_from_slice(to);
        } else {
            more.push(("linkpath".to_owned(), to));
        }
    }
    for (name, value) in &node.attributes {
        more.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value));
    }
    if !more.is_empty() {
        tar.append_pax_extensions(more.iter().map(|(key, value)| (key.as_str(), *value)))?;
    }
    header.set_cksum();
    match part {
        Some(part) => tar.append(&header, part),
        None => tar.append(&header, io::empty()),
    }
}
