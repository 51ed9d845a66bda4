//! Set-ups that are kept: what they leave in a container's files is committed as an image of its own, from which every further container starts.
//!
//! What runs is not kept. A set-up that leaves processes, or mounts, therefore runs in each container.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use tokio::sync::Mutex;

use super::engine::{ASK_LIMIT, Engine, EngineError, says_missing, words};

/// The name of every image with a set-up; its tag tells which.
pub(crate) const NAME: &str = "belljar-setup";
/// The label with the cache that knows when an image was used last.
const CACHE: &str = "belljar.cache";
/// The label with what was set up, for a person.
const TITLE: &str = "belljar.setup";
/// Where that is noted in the cache.
const USED: &str = "containers/setups";
/// An image that nobody used for so long is removed.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long a commit may take: all that the set-up wrote is copied.
const COMMIT_LIMIT: Duration = Duration::from_secs(600);

/// What is known of one set-up.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// The image that it was committed as, by its name, and by what its engine knows it by, which is the name where that did not say.
    Image { name: String, id: String },
    /// Why it is not kept.
    Not(String),
}

/// The set-ups of this process, by their keys: whoever makes one holds its lock.
#[derive(Debug, Default)]
pub(crate) struct KeptSetUps(RefCell<HashMap<String, Rc<Mutex<Option<Kept>>>>>);

impl KeptSetUps {
    /// The place of one.
    pub(crate) fn of(&self, key: &str) -> Rc<Mutex<Option<Kept>>> {
        Rc::clone(self.0.borrow_mut().entry(key.to_owned()).or_default())
    }
}

/// What decides what a set-up makes of an image: both, the agent, and what else the container is like.
pub(crate) fn key(image: &str, set_up: &[u8; 32], like: &str) -> String {
    let agent = belljar_agent_binary::AGENTS.first().map(|agent| agent.fingerprint).unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    for part in [image.as_bytes(), set_up, agent.as_bytes(), like.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])
}

/// The image of this name with this key, by both, and by its number, if there is one from this run or an earlier one.
pub(crate) async fn find(
    engine: &Engine,
    cache: &Path,
    (name, key): (&str, &str),
) -> Result<Option<(String, String)>, EngineError> {
    let image = format!("{name}:{key}");
    match engine.ask(words(["image", "inspect", "--format", "{{.Id}}", &image]), ASK_LIMIT).await {
        Ok(end) => {
            note_use(cache, key);
            let id = id(&end.stdout).unwrap_or_else(|| image.clone());
            Ok(Some((image, id)))
        }
        Err(EngineError::Refused(end)) if says_missing(&end.stderr) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What an engine says of an image's number.
fn id(said: &[u8]) -> Option<String> {
    let said = std::str::from_utf8(said).ok()?.trim();
    let digits = said.strip_prefix("sha256:").unwrap_or(said);
    (digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| said.to_owned())
}

/// Commits a container as the image with this key; gives its name and its number.
pub(crate) async fn commit(
    engine: &Engine,
    cache: &Path,
    (container, key, title): (&str, &str, &str),
) -> Result<(String, String), EngineError> {
    let image = format!("{NAME}:{key}");
    let mut arguments: Vec<OsString> = words(["commit"]);
    arguments.extend(labels(cache, title));
    arguments.extend(words([container, &image]));
    let end = engine.ask_to_finish(arguments, COMMIT_LIMIT).await?;
    note_use(cache, key);
    let id = id(&end.stdout).unwrap_or_else(|| image.clone());
    Ok((image, id))
}

/// Arguments that give an image the labels of those that go by themselves.
pub(crate) fn labels(cache: &Path, title: &str) -> Vec<OsString> {
    [changed("LABEL", TITLE, title), changed("LABEL", CACHE, &cache.display().to_string())].concat()
}

/// An argument with a line of a Dockerfile that says `name=value`.
pub(crate) fn changed(instruction: &str, name: &str, value: &str) -> Vec<OsString> {
    // A `$` would stand for a variable.
    let quoted = serde_json::Value::from(value).to_string().replace('$', "\\$");
    words(["--change", &format!("{instruction} {name}={quoted}")])
}

/// Removes images of this cache that nobody used for long. What cannot be removed is in use, or is looked at again next time.
pub(crate) async fn prune(engine: &Engine, cache: &Path) {
    let filter = format!("label={CACHE}={}", cache.display());
    let list = words(["images", "--filter", &filter, "--format", "{{.ID}} {{.Tag}}"]);
    let Ok(listed) = engine.ask(list, ASK_LIMIT).await else { return };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for (id, tag) in listed.lines().filter_map(|line| line.split_once(' ')) {
        if !was_used_lately(cache, tag.trim()) {
            drop(engine.ask(words(["rmi", "--force", id]), ASK_LIMIT).await);
            drop(fs::remove_file(used(cache, tag.trim())));
        }
    }
}

/// An image of Belljar's that an engine keeps for containers to come: one with a set-up, or one that was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptImage {
    /// What the engine knows it by.
    id: String,
    /// Its name, with a tag.
    pub name: String,
    /// How large it is, in the engine's words.
    pub size: String,
    /// When it was used last, if that is known.
    pub used: Option<SystemTime>,
}

/// The images of this cache, if there is a sign of any: without one no engine is asked.
pub(crate) fn may_be_there(cache: &Path) -> bool {
    fs::read_dir(cache.join(USED)).is_ok_and(|mut notes| notes.next().is_some())
}

/// The images of this cache.
pub(crate) async fn kept(engine: &Engine, cache: &Path) -> Result<Vec<KeptImage>, EngineError> {
    let filter = format!("label={CACHE}={}", cache.display());
    let list = words(["images", "--filter", &filter, "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Size}}"]);
    let listed = engine.ask(list, ASK_LIMIT).await?;
    let listed = super::call::clean(&listed.stdout);
    let image = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (id, name, size) = (id(words.next()?.as_bytes())?, words.next()?, words.next()?);
        let tag = name.rsplit_once(':')?.1;
        let used = fs::metadata(used(cache, tag)).and_then(|note| note.modified()).ok();
        Some(KeptImage { id, name: name.to_owned(), size: size.to_owned(), used })
    };
    Ok(listed.lines().filter_map(image).collect())
}

/// Removes these images, but those in use.
pub(crate) async fn remove(engine: &Engine, cache: &Path, images: Vec<KeptImage>) -> Vec<KeptImage> {
    let mut removed = Vec::new();
    for image in images {
        if engine.ask(words(["rmi", &image.id]), ASK_LIMIT).await.is_ok() {
            let tag = image.name.rsplit_once(':').map(|(_, tag)| tag).unwrap_or_default();
            drop(fs::remove_file(used(cache, tag)));
            removed.push(image);
        }
    }
    removed
}

fn used(cache: &Path, key: &str) -> PathBuf {
    // A tag of somebody else's is no path.
    let key: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    cache.join(USED).join(key)
}

pub(crate) fn note_use(cache: &Path, key: &str) {
    let file = used(cache, key);
    // Without the note the image is made again one day.
    drop(fs_err::create_dir_all(cache.join(USED)).and_then(|()| fs_err::write(file, "")));
}

fn was_used_lately(cache: &Path, key: &str) -> bool {
    let at = fs::metadata(used(cache, key)).and_then(|file| file.modified());
    at.is_ok_and(|at| SystemTime::now().duration_since(at).unwrap_or_default() < UNUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_a_key_of_its_own() {
        let one = key("image", &[1; 32], "");
        assert_eq!(one.len(), 32);
        for other in [key("imagf", &[1; 32], ""), key("image", &[2; 32], ""), key("image", &[1; 32], "privileged")] {
            assert_ne!(one, other);
        }
        assert_eq!(one, key("image", &[1; 32], ""));
    }

    #[test]
    fn a_number_is_told_from_other_words() {
        let number = "0123456789abcdef0123456789abcdef";
        assert_eq!(id(format!("{number}\n").as_bytes()).as_deref(), Some(number));
        assert_eq!(id(format!("sha256:{number}").as_bytes()), Some(format!("sha256:{number}")));
        for other in ["", "0123", "Untagged: x", "--rm0123456789ab", "[{}]"] {
            assert!(id(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn what_nobody_used_for_long_is_known() {
        let cache = tempfile::tempdir().unwrap();
        assert!(!was_used_lately(cache.path(), "k"));
        note_use(cache.path(), "k");
        assert!(was_used_lately(cache.path(), "k"));
        let long_ago = SystemTime::now() - UNUSED - Duration::from_secs(60);
        fs::File::options().write(true).open(used(cache.path(), "k")).unwrap().set_modified(long_ago).unwrap();
        assert!(!was_used_lately(cache.path(), "k"));
        assert_eq!(used(cache.path(), "../../x"), cache.path().join(USED).join("x"));
    }
}
