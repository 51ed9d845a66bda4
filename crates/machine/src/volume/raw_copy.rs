//! Raw copies of images for lab disks: a lab disk's server reads plain bytes, and knows no format but that.
//!
//! A copy is in the cache, under a name that follows from the identity of every file of the image's chain, so that a chain of which anything was changed has another one.
//! `qemu-img` makes it once, sparse, while the chain is locked against who writes to it. It ends with Belljar, and what it wrote until then has no name.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use belljar_image::{
    cache::{self, Cache, Cached},
    disk::DiskImage,
};
use belljar_model::EventKind;
use tokio::time::Instant;

use crate::{
    Cause, Lost,
    backend::container::{
        call::Call,
        making::{self, Making},
    },
    for_people,
    host::HostContext,
    lost::blocking,
    plan_image,
};

/// Part of the names in the cache: change it with how copies are made.
const VERSION: &[u8] = b"1";
/// How long `qemu-img` may take for a copy: some hundred GiB on a slow disk.
const LIMIT: Duration = Duration::from_secs(1800);

/// The raw copy of an image.
#[derive(Clone, Debug)]
pub(super) struct RawCopy {
    pub(super) path: PathBuf,
    /// What the image's files were when it was made.
    identity: String,
}

impl RawCopy {
    /// Whether the image still is what was copied.
    pub(super) fn is_of(&self, image: &DiskImage) -> io::Result<bool> {
        Ok(identity(image)? == self.identity)
    }
}

/// Why there is no copy, completing "no raw copy of IMAGE for a lab disk could be made: ".
#[derive(Debug)]
enum Why {
    Changed,
    Said(String),
    Io(io::Error),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("it was changed meanwhile; leave it alone while it is read"),
            Self::Said(said) => write!(f, "qemu-img: {said}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// Stands for the bytes of an image without reading them.
fn identity(image: &DiskImage) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(VERSION);
    plan_image::add_identity(image, &mut hasher)?;
    Ok(cache::short(&hasher))
}

/// Finds the raw copy of an image, or makes it; with what a person is told of it. `dir` is for what no cache can take.
///
/// # Errors
/// Why it cannot be made.
pub(super) async fn find(
    disk: &str,
    image: &DiskImage,
    host: &HostContext,
    dir: &Path,
) -> Result<(RawCopy, Vec<EventKind>), Lost> {
    let shown = image.path().display().to_string();
    let failed = |why: Why| {
        let room = format!(
            "; it takes as much room as the image has contents, in {} (BELLJAR_CACHE_DIR)",
            host.cache_dir.display()
        );
        let room = if why.to_string().contains("No space left") { room } else { String::new() };
        Lost::from(Cause::Description(format!("no raw copy of {shown} for a lab disk could be made: {why}{room}")))
            .lasting()
    };
    let identity = identity(image).map_err(|error| failed(Why::Io(error)))?;
    let cache = Cache::new(&host.cache_dir, dir);
    let name = format!("raw-{identity}");
    let making = making::alone(&host.cache_dir, &name, &format!("a raw copy of {shown}")).await?;
    let look = {
        let (cache, name) = (cache.clone(), name.clone());
        // The whole of it is read, where the host was rebooted since.
        move || cache.find(&name)
    };
    let (cached, how) = match blocking("look for a copy", look).await? {
        Some(cached) => (cached, found_how(&making)),
        None => {
            let begun = Instant::now();
            let cached = make(image, &identity, &name, &cache, host).await?.map_err(failed)?;
            (cached, format!("made now, in {}", for_people(begun.elapsed())))
        }
    };
    drop(making);
    let why = format!("the bytes of the lab disk {disk}: a raw copy of {shown} ({how})");
    let mut told = vec![EventKind::Choice { what: "disk".into(), chosen: cached.path.display().to_string(), why }];
    told.extend(cached.flaw.map(|flaw| EventKind::Warning {
        message: format!("the raw copy of {shown} in the cache was not as it was made ({flaw}) and was made anew"),
    }));
    Ok((RawCopy { path: cached.path, identity }, told))
}

fn found_how(making: &Making) -> String {
    match making.waited {
        Some(waited) => {
            format!("made by another run meanwhile, for which this one waited {}", for_people(waited))
        }
        None => "made by an earlier run".to_owned(),
    }
}

async fn make(
    image: &DiskImage,
    identity_before: &str,
    name: &str,
    cache: &Cache,
    host: &HostContext,
) -> Result<Result<Cached, Why>, Lost> {
    let copied = copy(image, name, cache, host).await;
    let unpublished = match copied {
        Ok(unpublished) => unpublished,
        Err(why) => return Ok(Err(why)),
    };
    match identity(image) {
        Ok(now) if now == identity_before => {}
        Ok(_) => return Ok(Err(Why::Changed)),
        Err(error) => return Ok(Err(Why::Io(error))),
    }
    let cache = cache.clone();
    let published = blocking("cache", move || cache.publish(unpublished)).await?;
    Ok(published.map_err(|error| Why::Io(io::Error::other(error))))
}

async fn copy(image: &DiskImage, name: &str, cache: &Cache, host: &HostContext) -> Result<cache::Unpublished, Why> {
    let unpublished = cache.begin(name).map_err(|error| Why::Io(io::Error::other(error)))?;
    unpublished.file.set_len(image.virtual_size).map_err(Why::Io)?;
    let mut command = host.shim.command_for_helper(&host.qemu_img);
    // Nothing is to be followed that was not looked at; the file is all holes, and what is zeros stays one.
    command.args(["convert", "-n", "--target-is-zero", "-O", "raw"]);
    command.arg(format!("json:{}", image.node())).arg("/dev/fd/0");
    let file = unpublished.file.try_clone().map_err(Why::Io)?;
    let call = Call::start_from(command, file).map_err(Why::Io)?.ending_when_dropped();
    match call.within(LIMIT).await {
        Ok(end) if end.status.success() => Ok(unpublished),
        Ok(end) => Err(Why::Said(end.said().trim_start_matches("qemu-img: ").to_owned())),
        Err(_) => Err(Why::Said(format!("it did not end within {}", for_people(LIMIT)))),
    }
}
