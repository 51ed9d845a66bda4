//! The files of a container image as the root of a machine: a file system in the cache, by the digests of the image's layers.
//!
//! An image that an engine has is asked for once, with `save`; the file system is made of that. What is asked each time is what the image's name stands for now, so
//! that a name which has moved on gives another root.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::{ImageRef, PullPolicy};
use belljar_image::{
    cache::{self, Cache, CacheError},
    disk::unnamed,
    kernel::Arch,
};
use belljar_oci::{
    facts::Facts,
    image::{Config, Image, ImageError, Wanted, identity, split_tag},
    limits::Limits,
};
use serde::{Deserialize, Serialize};

use super::{
    engine::{Engine, EngineError, words},
    find::Engines,
    image, making,
};
use crate::{Cause, Lost, for_people, host::HostContext, lost::blocking, qemu::probe::remember::Memory};

/// Part of the name in the cache: change it with what is written.
const FORMAT: u32 = 2;
/// What an answer about an archive is remembered as.
const KNOWN: &str = "container-image";
/// How long an engine may take to write an image.
const SAVE_LIMIT: Duration = Duration::from_secs(1800);
/// How often is looked how much it has written.
const LOOK: Duration = Duration::from_millis(250);

/// A root that a machine can have.
#[derive(Clone, Debug)]
pub struct ImageRoot {
    /// Its file system.
    pub(crate) file: PathBuf,
    pub(crate) facts: Facts,
    /// What the image says of processes.
    pub(crate) config: Config,
    /// What was chosen and why: what, which, and why.
    pub(crate) choices: Vec<(&'static str, String, String)>,
    /// What was mended.
    pub(crate) warnings: Vec<String>,
}

/// What is remembered of an image on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    config: Config,
    /// The digests of its layers; none of the archive of a root.
    identity: Option<String>,
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMade {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot read what was made of {image}: {source}")]
    Facts { image: String, source: io::Error },
    /// It is not in the cache, and nobody has the archive yet.
    #[error("the image is to be got first")]
    Wanted,
    #[error(
        "{image} is not what the engine says: its layers have other digests; see whether it is being changed meanwhile"
    )]
    Other { image: String },
    #[error(
        "what the engine wrote of {image} is no archive of an image; it was cut short, perhaps: see whether the engine's own `save` gives a whole one"
    )]
    NoArchive { image: String },
    #[error("{image} was changed while it was looked at; leave the directory alone meanwhile")]
    Changed { image: String },
}

impl ImageRoot {
    /// The processor that it is for, if that can be seen; what the image says where no program does.
    pub(crate) fn arch(&self) -> Option<Arch> {
        let said = image::arch(&self.config.architecture);
        self.facts.machine.map(Arch::from_elf_machine).or(said)
    }

    /// The environment of commands: that of a system without more, then what the image says.
    pub(crate) fn env(&self) -> Vec<String> {
        let plain = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "USER=root",
            "LOGNAME=root",
        ];
        let name = |variable: &str| variable.split('=').next().map(str::to_owned);
        let said = self.config.env.iter().filter(|variable| variable.contains('=') && !variable.contains('\0'));
        let own: Vec<_> = said.clone().map(|variable| name(variable)).collect();
        let plain = plain.into_iter().filter(|variable| !own.contains(&name(variable))).map(str::to_owned);
        plain.chain(said.cloned()).collect()
    }
}

/// Gets the root of an image, from the cache if it is there. `dir` is for what no cache can take.
pub(crate) async fn prepare(
    engines: &Engines,
    image: &ImageRef,
    pull: PullPolicy,
    (host, dir): (&HostContext, &Path),
) -> Result<ImageRoot, Lost> {
    let store = Store::new(host, dir);
    match image {
        ImageRef::Path(path) => of_path(path.clone(), store).await,
        ImageRef::Engine(name) => {
            let engine = engines.get().await?;
            of_engine(engine, name, pull, store).await
        }
    }
}

/// Says so where there is no image at this place.
pub(crate) fn missing(path: &Path) -> Option<String> {
    let (file, _) = split_tag(path);
    (!file.exists()).then(|| format!("there is no image {}", path.display()))
}

pub(super) fn lost(error: NotMade) -> Lost {
    Lost::from(Cause::Description(error.to_string())).lasting()
}

/// Where roots are kept.
#[derive(Clone)]
pub(super) struct Store {
    cache: Cache,
    cache_dir: PathBuf,
    dir: PathBuf,
}

impl Store {
    /// Where the host has its cache. `dir` is for what no cache can take.
    pub(super) fn new(host: &HostContext, dir: &Path) -> Self {
        let (cache_dir, dir) = (host.cache_dir.clone(), dir.to_owned());
        Self { cache: Cache::new(&cache_dir, &dir), cache_dir, dir }
    }

    /// A file that goes by itself.
    pub(super) fn scratch(&self) -> io::Result<File> {
        let made =
            fs_err::create_dir_all(&self.cache_dir).and_then(|()| unnamed(&self.cache_dir).map_err(io::Error::other));
        made.or_else(|_| unnamed(&self.dir).map_err(io::Error::other))
    }

    /// The root of this name in the cache, made of the image if it is not there; with how it came about.
    fn root(
        &self,
        (key, shown): (&str, &str),
        config: Config,
        waited: Option<Duration>,
        image: impl Fn() -> Result<Image, NotMade>,
    ) -> Result<ImageRoot, NotMade> {
        let cached = self.cache.get_or_write(&format!("root-{FORMAT}-{key}"), |file, _| {
            image()?.write(file)?;
            Ok::<_, NotMade>(())
        })?;
        let facts = File::open(&cached.path).and_then(|file| Facts::read(&file));
        let facts = facts.map_err(|source| NotMade::Facts { image: shown.to_owned(), source })?;
        let when = match waited.filter(|_| cached.hit) {
            Some(waited) => format!("made by another run meanwhile, for which this one waited {}", for_people(waited)),
            None if cached.hit => "made by an earlier run".to_owned(),
            None => "made now".to_owned(),
        };
        let of_root = format!("the files of {shown}, as a file system ({when})");
        let mut choices = vec![("root", cached.path.display().to_string(), of_root)];
        if !facts.left_out.is_empty() {
            let why = "the file system cannot hold these extended attributes, or they would be taken for its own";
            choices.push(("left out of the root", facts.left_out.join(", "), why.to_owned()));
        }
        if !facts.passed_over.is_empty() {
            let why = "no file of a root, or none of the directory's own";
            choices.push(("passed over in the directory", facts.passed_over.join(", "), why.to_owned()));
        }
        let who = format!("commands run as {} where nothing else is said", config.user.as_deref().unwrap_or("root"));
        choices.push(("image", shown.to_owned(), who));
        let mended = |flaw: String| {
            format!("the file system of {shown} in the cache was not as it was made ({flaw}) and was made anew")
        };
        let warnings = cached.flaw.map(mended).into_iter().collect();
        Ok(ImageRoot { file: cached.path, facts, config, choices, warnings })
    }
}

/// That of an image on disk.
async fn of_path(path: PathBuf, store: Store) -> Result<ImageRoot, Lost> {
    let (looking, cache) = (store.clone(), store.cache_dir.clone());
    let look = move || {
        let on_disk = OnDisk::look(&path, &looking)?;
        let found = on_disk.root(&looking, None, || Err(NotMade::Wanted));
        Ok((on_disk, found))
    };
    let (on_disk, found) = blocking("reading of an image", look).await?.map_err(lost)?;
    match found {
        Err(NotMade::Wanted) => {}
        done => return done.map_err(lost),
    }
    let making = making::alone(&cache, &on_disk.key, &format!("the file system of {}", on_disk.shown)).await?;
    let make = move || {
        let made = on_disk.root(&store, making.waited, || on_disk.open(&store));
        drop(making);
        made
    };
    blocking("reading of an image", make).await?.map_err(lost)
}

/// An image on disk.
pub(super) struct OnDisk {
    path: PathBuf,
    tag: Option<String>,
    /// For a person.
    pub(super) shown: String,
    pub(super) config: Config,
    /// By what its files are known.
    pub(super) key: String,
    /// Whether it is a directory with a root, by what a change of that is noticed.
    stamp: Option<String>,
    /// Whether the files of this user are root's in it.
    gives_files_to_root: bool,
}

impl OnDisk {
    /// Looks at it, if it was not looked at before.
    pub(super) fn look(path: &Path, store: &Store) -> Result<Self, NotMade> {
        let (path, tag) = split_tag(path);
        let shown = match &tag {
            Some(tag) => format!("{}:{tag}", path.display()),
            None => path.display().to_string(),
        };
        let failed = |source| NotMade::Image(ImageError::Open { path: path.clone(), source });
        let stamp = stamp(&path).map_err(failed)?;
        let question = format!("{FORMAT} {shown} {} {stamp}", architecture());
        let mut on_disk = Self {
            path,
            tag,
            shown: shown.clone(),
            config: Config::default(),
            key: String::new(),
            stamp: None,
            gives_files_to_root: false,
        };
        let memory = Memory::new(&store.cache_dir);
        let known: Known = match memory.recall(KNOWN, &question) {
            Some(known) => known,
            None => {
                let image = on_disk.open(store)?;
                if let Some(stamp) = image.stamp() {
                    // Nothing else tells whether it still is what it was.
                    on_disk.key = blake3::hash(format!("{FORMAT} {shown} {stamp}").as_bytes()).to_hex().to_string();
                    (on_disk.stamp, on_disk.gives_files_to_root) =
                        (Some(stamp.to_owned()), image.gives_files_to_root());
                    return Ok(on_disk);
                }
                let known = Known { config: image.config().clone(), identity: image.identity() };
                memory.keep(KNOWN, &question, &known);
                known
            }
        };
        on_disk.key = known.identity.unwrap_or_else(|| blake3::hash(question.as_bytes()).to_hex().to_string());
        on_disk.config = known.config;
        Ok(on_disk)
    }

    pub(super) fn open(&self, store: &Store) -> Result<Image, NotMade> {
        let wanted = Wanted { tag: self.tag.as_deref(), architecture: architecture() };
        let image = Image::open(&self.path, wanted, || store.scratch(), Limits::default())?;
        match (&self.stamp, image.stamp()) {
            (Some(before), now) if now != Some(before) => Err(NotMade::Changed { image: self.shown.clone() }),
            _ => Ok(image),
        }
    }

    /// Its file system, made of what `image` gives if it is not in the cache.
    fn root(
        &self,
        store: &Store,
        waited: Option<Duration>,
        image: impl Fn() -> Result<Image, NotMade>,
    ) -> Result<ImageRoot, NotMade> {
        let mut root = store.root((&self.key, &self.shown), self.config.clone(), waited, image)?;
        if self.gives_files_to_root {
            let why = "whoever is not root can have no files of others, and those of a root are root's".to_owned();
            root.choices.push((
                "owners in the root",
                "your own files are root's, all others as they are".to_owned(),
                why,
            ));
        }
        Ok(root)
    }
}

/// By what it is noticed that something on disk is not what it was.
fn stamp(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    cache::fingerprint(path, &mut hasher)?;
    // All else in a layout goes by the digests in this; an archive has none.
    drop(cache::fingerprint(&path.join("index.json"), &mut hasher));
    Ok(cache::short(&hasher))
}

/// That of an image that an engine has.
async fn of_engine(engine: &Engine, name: &str, pull: PullPolicy, store: Store) -> Result<ImageRoot, Lost> {
    let found = image::look(engine, name, pull).await?;
    let layers = identity(found.layers.iter().map(String::as_str));
    let Some(key) = layers else {
        let said =
            format!("{} does not say which layers the image {name} has; see `{0} image inspect {name}`", engine.name());
        return Err(Cause::Engine(said).into());
    };
    let config = Config::new(found.architecture, found.env, found.user, found.working_dir);
    let of_engine = Arc::new(OfEngine { store, key, shown: name.to_owned(), config });
    let first = Arc::clone(&of_engine);
    match blocking("reading of an image", move || first.root(None, None)).await? {
        Err(NotMade::Wanted) => {}
        done => return done.map_err(lost),
    }
    let what = format!("the file system of {name}");
    let making = making::alone(&of_engine.store.cache_dir, &of_engine.key, &what).await?;
    if making.waited.is_some() {
        let (again, waited) = (Arc::clone(&of_engine), making.waited);
        match blocking("reading of an image", move || again.root(None, waited)).await? {
            Err(NotMade::Wanted) => {}
            done => return done.map_err(lost),
        }
    }
    let archive = save(engine, name, &found.id, &of_engine.store).await?;
    let make = move || {
        let made = of_engine.root(Some(&archive), making.waited);
        drop(making);
        made
    };
    blocking("reading of an image", make).await?.map_err(lost)
}

/// An image that an engine has.
struct OfEngine {
    store: Store,
    key: String,
    shown: String,
    config: Config,
}

impl OfEngine {
    /// Its root, made of what the engine wrote if it is not in the cache.
    fn root(&self, archive: Option<&File>, waited: Option<Duration>) -> Result<ImageRoot, NotMade> {
        let path = Path::new(&self.shown);
        let open = || {
            let archive = archive.ok_or(NotMade::Wanted)?.try_clone();
            let archive = archive.map_err(|source| ImageError::Open { path: path.to_owned(), source })?;
            let wanted = Wanted { tag: None, architecture: architecture() };
            let image = Image::of_archive(path, archive, wanted, || self.store.scratch(), Limits::default())?;
            match image.identity() {
                Some(identity) if identity == self.key => Ok(image),
                None => Err(NotMade::NoArchive { image: self.shown.clone() }),
                _ => Err(NotMade::Other { image: self.shown.clone() }),
            }
        };
        self.store.root((&self.key, &self.shown), self.config.clone(), waited, open)
    }
}

/// Has the engine write an image into a file without a name.
async fn save(engine: &Engine, name: &str, id: &str, store: &Store) -> Result<File, Lost> {
    let limits = Limits::default();
    let attempt = format!("write the image {name}");
    let no_file = |error: io::Error| {
        let advice = "the cache must be writable and have room; BELLJAR_CACHE_DIR names another";
        Lost::from(Cause::host_file("take an image from the engine", &error, advice))
    };
    let file = store.scratch().map_err(no_file)?;
    let into = file.try_clone().map_err(no_file)?;
    let mut call = engine
        .start_into(words(["save", id]), into)
        .map_err(|error| engine.lost(&attempt, &EngineError::Start(error.to_string())))?;
    let begun = tokio::time::Instant::now();
    loop {
        if let Ok(ended) = tokio::time::timeout(LOOK, call.ended()).await {
            return match ended {
                Some(end) if end.status.success() => Ok(file),
                Some(end) => Err(engine.lost(&attempt, &EngineError::Refused(end))),
                None => Err(engine.lost(&attempt, &EngineError::Start("nobody knows how it ended".to_owned()))),
            };
        }
        let size = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let room = rustix::fs::fstatvfs(&file).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let stopped = if size > limits.bytes {
            Some(format!("it has more than {} GiB", limits.bytes >> 30))
        } else if room < limits.keep_free {
            Some("there is no room for it where Belljar's cache is; make some, or name another directory with BELLJAR_CACHE_DIR".to_owned())
        } else if begun.elapsed() > SAVE_LIMIT {
            Some(format!("it took longer than {}", for_people(SAVE_LIMIT)))
        } else {
            None
        };
        if let Some(why) = stopped {
            call.kill();
            return Err(Lost::from(Cause::Engine(format!("{} cannot {attempt}: {why}", engine.name()))).lasting());
        }
    }
}

/// This host's processor, in the words of the image specification.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
