//! Where in an image the host's directories would be mounted: found out by a container of it that sees none of them, once for each image.
//!
//! An engine follows links of the image's to the place of a mount, and puts files of its own (`/etc/hosts` and the like) into what is there. An image
//! in which the workspace's place is a link to `/etc` would have it make them in the user's workspace.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{
    arguments::{Container, OWN_PATH},
    engine::Engine,
};
use crate::{Cause, Lost, qemu::probe::remember::Memory};

/// Directories in which the engine, or the program that runs its containers, makes files and directories.
const OF_ENGINE: &[&str] = &["/", "/etc", "/run", "/var/run", "/dev", "/proc", "/sys"];
/// The same, and everything below them.
const OF_KERNEL: &[&str] = &["/dev", "/proc", "/sys"];
/// Most bytes of a path.
const MOST: usize = 4096;

/// A place, as it is in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// As it is asked for.
    pub(super) path: String,
    /// It is a link itself.
    pub(super) is_link: bool,
    /// Where it leads to.
    pub(super) real: PathBuf,
}

/// What was seen by this process, by image and paths. Whoever looks holds it.
#[derive(Debug, Default)]
pub(super) struct SeenPlaces(pub(super) Mutex<HashMap<String, Vec<Place>>>);

/// What is asked about an image: where these paths lead in it.
pub(super) struct PlacesQuestion {
    /// All that the answer is of.
    pub(super) text: String,
    /// The paths.
    pub(super) paths: Vec<String>,
    /// Whether the answer stays true: a name may stand for another image tomorrow.
    is_lasting: bool,
}

impl PlacesQuestion {
    /// Where the host's directories come in this container.
    pub(super) fn new(engine: &Engine, container: &Container) -> Self {
        let binds = container.binds.iter().filter(|bind| bind.to != OWN_PATH);
        let paths: Vec<String> = binds.map(|bind| bind.to.clone()).collect();
        let agent = belljar_agent_binary::AGENTS.first().map(|agent| agent.fingerprint).unwrap_or_default();
        let engine = engine.path.display().to_string();
        let text = [&[&engine, agent, &container.image][..], &paths.iter().map(String::as_str).collect::<Vec<_>>()];
        let is_lasting = !container.image.contains(':') || container.image.starts_with("sha256:");
        Self { text: text.concat().join("\0"), paths, is_lasting }
    }

    /// What is remembered.
    pub(super) fn recall(&self, memory: &Memory) -> Option<Vec<Place>> {
        self.is_lasting.then(|| memory.recall("places", &self.text)).flatten()
    }

    /// Remembers it, if it stays true.
    pub(super) fn keep(&self, memory: &Memory, places: &[Place]) {
        if self.is_lasting {
            memory.keep("places", &self.text, &places);
        }
    }
}

/// Reads what the agent says of these paths.
pub(super) fn read(paths: &[String], answer: &[u8]) -> Option<Vec<Place>> {
    let answer = std::str::from_utf8(answer).ok()?;
    let mut lines = answer.lines();
    let place = |path: &String| {
        let (kind, real) = lines.next()?.split_once(' ')?;
        let is_link = match kind {
            "link" => true,
            "place" => false,
            _ => return None,
        };
        let is_path = real.starts_with('/') && real.len() <= MOST && !real.contains(char::is_control);
        is_path.then(|| Place { path: path.clone(), is_link, real: real.into() })
    };
    let places: Option<Vec<Place>> = paths.iter().map(place).collect();
    places.filter(|_| lines.next().is_none())
}

/// The error that it is if something of the host's cannot be mounted at one of these places.
pub(super) fn check(places: &[Place], image: &str) -> Result<(), Lost> {
    let wrong = |place: &&Place| {
        let below = |tops: &[&str]| tops.iter().any(|top| place.real.starts_with(Path::new(top)));
        place.is_link || OF_ENGINE.iter().any(|own| place.real == Path::new(own)) || below(OF_KERNEL)
    };
    let Some(Place { path, is_link, real }) = places.iter().find(wrong) else { return Ok(()) };
    let what = if *is_link { "is a link" } else { "leads" };
    let said = format!(
        "in the image {image} {path} {what} to {}, where the engine would put files of its own into the host's directory; name another place with mount-at (--mount-at), \
         or take another image",
        real.display()
    );
    Err(Lost::from(Cause::Description(said)).lasting())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(all: &[&str]) -> Vec<String> {
        all.iter().map(|&path| path.to_owned()).collect()
    }

    #[test]
    fn what_the_agent_says_is_read_whole_or_not_at_all() {
        let asked = paths(&["/mnt/hostos", "/run/belljar/out"]);
        let read_two = read(&asked, b"link /etc\nplace /run/belljar/out\n").unwrap();
        assert_eq!(read_two[0], Place { path: "/mnt/hostos".into(), is_link: true, real: "/etc".into() });
        assert_eq!(read_two[1].real, Path::new("/run/belljar/out"));
        for wrong in [
            &b""[..],
            b"place /a\n",
            b"place /a\nplace /b\nplace /c\n",
            b"place a\nplace /b\n",
            b"x /a\nplace /b\n",
            b"place /a\nplace /b\x1b\n",
        ] {
            assert!(read(&asked, wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn nothing_is_mounted_where_the_engine_makes_files() {
        let place = |is_link, real: &str| Place { path: "/mnt/hostos".into(), is_link, real: real.into() };
        for fine in [
            place(false, "/mnt/hostos"),
            place(false, "/srv/hostos"),
            place(false, "/etc/hostos"),
            place(false, "/run/belljar/out"),
        ] {
            assert!(check(std::slice::from_ref(&fine), "img").is_ok(), "{fine:?}");
        }
        for wrong in [
            place(true, "/srv"),
            place(false, "/"),
            place(false, "/etc"),
            place(false, "/dev/x"),
            place(false, "/proc"),
        ] {
            let said = check(&[place(false, "/a"), wrong], "img").unwrap_err().to_string();
            assert!(said.contains("/mnt/hostos") && said.contains("--mount-at"), "{said}");
        }
    }
}
