//! The tree of files that layers make, one put over the other, as an engine would see it.
//!
//! Nothing is unpacked: of a file the tree knows where its bytes are. A path of a layer is walked within the tree, links included, so that
//! none leads out of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    archive::{Entry, Kind, LayerError, shown},
    erofs,
    limits::{Exceeded, Limits, MAX_HOPS, MAX_NAME, MAX_PATH},
};

/// What begins the name of a file that says that another is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The name of one that says that nothing of lower layers is in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What begins the names of a union file system's own files.
const OF_UNION: &[u8] = b".wh..wh.";
/// Attributes by which an overlay file system, which is put over the tree, would be told things.
const OF_OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Names of attributes that are told of.
const MOST_LEFT_OUT: usize = 8;
/// About what an entry takes in memory beside its names.
const OVERHEAD: u64 = 128;

pub(crate) type NodeId = u32;
pub(crate) const ROOT: NodeId = 0;

/// Bytes of a file, in blocks of the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) block: u32,
    pub(crate) size: u64,
}

/// A file of whatever kind.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// How many names it has; of a directory it is one.
    pub(crate) names: u32,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Directory(Directory),
    File(Extent),
    Symlink(Vec<u8>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Child>,
    pub(crate) parent: NodeId,
    depth: u16,
    /// The last layer that says something of it or of what is in it.
    touched: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) node: NodeId,
    /// The layer that it is of.
    layer: u32,
}

/// A tree under way.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    limits: Limits,
    layer: u32,
    /// Whether the archive is a layer, in which some names say that something is gone.
    is_layer: bool,
    metadata: u64,
    steps: u64,
    /// Attributes that are not kept.
    left_out: BTreeSet<String>,
    /// Bytes of files that are not in the tree any more.
    freed: Vec<Extent>,
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// All is done.
    All,
    /// The bytes of this file are wanted.
    File(NodeId),
}

impl Tree {
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Node {
            mode: 0o755,
            owner: (0, 0),
            mtime: (0, 0),
            attributes: BTreeMap::new(),
            names: 1,
            body: Body::Directory(Directory::default()),
        };
        Self {
            nodes: vec![root],
            limits,
            layer: 0,
            is_layer: true,
            metadata: 0,
            steps: 0,
            left_out: BTreeSet::new(),
            freed: Vec::new(),
        }
    }

    /// What follows is of the next archive, which is a layer or a whole root.
    pub(crate) fn begin(&mut self, is_layer: bool) {
        self.layer += 1;
        self.is_layer = is_layer;
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    pub(crate) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id)?.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.nodes.get_mut(id as usize)?.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(directory)?.children.get(name).copied()
    }

    /// The names of extended attributes that are not kept, some of them.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.left_out.iter().cloned().collect()
    }

    /// Bytes that no file has any more, since this was asked last.
    pub(crate) fn take_freed(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.freed)
    }

    /// Says where the bytes of a file are.
    pub(crate) fn put(&mut self, file: NodeId, extent: Extent) {
        if let Some(Node { body: Body::File(place), .. }) = self.nodes.get_mut(file as usize) {
            *place = extent;
        }
    }

    /// Puts an entry in.
    pub(crate) fn apply(&mut self, entry: Entry) -> Result<Done, LayerError> {
        let wrong = |what: &str| LayerError::Entry { name: shown(&entry.path), what: what.to_owned() };
        let names = names_of(&entry.path).map_err(|what| wrong(&what))?;
        self.count(entry.path.len() as u64 + OVERHEAD)?;
        let Some((name, above)) = names.split_last() else {
            // The root itself.
            if entry.kind != Kind::Directory {
                return Err(wrong("it would be in the place of the root directory"));
            }
            self.tell_of(ROOT, entry)?;
            return Ok(Done::All);
        };
        if self.is_layer && name.starts_with(WHITEOUT) {
            self.white_out(above, name).map_err(|trouble| trouble.of(&entry.path))?;
            return Ok(Done::All);
        }
        let parent = self.walk(above, true).map_err(|trouble| trouble.of(&entry.path))?;
        let Some(parent) = parent else { return Err(wrong("there is no directory for it")) };
        self.touch(parent);
        let there = self.child(parent, name);
        if let Kind::Hardlink(target) = &entry.kind {
            let target = self.hard_link_target(target).map_err(|what| wrong(&what))?;
            if there.is_some_and(|there| there.node == target) {
                return Ok(Done::All);
            }
            if let Some(node) = self.nodes.get_mut(target as usize) {
                node.names += 1;
            }
            self.remove(parent, name);
            self.insert(parent, name, target);
            return Ok(Done::All);
        }
        if entry.kind == Kind::Directory
            && let Some(there) = there.filter(|there| self.directory(there.node).is_some())
        {
            self.tell_of(there.node, entry)?;
            self.touch(there.node);
            return Ok(Done::All);
        }
        self.remove(parent, name);
        let (name, kind) = (name.to_vec(), entry.kind.clone());
        let body = match kind {
            Kind::Directory => {
                return self.make_directory(parent, &name).and_then(|id| self.tell_of(id, entry)).map(|()| Done::All);
            }
            Kind::File | Kind::Hardlink(_) => Body::File(Extent::default()),
            Kind::Symlink(to) => {
                if to.is_empty() || to.len() > MAX_PATH || to.contains(&0) {
                    return Err(wrong("it is a symbolic link that leads nowhere"));
                }
                self.count(to.len() as u64)?;
                Body::Symlink(to)
            }
            Kind::CharDevice(number) => Body::CharDevice(number),
            Kind::BlockDevice(number) => Body::BlockDevice(number),
            Kind::Fifo => Body::Fifo,
        };
        let is_file = matches!(body, Body::File(_));
        let id = self.add(body)?;
        self.tell_of(id, entry)?;
        self.insert(parent, &name, id);
        Ok(if is_file { Done::File(id) } else { Done::All })
    }

    /// The node of a path, for whoever looks at the finished tree; links are followed.
    pub(crate) fn find(&mut self, path: &[u8]) -> Option<NodeId> {
        let names = names_of(path).ok()?;
        let (name, above) = names.split_last()?;
        let mut at = self.walk(above, false).ok()??;
        let mut name = name.to_vec();
        for _ in 0..MAX_HOPS {
            let node = self.child(at, &name)?.node;
            let Body::Symlink(to) = &self.node(node)?.body else { return Some(node) };
            let to = to.clone();
            let from = if to.starts_with(b"/") { ROOT } else { at };
            let parts: Vec<Vec<u8>> = parts_of(&to);
            let (last, above) = parts.split_last()?;
            at = self.walk_from(from, above.to_vec(), false).ok()??;
            match last.as_slice() {
                b".." => return self.directory(at).map(|directory| directory.parent),
                b"." => return Some(at),
                last => name = last.to_vec(),
            }
        }
        None
    }

    fn add(&mut self, body: Body) -> Result<NodeId, Exceeded> {
        let most = self.limits.entries;
        let id = NodeId::try_from(self.nodes.len()).ok().filter(|&id| u64::from(id) < most);
        let id = id.ok_or(Exceeded::Entries(most))?;
        let node = Node { mode: 0, owner: (0, 0), mtime: (0, 0), attributes: BTreeMap::new(), names: 1, body };
        self.nodes.push(node);
        Ok(id)
    }

    fn count(&mut self, bytes: u64) -> Result<(), Exceeded> {
        self.metadata += bytes;
        if self.metadata > self.limits.metadata { Err(Exceeded::Metadata(self.limits.metadata)) } else { Ok(()) }
    }

    fn step(&mut self, steps: u64) -> Result<(), Trouble> {
        self.steps += steps;
        let most = self.limits.steps;
        if self.steps > most { Err(Trouble::Made(Exceeded::Steps(most).into())) } else { Ok(()) }
    }

    /// Gives a file what an entry says of it.
    fn tell_of(&mut self, id: NodeId, entry: Entry) -> Result<(), LayerError> {
        let Entry { mode, owner, mtime, mut attributes, .. } = entry;
        let is_kept =
            |name: &[u8]| !OF_OVERLAY.iter().any(|own| name.starts_with(own)) && erofs::attribute(name).is_some();
        for name in attributes.keys().filter(|name| !is_kept(name)) {
            if self.left_out.len() < MOST_LEFT_OUT {
                self.left_out.insert(shown(name));
            }
        }
        attributes.retain(|name, _| is_kept(name));
        let size: usize = attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let named_well = attributes.keys().all(|name| !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&0));
        if size > self.limits.attributes || !named_well {
            return Err(Exceeded::Attributes(self.limits.attributes).into());
        }
        self.count(size as u64)?;
        if let Some(node) = self.nodes.get_mut(id as usize) {
            (node.mode, node.owner, node.mtime, node.attributes) = (mode, owner, mtime, attributes);
        }
        Ok(())
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        let child = Child { node, layer: self.layer };
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), child);
        }
    }

    fn make_directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, LayerError> {
        let depth = self.directory(parent).map_or(0, |above| above.depth) + 1;
        if depth > self.limits.depth {
            return Err(Exceeded::Depth(self.limits.depth).into());
        }
        self.count(name.len() as u64 + OVERHEAD)?;
        let directory = Directory { parent, depth, touched: self.layer, ..Directory::default() };
        let id = self.add(Body::Directory(directory))?;
        if let Some(node) = self.nodes.get_mut(id as usize) {
            node.mode = 0o755;
        }
        self.insert(parent, name, id);
        Ok(id)
    }

    /// Notes that this layer says something of what is in a directory.
    fn touch(&mut self, mut at: NodeId) {
        let layer = self.layer;
        while let Some(directory) = self.directory_mut(at) {
            if directory.touched == layer {
                return;
            }
            directory.touched = layer;
            if at == ROOT {
                return;
            }
            at = directory.parent;
        }
    }

    /// Walks down from the root.
    fn walk(&mut self, names: &[&[u8]], make: bool) -> Result<Option<NodeId>, Trouble> {
        self.walk_from(ROOT, names.iter().map(|name| name.to_vec()).collect(), make)
    }

    /// Walks down directories, through links, never above the root. Makes what is not there, or gives nothing.
    fn walk_from(&mut self, mut at: NodeId, names: Vec<Vec<u8>>, make: bool) -> Result<Option<NodeId>, Trouble> {
        let mut names = VecDeque::from(names);
        let mut hops = 0;
        while let Some(name) = names.pop_front() {
            self.step(1)?;
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    at = self.directory(at).map_or(ROOT, |directory| directory.parent);
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.child(at, &name) else {
                if !make {
                    return Ok(None);
                }
                at = self.make_directory(at, &name).map_err(Trouble::Made)?;
                continue;
            };
            match &self.nodes[child.node as usize].body {
                Body::Directory(_) => at = child.node,
                Body::Symlink(to) => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(Trouble::Wrong("links above it lead in a circle".to_owned()));
                    }
                    if to.starts_with(b"/") {
                        at = ROOT;
                    }
                    for part in parts_of(to).into_iter().rev() {
                        names.push_front(part);
                    }
                }
                _ => return Err(Trouble::Wrong(format!("{:?} above it is no directory", shown(&name)))),
            }
        }
        Ok(Some(at))
    }

    /// What a hard link is another name of.
    fn hard_link_target(&mut self, path: &[u8]) -> Result<NodeId, String> {
        let missing = || format!("it is a hard link to {:?}, which is not there", shown(path));
        let names = names_of(path)?;
        let (name, above) = names.split_last().ok_or_else(missing)?;
        let parent = match self.walk(above, false) {
            Ok(Some(parent)) => parent,
            Ok(None) => return Err(missing()),
            Err(Trouble::Wrong(what)) => return Err(what),
            Err(Trouble::Made(error)) => return Err(error.to_string()),
        };
        let target = self.child(parent, name).ok_or_else(missing)?.node;
        match self.node(target) {
            Some(node) if matches!(node.body, Body::Directory(_)) => {
                Err(format!("it is a hard link to {:?}, which is a directory", shown(path)))
            }
            Some(node) if node.names == u32::MAX => Err("it has too many names".to_owned()),
            Some(_) => Ok(target),
            None => Err(missing()),
        }
    }

    /// Does what a layer says is gone.
    fn white_out(&mut self, above: &[&[u8]], name: &[u8]) -> Result<(), Trouble> {
        let gone = &name[WHITEOUT.len()..];
        if name != OPAQUE && name.starts_with(OF_UNION) {
            return Ok(());
        }
        if matches!(gone, b"" | b"." | b"..") {
            return Err(Trouble::Wrong("it says that something is gone which has no name".to_owned()));
        }
        let Some(directory) = self.walk(above, false)? else { return Ok(()) };
        if name == OPAQUE {
            return self.remove_older(directory);
        }
        let Some(child) = self.child(directory, gone) else { return Ok(()) };
        match self.directory(child.node) {
            Some(inner) if inner.touched == self.layer => self.remove_older(child.node)?,
            None if child.layer == self.layer => {}
            _ => self.remove(directory, gone),
        }
        Ok(())
    }

    /// Removes what is in a directory and not of this layer.
    fn remove_older(&mut self, directory: NodeId) -> Result<(), Trouble> {
        let mut todo = vec![directory];
        while let Some(at) = todo.pop() {
            self.step(self.directory(at).map_or(0, |here| here.children.len() as u64))?;
            let Some(here) = self.directory(at) else { continue };
            let mut old = Vec::new();
            for (name, child) in &here.children {
                match self.directory(child.node) {
                    Some(inner) if inner.touched == self.layer => todo.push(child.node),
                    None if child.layer == self.layer => {}
                    _ => old.push(name.clone()),
                }
            }
            for name in old {
                self.remove(at, &name);
            }
        }
        Ok(())
    }

    /// Removes a name, and what has no other.
    fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let removed = self.directory_mut(parent).and_then(|directory| directory.children.remove(name));
        let mut todo: Vec<NodeId> = removed.map(|child| child.node).into_iter().collect();
        while let Some(id) = todo.pop() {
            let Some(node) = self.nodes.get_mut(id as usize) else { continue };
            node.names = node.names.saturating_sub(1);
            if node.names > 0 {
                continue;
            }
            // What remains of it is its place.
            match std::mem::replace(&mut node.body, Body::Fifo) {
                Body::Directory(directory) => todo.extend(directory.children.values().map(|child| child.node)),
                Body::File(extent) if extent.size > 0 => self.freed.push(extent),
                _ => {}
            }
            node.attributes = BTreeMap::new();
        }
    }
}

/// Why a path cannot be walked.
enum Trouble {
    Wrong(String),
    Made(LayerError),
}

impl Trouble {
    fn of(self, name: &[u8]) -> LayerError {
        match self {
            Self::Wrong(what) => LayerError::Entry { name: shown(name), what },
            Self::Made(error) => error,
        }
    }
}

/// What a link says, name by name.
fn parts_of(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The names of an archive's path, which starts at the root whatever it begins with.
fn names_of(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.len() > MAX_PATH {
        return Err(format!("its path is longer than {MAX_PATH} bytes"));
    }
    if path.contains(&0) {
        return Err("its name has a NUL in it".to_owned());
    }
    let mut names = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("its path leads out of the tree".to_owned()),
            name if name.len() > MAX_NAME => return Err(format!("a name in its path is longer than {MAX_NAME} bytes")),
            name => names.push(name),
        }
    }
    Ok(names)
}
