//! What is left of a Belljar that was killed: looked for where there is a sign of one, and removed where nobody is left who wants it.
//!
//! A container ends when its Belljar does, for the agent in it sees its socket closed. What may be left is one whose agent never began, or that
//! somebody has frozen. A Belljar that has containers leaves a note in the cache, and takes it away when the engine has removed them all; a note whose
//! Belljar is gone has the engine asked.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    engine::{EngineError, call, words},
    owner::{Fate, OWNER, Owner},
    strays,
};
use crate::qemu::sandbox::Shim;

/// Where the notes are in the cache.
const NOTES: &str = "containers";
/// How long the engine may take over what is left; there will be a next time.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the call of a Belljar that is gone may take to end by itself, in seconds, before what runs of its containers is removed.
const ENDING: f64 = 10.0;
/// Longest note.
const MOST: u64 = 64 << 10;

/// That this process has containers. Each call that starts one holds it, so that the note goes when the last of them has ended.
#[derive(Debug)]
pub(crate) struct Claim {
    note: PathBuf,
    /// The note stays, for it is not known that all were removed.
    stays: AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct Note {
    owner: String,
    engine: PathBuf,
}

impl Claim {
    /// Leaves a note that `owner` has containers of this engine.
    pub(crate) fn new(cache: &Path, owner: &Owner, engine: &Path) -> io::Result<Self> {
        let dir = cache.join(NOTES);
        fs_err::create_dir_all(&dir)?;
        let note = Note { owner: owner.label(), engine: engine.to_owned() };
        let file = dir.join(format!("{}.json", owner.pid()));
        // By a rename, so that no half of one is read.
        let mut written = tempfile::NamedTempFile::new_in(&dir)?;
        io::Write::write_all(&mut written, &serde_json::to_vec(&note)?)?;
        written.persist(&file).map_err(|error| error.error)?;
        Ok(Self { note: file, stays: AtomicBool::new(false) })
    }

    /// Something may be left: the next start is to look.
    pub(crate) fn doubt(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !*self.stays.get_mut() {
            let _ = fs::remove_file(&self.note);
        }
    }
}

/// Removes what is left of those that were killed; gives what was removed, and what could not be. Where nobody was killed this looks into one directory.
#[must_use]
pub fn sweep(cache: &Path, shim: &Shim) -> Vec<String> {
    let stale = stale(cache);
    if stale.is_empty() {
        return Vec::new();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return vec![format!("cannot look for containers of a belljar that was killed: {error}")],
    };
    runtime.block_on(async {
        let mut said = Vec::new();
        for (file, note) in stale {
            match remove_left(shim, &note).await {
                Ok((removed, is_all)) => {
                    said.extend(removed.iter().map(|what| format!("removed {what}, left by a belljar that has ended")));
                    if is_all {
                        let _ = fs::remove_file(file);
                    }
                }
                // The next start tries again.
                Err(error) => said.push(format!(
                    "cannot remove what a belljar that has ended may have left in {}: {}",
                    note.engine.display(),
                    error.what()
                )),
            }
        }
        said
    })
}

/// Notes whose Belljar is gone.
fn stale(cache: &Path) -> Vec<(PathBuf, Note)> {
    let Ok(entries) = fs::read_dir(cache.join(NOTES)) else { return Vec::new() };
    let stale = |path: PathBuf| {
        let mut text = String::new();
        let mut file = io::Read::take(belljar_image::open_without_waiting(&path).ok()?, MOST);
        io::Read::read_to_string(&mut file, &mut text).ok()?;
        let note: Note = serde_json::from_str(&text).ok()?;
        (Owner::parse(&note.owner)?.fate() != Fate::Alive).then_some((path, note))
    };
    let json = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
    json.filter_map(stale).collect()
}

/// What of those that are gone can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removable {
    /// Nothing yet: a call of one is under way, which ends by itself.
    Nothing,
    /// What runs: the call goes on only because its container does, with an agent that somebody has stopped, or a systemd whose agent is dead.
    Running,
    /// All.
    All,
}

impl Removable {
    /// By the age of the youngest call that is under way, in seconds.
    fn of(youngest: Option<f64>) -> Self {
        match youngest {
            None => Self::All,
            Some(age) if age < ENDING => Self::Nothing,
            Some(_) => Self::Running,
        }
    }
}

/// Removes every container and network of this engine that is labelled as Belljar's and whose Belljar is gone, as far as these can be removed now.
/// Gives whether that was all.
async fn remove_left(shim: &Shim, note: &Note) -> Result<(Vec<String>, bool), EngineError> {
    let engine = &note.engine;
    let removable = Removable::of(strays::youngest_call(engine));
    let remove = &["rm", "--force", "--volumes"][..];
    let kinds = match removable {
        Removable::Nothing => return Ok((Vec::new(), false)),
        Removable::Running => vec![(&["ps", "--no-trunc"][..], remove, "the container")],
        Removable::All => vec![
            (&["ps", "--all", "--no-trunc"][..], remove, "the container"),
            (&["network", "ls", "--no-trunc"][..], &["network", "rm", "--force"][..], "the network"),
        ],
    };
    let mut removed = Vec::new();
    let filter = format!("label={OWNER}");
    for (list, remove, what) in kinds {
        let mut arguments: Vec<_> = list.iter().map(Into::into).collect();
        arguments.extend(words(["--filter", &filter, "--format", LISTED]));
        let listed = call(shim, engine, &arguments, LIMIT).await?;
        for id in left(&String::from_utf8_lossy(&listed.stdout)) {
            let mut arguments: Vec<_> = remove.iter().map(Into::into).collect();
            arguments.push(id.into());
            call(shim, engine, &arguments, LIMIT).await?;
            removed.push(format!("{what} {id}"));
        }
    }
    let is_all = removable == Removable::All;
    if is_all {
        removed.extend(strays::end_of_the_gone());
    }
    Ok((removed, is_all))
}

/// How the engines list what there is: its number, and its labels. Podman writes those of a container as `map[a:b c:d]`, those of a network as
/// `a=b,c=d`, and docker all of them so.
const LISTED: &str = "{{.ID}} {{.Labels}}";

/// The value of our label in a list of labels, none of which has a space, a comma or a bracket in its value.
fn owner_in(labels: &str) -> Option<Owner> {
    let (_, after) = labels.split_once(OWNER)?;
    let value = after.strip_prefix([':', '='])?;
    Owner::parse(value.split([' ', ',', ']']).next()?)
}

/// The numbers of a list whose owner is gone; whose owner cannot be told is somebody's.
fn left(listed: &str) -> Vec<&str> {
    let gone = |line: &'_ str| {
        let (_, labels) = line.split_once(' ')?;
        Some(owner_in(labels)?.fate() == Fate::Gone)
    };
    let is_id = |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let ids = listed.lines().filter(|line| gone(line) == Some(true)).filter_map(|line| line.split(' ').next());
    ids.filter(is_id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Owner {
        let this = Owner::this().unwrap().label();
        let (rest, _) = this.rsplit_once('/').unwrap();
        Owner::parse(&format!("{rest}/1")).unwrap()
    }

    #[test]
    fn what_a_call_goes_on_for_is_removed_when_the_call_had_its_time() {
        let of = |age| Removable::of(age);
        assert_eq!((of(None), of(Some(0.5)), of(Some(60.0))), (Removable::All, Removable::Nothing, Removable::Running));
    }

    #[test]
    fn only_what_nobody_wants_any_more_is_left() {
        let (this, gone) = (Owner::this().unwrap().label(), gone().label());
        let l = |owner: &str| format!("map[a:b belljar.owner:{owner} belljar.pid:7]");
        let listed = format!(
            "a1 {}\nb2 {}\nc3 {}\nd4\ne5 \n--all {}\n\nf6 a=b,belljar.owner={gone},belljar.run=/x y\ng7 belljar.owner={gone}\n",
            l(&this),
            l(&gone),
            l("elsewhere/1/2/3"),
            l(&gone)
        );
        assert_eq!(left(&listed), ["b2", "f6", "g7"]);
    }

    #[test]
    fn a_note_is_there_as_long_as_its_process_wants() {
        let cache = tempfile::tempdir().unwrap();
        let this = Owner::this().unwrap();
        let claim = Claim::new(cache.path(), &this, Path::new("/bin/podman")).unwrap();
        assert_eq!(stale(cache.path()).len(), 0);
        let old = Claim::new(cache.path(), &gone(), Path::new("/bin/podman")).unwrap();
        assert_eq!(stale(cache.path()).len(), 1, "it has the number of this process, and began at another time");
        drop(old);
        let doubted = Claim::new(cache.path(), &gone(), Path::new("/bin/podman")).unwrap();
        doubted.doubt();
        drop(doubted);
        assert_eq!(stale(cache.path()).len(), 1, "something may be left of it");
        drop(Claim::new(cache.path(), &gone(), Path::new("/bin/podman")).unwrap());
        drop(claim);
        assert!(fs::read_dir(cache.path().join(NOTES)).unwrap().next().is_none());
    }

    #[test]
    fn where_nobody_was_killed_no_engine_is_asked() {
        let cache = tempfile::tempdir().unwrap();
        let shim = Shim { program: "/no/such/program".into(), args: Vec::new() };
        assert_eq!(sweep(cache.path(), &shim), [""; 0]);
        let engine = Path::new("/no/such/engine");
        let _claim = Claim::new(cache.path(), &gone(), engine).unwrap();
        let said = sweep(cache.path(), &shim);
        assert!(said[0].contains("cannot remove") && said[0].contains("/no/such/engine"), "{said:?}");
        assert_eq!(stale(cache.path()).len(), 1, "the next start tries again");
    }
}
