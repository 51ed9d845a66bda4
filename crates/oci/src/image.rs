//! An image on disk: what it is, and what is in it.

mod index;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{
    archive::{self, LayerError, broken, shown},
    digest::{Digest, Hasher, Hashing},
    directory, erofs, export,
    facts::Facts,
    limits::{Exceeded, Limits},
    sink::{BLOCK, Sink},
    tree::{Done, Tree},
    unpack::{self, Packing},
};
use index::Place;

/// Names in an archive that may be parts of an image, at most.
const MOST_MEMBERS: usize = 200_000;
/// How deep lists of images may lie in one another.
const MOST_LISTS: usize = 4;
/// What the kernel's clock, by which files are stamped, does not tell apart.
const TICK: Duration = Duration::from_millis(20);
/// How often is waited for a directory that is being changed.
const MOST_TRIES: u32 = 50;
/// How many symbolic links one after another lead to a layer in an archive of docker's.
const MOST_LINKS: usize = 8;

/// Why an image cannot be read, or its file system not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no container image: {what}", path.display())]
    NoImage {
        /// What was looked at.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// There are several, or none of this name or for this processor.
    #[error("{} has {}; {mend}", path.display(), if names.is_empty() { "no image of a kind that is known".to_owned() } else { format!("the images {}", names.join(", ")) })]
    Choice {
        /// Where.
        path: PathBuf,
        /// What there is.
        names: Vec<String>,
        /// What to do.
        mend: String,
    },
    /// A part is not there.
    #[error("{}: {what} is not in it; get the image anew", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
        /// What.
        what: String,
    },
    /// A description in it cannot be read.
    #[error("{}: {what} cannot be read: {why}", path.display())]
    Description {
        /// Where.
        path: PathBuf,
        /// Which.
        what: String,
        /// Why not.
        why: String,
    },
    /// A part is not what its name says.
    #[error("{}: {what} is not what the image says: its digest is {found} instead of {wanted}; get the image anew", path.display())]
    Digest {
        /// Where.
        path: PathBuf,
        /// Which part.
        what: String,
        /// What the image says.
        wanted: Digest,
        /// What it is.
        found: Digest,
    },
    /// A layer, or the whole archive.
    #[error("{}: {what}: {source}", path.display())]
    Layer {
        /// Where.
        path: PathBuf,
        /// Which.
        what: String,
        /// What is wrong with it.
        source: LayerError,
    },
    /// What comes of it cannot be written.
    #[error("cannot write the file system of {}: {source}{}", path.display(), room(source))]
    Write {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn room(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, or name another directory with BELLJAR_CACHE_DIR"
        }
        _ => "",
    }
}

/// What an image says of the processes that run in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The processor, in the words of the image specification (`amd64`); empty if it says nothing.
    pub architecture: String,
    /// Variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// The user; none is root.
    pub user: Option<String>,
    /// The directory.
    pub working_dir: Option<String>,
}

/// An image that was looked at.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    config: Config,
    layers: Vec<Layer>,
    blobs: Blobs,
    limits: Limits,
}

/// One layer.
#[derive(Debug)]
struct Layer {
    /// What it is called where it is.
    name: String,
    /// The digest of its bytes as they are there, if it is known.
    digest: Option<Digest>,
    /// The digest of its archive; none if it is not a layer, but a whole root.
    diff: Option<Digest>,
}

/// Where the parts are.
#[derive(Debug)]
enum Blobs {
    /// In a directory.
    Layout,
    /// None: a directory is the root.
    Directory {
        /// By what a change of it is noticed.
        stamp: String,
    },
    /// In an archive, which is not packed.
    Archive { file: File, members: HashMap<Vec<u8>, Member> },
}

#[derive(Clone, Debug)]
enum Member {
    Data { at: u64, size: u64 },
    Link(Vec<u8>),
}

/// What is wanted of a place with several images.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The image's tag, or its name with the tag.
    pub tag: Option<&'a str>,
    /// The processor, in the words of the image specification, if there are some for several.
    pub architecture: &'a str,
}

/// A path, and what may be behind it after a colon: the tag of an image, or its whole name (`DIR:TAG`, `FILE:HOST/NAME:TAG`).
#[must_use]
pub fn split_tag(path: &Path) -> (PathBuf, Option<String>) {
    if path.symlink_metadata().is_ok() {
        return (path.to_owned(), None);
    }
    let text = path.to_str().unwrap_or_default();
    let mut parts = text.rmatch_indices(':').map(|(at, _)| (&text[..at], &text[at + 1..]));
    match parts.find(|(before, tag)| !tag.is_empty() && Path::new(before).exists()) {
        Some((before, tag)) => (before.into(), Some(tag.to_owned())),
        None => (path.to_owned(), None),
    }
}

/// By what the files of an image with these layers are known: all of them, as they are unpacked. None if one is no digest.
pub fn identity<'a>(layers: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut hasher = Hasher::Sha256(sha2::Digest::new());
    for layer in layers {
        hasher.update(Digest::parse(layer)?.to_string().as_bytes());
        hasher.update(b"\n");
    }
    let digest = hasher.finish();
    let [_, _, hex] = digest.path();
    Some(hex.to_owned())
}

/// Refuses a tag where there are no images to choose from.
fn untagged(path: &Path, wanted: Wanted<'_>, what: &str) -> Result<(), ImageError> {
    let Some(tag) = wanted.tag else { return Ok(()) };
    let what = format!("it is {what}, which has no tags: leave `:{}` out", shown(tag.as_bytes()));
    Err(ImageError::NoImage { path: path.to_owned(), what })
}

impl Image {
    /// Looks at an image: an OCI layout, an archive of one or of `docker save`, or the archive of a root. `scratch` makes files that go by
    /// themselves, for archives that are packed.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn open(
        path: &Path,
        wanted: Wanted<'_>,
        scratch: impl Fn() -> io::Result<File>,
        limits: Limits,
    ) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Open { path: path.to_owned(), source };
        let file = open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        let place = Place { path, blobs: Blobs::Layout };
        if kind.is_dir() {
            let has = |name: &str| path.join(name).symlink_metadata().is_ok();
            if has("index.json") && (has("oci-layout") || has("blobs")) {
                return place.of_index(wanted, limits);
            }
            if !has("manifest.json") && directory::is_root(path) {
                untagged(path, wanted, "a directory with a root")?;
                return Self::of_host(path, limits);
            }
            let what = if has("manifest.json") && has("version") {
                "it is a directory of skopeo's dir transport; copy it to an OCI layout (skopeo copy dir:DIR oci:DIR)"
            } else {
                "it is a directory that is no OCI layout, and no root either (it has none of bin, sbin, usr and etc)"
            };
            return Err(ImageError::NoImage { path: path.to_owned(), what: what.to_owned() });
        }
        if !kind.is_file() {
            let what = "it is neither a file nor a directory".to_owned();
            return Err(ImageError::NoImage { path: path.to_owned(), what });
        }
        Self::of_archive(path, file, wanted, scratch, limits)
    }

    /// A directory of the host's, whatever is in it.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn of_host(path: &Path, limits: Limits) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Layer { path: path.to_owned(), what: "the directory".into(), source };
        let mut tries = 0;
        let stamp = loop {
            let (stamp, last) = directory::stamp(path, &limits).map_err(failed)?;
            // A change within the same tick of the kernel's clock could not be told from this.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let age = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - last;
            if !(0..TICK.as_nanos().cast_signed()).contains(&age) {
                break stamp;
            }
            tries += 1;
            if tries > MOST_TRIES {
                return Err(failed(directory::changed(b".")));
            }
            std::thread::sleep(TICK);
        };
        let (config, blobs) = (Config::default(), Blobs::Directory { stamp });
        Ok(Self { path: path.to_owned(), config, layers: Vec::new(), blobs, limits })
    }

    /// By what it is noticed that anything in a directory was changed; none where the image is none. Whose files they are counts, too.
    #[must_use]
    pub fn stamp(&self) -> Option<&str> {
        match &self.blobs {
            Blobs::Directory { stamp } => Some(stamp),
            Blobs::Layout | Blobs::Archive { .. } => None,
        }
    }

    /// Whether the files of the user who runs this are root's in it.
    #[must_use]
    pub fn gives_files_to_root(&self) -> bool {
        self.stamp().is_some() && directory::Owners::of_this_process().change()
    }

    /// The same of an archive that is open; `path` is what to call it.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn of_archive(
        path: &Path,
        mut file: File,
        wanted: Wanted<'_>,
        scratch: impl Fn() -> io::Result<File>,
        limits: Limits,
    ) -> Result<Self, ImageError> {
        let of_archive = |source| ImageError::Layer { path: path.to_owned(), what: "the archive".into(), source };
        let mut head = [0; 6];
        let read = file.read_at(&mut head, 0).map_err(|error| of_archive(broken(error)))?;
        if Packing::of(&head[..read]) != Packing::None {
            let into = scratch().map_err(|source| ImageError::Write { path: path.to_owned(), source })?;
            spool(&file, &into, &limits).map_err(of_archive)?;
            file = into;
        }
        let members = members(&file).map_err(of_archive)?;
        let has = |name: &str| members.contains_key(name.as_bytes());
        let (is_layout, is_docker) = (has("index.json") && has("oci-layout"), has("manifest.json"));
        let place = Place { path, blobs: Blobs::Archive { file, members } };
        // One of docker's is told by its manifest, and may have the other beside.
        if is_docker && let Some(saved) = place.saved() {
            return place.of_docker(saved, wanted, limits);
        }
        if is_layout {
            return place.of_index(wanted, limits);
        }
        untagged(path, wanted, "the archive of a root")?;
        let layers = vec![Layer { name: String::new(), digest: None, diff: None }];
        Ok(Self { path: path.to_owned(), config: Config::default(), layers, blobs: place.blobs, limits })
    }

    /// What it says of processes in it.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// By what its files are known, as [`identity`] says; none of the archive of a root, which has no digest.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        if self.stamp().is_some() {
            return None;
        }
        let layers: Option<Vec<String>> =
            self.layers.iter().map(|layer| Some(layer.diff.as_ref()?.to_string())).collect();
        identity(layers?.iter().map(String::as_str))
    }

    /// Writes its files into an empty file, as a file system.
    ///
    /// # Errors
    /// See [`ImageError`]. What was written then is nothing.
    pub fn write(&self, file: &File) -> Result<Facts, ImageError> {
        let write = |source| ImageError::Write { path: self.path.clone(), source };
        let (mut tree, next, passed_over) = self.merge(file)?;
        erofs::write(&tree, file, next).map_err(write)?;
        let facts = Facts { passed_over, ..Facts::of(&mut tree, file) };
        facts.append(file).map_err(write)?;
        Ok(facts)
    }

    /// Writes its files into an empty file, as one tar archive. `scratch` takes their bytes meanwhile, and is of no use then.
    ///
    /// # Errors
    /// See [`ImageError`]. What was written then is nothing.
    pub fn export(&self, into: &File, scratch: &File) -> Result<(), ImageError> {
        let (tree, ..) = self.merge(scratch)?;
        export::write(&tree, scratch, into).map_err(|source| ImageError::Write { path: self.path.clone(), source })
    }

    /// Puts the layers together; the bytes of files go to `file`. Gives the block after them, and what of a directory was passed over.
    fn merge(&self, file: &File) -> Result<(Tree, u32, Vec<String>), ImageError> {
        let mut tree = Tree::new(self.limits.clone());
        let mut sink = Sink::new(file, 1, &self.limits);
        let mut left = self.limits.bytes;
        if self.layers.len() > self.limits.layers {
            let source = Exceeded::Layers(self.limits.layers).into();
            return Err(ImageError::Layer { path: self.path.clone(), what: "the image".into(), source });
        }
        let mut passed = Vec::new();
        if let Blobs::Directory { stamp } = &self.blobs {
            tree.begin(false);
            let read = directory::read(&self.path, &mut tree, &mut sink, &self.limits);
            passed = read.map_err(|source| self.of_directory(source))?;
            // What was changed behind the reader's back is in it as it was before, or as it is now.
            if directory::stamp(&self.path, &self.limits).map_err(|source| self.of_directory(source))?.0 != *stamp {
                return Err(self.of_directory(directory::changed(b".")));
            }
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let what = match &layer.diff {
                Some(diff) => format!("layer {} ({diff})", number + 1),
                None => "the archive".to_owned(),
            };
            let wrong = |source: LayerError| match source {
                LayerError::Write(source) => ImageError::Write { path: self.path.clone(), source },
                source => ImageError::Layer { path: self.path.clone(), what: what.clone(), source },
            };
            tree.begin(layer.diff.is_some());
            let (from, _) = self.place(layer)?;
            let mut packed = BufReader::with_capacity(1 << 18, Hashing::new(from, layer.digest.as_ref()));
            let unpacked = unpack::reader(&mut packed).map_err(|error| wrong(broken(error)))?;
            let mut counted =
                Counted { inner: Hashing::new(unpacked, layer.diff.as_ref()), left, most: self.limits.bytes };
            let applied = apply(&mut tree, &mut sink, &mut counted, layer.diff.is_some());
            left = counted.left;
            let of_archive = counted.inner.digest();
            drop(counted);
            let same = |what: &str, wanted: &Option<Digest>, found: Option<Digest>| match (wanted, found) {
                (Some(wanted), Some(found)) if *wanted != found => {
                    let (path, wanted) = (self.path.clone(), wanted.clone());
                    Err(ImageError::Digest { path, what: what.to_owned(), wanted, found })
                }
                _ => Ok(()),
            };
            let is_broken = !matches!(applied, Err(LayerError::Exceeded(_) | LayerError::Write(_)));
            if layer.digest.is_some() && is_broken {
                // What is behind the packed bytes counts, too. Of bytes that are others nothing else need be told.
                io::copy(&mut packed, &mut io::sink()).map_err(|error| wrong(broken(error)))?;
                same(&what, &layer.digest, packed.get_ref().digest())?;
            }
            applied.map_err(wrong)?;
            same(&what, &layer.diff, of_archive)?;
        }
        sink.look().map_err(|source| ImageError::Layer {
            path: self.path.clone(),
            what: "the image".into(),
            source,
        })?;
        Ok((tree, sink.next(), passed))
    }

    fn of_directory(&self, source: LayerError) -> ImageError {
        match source {
            LayerError::Write(source) => ImageError::Write { path: self.path.clone(), source },
            source => ImageError::Layer { path: self.path.clone(), what: "the directory".into(), source },
        }
    }

    fn place(&self, layer: &Layer) -> Result<(Box<dyn Read + '_>, u64), ImageError> {
        match (&self.blobs, &layer.diff) {
            (Blobs::Archive { file, .. }, None) => {
                let size = file.metadata().map(|m| m.len()).unwrap_or(u64::MAX);
                Ok((Box::new(Part { file, at: 0, left: size }), size))
            }
            (blobs, _) => blobs.open(&self.path, &layer.name),
        }
    }
}

/// Puts one archive into the tree.
fn apply(tree: &mut Tree, sink: &mut Sink<'_>, from: &mut impl Read, has_digest: bool) -> Result<(), LayerError> {
    let mut reader = archive::Reader::new(from);
    while let Some(entry) = reader.next()? {
        let size = entry.size;
        if let Done::File(node) = tree.apply(entry)? {
            let extent = sink.take(&mut reader, size)?;
            tree.put(node, extent);
        }
        let freed = tree.take_freed();
        if !freed.is_empty() {
            sink.free(freed);
        }
    }
    if !has_digest && !reader.has_end_mark() {
        // Nothing else would tell.
        return Err(LayerError::Cut);
    }
    reader.drain()
}

/// Counts what is read, and refuses more than there may be.
struct Counted<R> {
    inner: R,
    left: u64,
    most: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(out)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => Err(io::Error::other(Exceeded::Bytes(self.most))),
        }
    }
}

/// Unpacks an archive.
fn spool(from: &File, into: &File, limits: &Limits) -> Result<(), LayerError> {
    let from = BufReader::with_capacity(1 << 18, from);
    let unpacked = unpack::reader(from).map_err(broken)?;
    let mut counted = Counted { inner: unpacked, left: limits.bytes, most: limits.bytes };
    let mut sink = Sink::new(into, 0, limits);
    let mut size = 0;
    loop {
        let mut piece = Vec::with_capacity(64 * BLOCK);
        counted.by_ref().take(64 * BLOCK as u64).read_to_end(&mut piece).map_err(broken)?;
        if piece.is_empty() {
            break;
        }
        sink.take(&mut &piece[..], piece.len() as u64)?;
        size += piece.len() as u64;
    }
    sink.look()?;
    into.set_len(size).map_err(LayerError::Write)
}

/// What of an archive may be a part of an image.
fn members(file: &File) -> Result<HashMap<Vec<u8>, Member>, LayerError> {
    let mut found = HashMap::new();
    let mut file = file;
    file.rewind().map_err(broken)?;
    let mut reader = archive::Reader::new(BufReader::new(file));
    while let Some(entry) = reader.next()? {
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
        let depth = path.iter().filter(|&&byte| byte == b'/').count();
        let may_be = path == b"oci-layout"
            || [&b".json"[..], b".tar"].iter().any(|end| path.ends_with(end))
            || path.starts_with(b"blobs/");
        // The parts of an image are read where they are.
        if depth <= 2 && may_be && !reader.is_sparse() && found.len() < MOST_MEMBERS {
            match entry.kind {
                archive::Kind::File => {
                    found.insert(path, Member::Data { at: reader.at(), size: entry.size });
                }
                archive::Kind::Symlink(to) => {
                    found.insert(path, Member::Link(to));
                }
                archive::Kind::Hardlink(to) => {
                    // One of a file that came before.
                    if let Some(&Member::Data { at, size }) = found.get(to.strip_prefix(b"./").unwrap_or(&to)) {
                        found.insert(path, Member::Data { at, size });
                    }
                }
                _ => {}
            }
        }
        reader.jump()?;
    }
    Ok(found)
}

/// Opens a file without waiting, should it be a FIFO.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// A part of a file.
pub(crate) struct Part<'a> {
    pub(crate) file: &'a File,
    /// Where it begins.
    pub(crate) at: u64,
    /// Its bytes, as far as the file has them.
    pub(crate) left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut out[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Blobs {
    /// A part, with its size.
    fn open(&self, place: &Path, name: &str) -> Result<(Box<dyn Read + '_>, u64), ImageError> {
        let missing = || ImageError::Missing { path: place.to_owned(), what: name.to_owned() };
        match self {
            Self::Directory { .. } => Err(missing()),
            Self::Layout => {
                let path = place.join(name);
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => ImageError::Open { path: path.clone(), source },
                };
                let file = open(&path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                Ok((Box::new(file), metadata.len()))
            }
            Self::Archive { file, members } => {
                let mut name = name.as_bytes().to_vec();
                for _ in 0..MOST_LINKS {
                    match members.get(&name).ok_or_else(missing)? {
                        &Member::Data { at, size } => return Ok((Box::new(Part { file, at, left: size }), size)),
                        Member::Link(to) => name = beside(&name, to),
                    }
                }
                Err(missing())
            }
        }
    }
}

/// Where a symbolic link in an archive leads.
fn beside(link: &[u8], to: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = link.split(|&byte| byte == b'/').collect();
    names.pop();
    for name in to.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

impl Config {
    /// Of what an image or an engine says: nothing is where there is an empty text.
    #[must_use]
    pub fn new(architecture: String, env: Vec<String>, user: Option<String>, working_dir: Option<String>) -> Self {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let is_root = |user: &String| matches!(user.as_str(), "0" | "root" | "0:0" | "root:root");
        Self {
            architecture,
            env,
            user: some(user).filter(|user| !is_root(user)),
            working_dir: some(working_dir).filter(|dir| dir.starts_with('/')),
        }
    }
}

impl Blobs {
    fn share(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Layout => Self::Layout,
            Self::Directory { stamp } => Self::Directory { stamp: stamp.clone() },
            Self::Archive { file, members } => Self::Archive { file: file.try_clone()?, members: members.clone() },
        })
    }
}
