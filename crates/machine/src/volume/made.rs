//! Files of the cache that another program makes of something of the user's: once, by one process at a time, and given up with Belljar.
//!
//! The program writes into a file without a name, which it has as its standard input. What it is made of is looked at before and after: it must not have changed meanwhile.

use std::{fmt, io, path::PathBuf, process::Command, time::Duration};

use belljar_image::cache::{Cache, CacheError, Cached, Unpublished};
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
};

/// How long a program may take: for some hundred GiB on a slow disk.
const LIMIT: Duration = Duration::from_secs(1800);

/// How a program has its standard input as a file name.
pub(super) const TARGET: &str = "/dev/fd/0";

/// What is made, and how.
pub(super) struct Recipe {
    /// Its name in the cache, which says all that decides its content.
    pub(super) name: String,
    /// What it is, for a person: completes "no … could be made".
    pub(super) what: String,
    /// Its bytes, which are holes at first.
    pub(super) size: u64,
    /// What writes to [`TARGET`].
    pub(super) command: Command,
    /// What it is called.
    pub(super) program: &'static str,
    /// Whether what it is made of is what it was; blocks.
    pub(super) is_same: Box<dyn FnOnce() -> io::Result<bool> + Send>,
    /// What to do where the program fails; empty if nobody knows.
    pub(super) advice: &'static str,
}

/// What was found or made.
pub(super) struct Made {
    pub(super) path: PathBuf,
    /// How it came about, for a person.
    pub(super) how: String,
    pub(super) warnings: Vec<EventKind>,
}

/// Why nothing was made.
enum Why {
    Changed,
    Said(String),
    Cache(CacheError),
    Io(io::Error),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("what it is made of was changed meanwhile; leave that alone while it is read"),
            Self::Said(said) => f.write_str(said),
            Self::Cache(error) => write!(f, "{error}"),
            Self::Io(error) => write!(f, "{error}"),
        }
    }
}

/// Finds it in the cache, or makes it. `dir` is for what no cache can take.
///
/// # Errors
/// Why it cannot be made.
pub(super) async fn find(recipe: Recipe, host: &HostContext, dir: &std::path::Path) -> Result<Made, Lost> {
    let cache = Cache::new(&host.cache_dir, dir);
    let making = making::alone(&host.cache_dir, &recipe.name, &recipe.what).await?;
    let look = {
        let (cache, name) = (cache.clone(), recipe.name.clone());
        // The whole of it is read, where the host was rebooted since.
        move || cache.find(&name)
    };
    if let Some(cached) = blocking("look into the cache", look).await? {
        return Ok(Made { path: cached.path, how: how(&making), warnings: Vec::new() });
    }
    let begun = Instant::now();
    let what = recipe.what.clone();
    let program = recipe.program;
    let (cached, said) = make(recipe, cache).await?.map_err(|why| {
        let full = why.to_string().contains("No space left");
        let room =
            format!("; make room in {}, or name another directory with BELLJAR_CACHE_DIR", host.cache_dir.display());
        let room = if full { room.as_str() } else { "" };
        Lost::from(Cause::Description(format!("no {what} could be made: {why}{room}"))).lasting()
    })?;
    drop(making);
    let message = |flaw| format!("the {what} in the cache was not as it was made ({flaw}) and was made anew");
    let said =
        Some(said).filter(|said| !said.is_empty()).map(|said| format!("{program} made the {what} and said: {said}"));
    let warnings =
        cached.flaw.map(message).into_iter().chain(said).map(|message| EventKind::Warning { message }).collect();
    Ok(Made { path: cached.path, how: format!("made now, in {}", for_people(begun.elapsed())), warnings })
}

fn how(making: &Making) -> String {
    match making.waited {
        Some(waited) => format!("made by another run meanwhile, for which this one waited {}", for_people(waited)),
        None => "made by an earlier run".to_owned(),
    }
}

/// With what the program has said.
async fn make(recipe: Recipe, cache: Cache) -> Result<Result<(Cached, String), Why>, Lost> {
    let Recipe { name, size, command, program, is_same, advice, .. } = recipe;
    let (unpublished, said) = match write(&cache, &name, size, command, (program, advice)).await {
        Ok(unpublished) => unpublished,
        Err(why) => return Ok(Err(why)),
    };
    let publish = move || match is_same() {
        Ok(true) => cache.publish(unpublished).map(|cached| (cached, said)).map_err(Why::Cache),
        Ok(false) => Err(Why::Changed),
        Err(error) => Err(Why::Io(error)),
    };
    blocking("cache", publish).await
}

async fn write(
    cache: &Cache,
    name: &str,
    size: u64,
    command: Command,
    (program, advice): (&str, &str),
) -> Result<(Unpublished, String), Why> {
    let unpublished = cache.begin(name).map_err(Why::Cache)?;
    unpublished.file.set_len(size).map_err(Why::Io)?;
    let file = unpublished.file.try_clone().map_err(Why::Io)?;
    let call = Call::start_from(command, file).map_err(Why::Io)?.ending_when_dropped();
    match call.within(LIMIT).await {
        Ok(end) if end.status.success() => Ok((unpublished, one_line(&end.stderr, program))),
        Ok(end) => Err(Why::Said(format!("{program}: {}{advice}", one_line(&end.said(), program)))),
        Err(_) => Err(Why::Said(format!("{program} did not end within {}", for_people(LIMIT)))),
    }
}

/// What a program has said, without its name.
fn one_line(said: &str, program: &str) -> String {
    let lines = said.lines().map(|line| line.trim_start_matches(program).trim_start_matches(':').trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}
