//! `belljar.toml` as it is meant: checked, paths made whole, defaults left to [`crate::settings`].

mod check;
pub mod guards;
pub mod guest;
mod kernels;
mod layers;
mod resolve;
pub mod typed;
pub mod words;

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use belljar_guest_spec::{GuestSpec, Source};
use serde::Serialize;

pub use self::words::{Backoff, Format, Isolation};
pub(crate) use self::{check::header as check_header, layers::of_header as layer_of_header, typed::HeaderTable};
use crate::{
    diagnostic::{Diagnostic, Diagnostics, Place, SourceText, enumerate, suggest},
    files,
    filter::Filter,
    glob::Pattern,
    settings::Layer,
    toml_tree::Walk,
    units,
};

/// The name of the guest that is always there: this host's own userland.
pub const HOST_GUEST: &str = "host";
/// The name of the profile that is always there.
pub const DEFAULT_PROFILE: &str = "default";
/// The name of the file.
pub const FILE_NAME: &str = "belljar.toml";
/// No configuration is larger.
pub const MAX_SIZE: u64 = 4 << 20;

/// A checked `belljar.toml`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file.
    pub path: PathBuf,
    /// Its directory as it is called towards the user.
    pub shown_dir: PathBuf,
    /// Its directory, to which all paths in it are relative.
    pub dir: PathBuf,
    /// The host directory that guests see.
    pub workspace: PathBuf,
    /// The guests by name; [`HOST_GUEST`] is always there.
    pub guests: BTreeMap<String, Arc<Guest>>,
    /// The names of guests that came of one with `kernels`, by its name, which is that of no guest.
    pub families: BTreeMap<String, Vec<String>>,
    /// The suites in the order of the file.
    pub suites: Vec<Arc<Suite>>,
    /// How many tests of a group may run at the same time.
    pub groups: BTreeMap<String, u32>,
    /// The profiles by name; [`DEFAULT_PROFILE`] is always there.
    pub profiles: BTreeMap<String, Arc<Profile>>,
}

/// A guest as described.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The name of the guest with `kernels` that it came of.
    pub family: Option<String>,
    /// The machine, with disks of its own.
    pub spec: GuestSpec,
    /// What holds for tests on it.
    pub layer: Layer,
}

/// How often and when an attempt is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Retries {
    /// Tries after the first.
    pub count: u32,
    /// The pause before the first of them.
    #[serde(rename = "delay-ms", with = "units::millis")]
    pub delay: Duration,
    /// How the pause grows.
    pub backoff: Backoff,
    /// The longest pause.
    #[serde(rename = "max-delay-ms", with = "units::millis")]
    pub max_delay: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self::at_once(0)
    }
}

impl Retries {
    /// So many, without a pause.
    #[must_use]
    pub const fn at_once(count: u32) -> Self {
        Self { count, delay: Duration::ZERO, backoff: Backoff::Fixed, max_delay: Duration::from_secs(60) }
    }

    /// The pause before retry `n`, counted from 1.
    #[must_use]
    pub fn pause(&self, n: u32) -> Duration {
        let factor = match self.backoff {
            Backoff::Fixed => 1,
            Backoff::Exponential => 1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX),
        };
        self.delay.saturating_mul(factor).min(self.max_delay)
    }
}

/// A suite as described.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// Patterns of test files, with their places.
    pub tests: Vec<(Pattern, Place)>,
    /// Patterns of what is no test.
    pub exclude: Vec<(Pattern, Place)>,
    /// Names of the guests, in the order of the file; all exist.
    pub guests: Vec<String>,
    /// Scripts that run once on a guest, with their places.
    pub setup: Vec<(PathBuf, Place)>,
    /// Whether the guest is kept as the scripts leave it.
    pub setup_once: bool,
    /// Patterns of what the scripts read then, with their places.
    pub setup_inputs: Vec<(Pattern, Place)>,
    /// Limit to one setup script.
    pub setup_timeout: Duration,
    /// What holds for its tests.
    pub layer: Layer,
}

/// A profile, with what it has from `default`.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// Tests to run where the command line names none.
    pub filter: Option<Filter>,
    /// Tests at the same time; none means as many as memory and processors allow.
    pub jobs: Option<u32>,
    /// Bytes of memory for all guests together; none means what is free.
    pub max_memory: Option<u64>,
    /// Processors for all guests together; none means those of the host.
    pub max_cpus: Option<u32>,
    /// Start no more tests after a failure.
    pub fail_fast: bool,
    /// Limit to the run.
    pub global_timeout: Option<Duration>,
    /// Tries after an error that is not the test's.
    pub error_retries: u32,
    /// Where to write a JUnit report.
    pub junit: Option<PathBuf>,
    /// Where to write a TAP report.
    pub tap: Option<PathBuf>,
    /// Where to write an HTML report.
    pub html: Option<PathBuf>,
    /// What holds for tests.
    pub layer: Layer,
    /// Exceptions, the first that matches and has a key holds.
    pub overrides: Vec<Override>,
}

/// An exception for some tests.
#[derive(Clone, Debug)]
pub struct Override {
    /// The tests.
    pub filter: Filter,
    /// What holds for them.
    pub layer: Layer,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration: {0}")]
    Read(#[source] io::Error),
    /// It is no text, or much too large.
    #[error("cannot read {}: {why}", path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// It has mistakes.
    #[error("{found}")]
    Wrong {
        /// All of them.
        found: Diagnostics,
        /// What could be read all the same; only good for finding more that is wrong.
        rest: Option<Box<Config>>,
    },
}

impl Config {
    /// Reads a file. Paths in the result begin with the directory of `path`. Mistakes call the file `shown`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all mistakes at once.
    pub fn load(path: &Path, shown: &Path) -> Result<Self, ConfigError> {
        let file = files::open_regular(path).map_err(ConfigError::Read)?;
        let mut bytes = Vec::new();
        // Whatever its length is said to be.
        file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(ConfigError::Read)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(ConfigError::NoText { path: path.to_owned(), why: "it is larger than 4 MiB" });
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| ConfigError::NoText { path: path.to_owned(), why: "it is not UTF-8" })?;
        Self::parse_as(path, shown, &text).map_err(|(found, rest)| ConfigError::Wrong { found, rest })
    }

    /// Reads a text as if it were the file `path`.
    ///
    /// # Errors
    ///
    /// All mistakes.
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self, Diagnostics> {
        Self::parse_as(path.as_ref(), path.as_ref(), text).map_err(|(found, _)| found)
    }

    fn parse_as(path: &Path, shown: &Path, text: &str) -> Result<Self, (Diagnostics, Option<Box<Self>>)> {
        let source = SourceText::new(shown, text);
        // A byte order mark is no part of TOML, and editors write it.
        let body = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (file, mut walk) = Walk::read::<typed::FileTable>(&source, text.len() - body.len(), body);
        let config = file.map(|file| {
            if walk.parsed() {
                let dir = path.parent().unwrap_or_else(|| Path::new(""));
                let families = kernels::expand(&file, dir, &mut walk);
                check::file(&file, &families, &mut walk);
                return resolve::file(path, shown, &file, &families, &walk);
            }
            resolve::file(path, shown, &file, &kernels::Families::new(), &walk)
        });
        let diagnostics = walk.finish().sorted();
        match config {
            Some(config) if !diagnostics.has_errors() => Ok(config),
            rest => Err((diagnostics, rest.map(Box::new))),
        }
    }

    /// What holds where there is no `belljar.toml`: the host's own userland, no suites.
    #[must_use]
    pub fn empty(dir: &Path) -> Self {
        let path = dir.join(FILE_NAME);
        Self {
            dir: dir.to_owned(),
            shown_dir: dir.to_owned(),
            workspace: dir.to_owned(),
            guests: BTreeMap::from([(HOST_GUEST.to_owned(), Arc::new(Guest::host(HOST_GUEST)))]),
            families: BTreeMap::new(),
            suites: Vec::new(),
            groups: BTreeMap::new(),
            profiles: BTreeMap::from([(DEFAULT_PROFILE.to_owned(), Arc::new(Profile::empty(DEFAULT_PROFILE)))]),
            path,
        }
    }

    /// A profile by name.
    ///
    /// # Errors
    ///
    /// Says which there are.
    pub fn profile(&self, name: &str) -> Result<&Arc<Profile>, Box<Diagnostic>> {
        self.profiles.get(name).ok_or_else(|| no_such("profile", name, self.profiles.keys()))
    }

    /// A guest by name.
    ///
    /// # Errors
    ///
    /// Says which there are.
    pub fn guest(&self, name: &str) -> Result<&Arc<Guest>, Box<Diagnostic>> {
        match self.families.get(name).map(Vec::as_slice) {
            Some([only]) => self.guest(only),
            Some(members) => {
                let members = enumerate(members.iter().map(|n| format!("{n:?}")));
                let message = format!("{name:?} is a guest for each of its kernels");
                Err(Box::new(Diagnostic::error(message).help(format!("name one of them: {members}"))))
            }
            None => self.guests.get(name).ok_or_else(|| no_such("guest", name, self.guests.keys())),
        }
    }

    /// All that may be named where a guest is to be: guests and families.
    pub(crate) fn guest_names(&self) -> impl Iterator<Item = &String> + Clone {
        self.guests.keys().chain(self.families.keys())
    }

    /// The guests that `names` stand for, each once.
    pub(crate) fn guests_named<'a>(&'a self, names: impl IntoIterator<Item = &'a String>) -> Vec<&'a Arc<Guest>> {
        let mut guests: Vec<&Arc<Guest>> = Vec::new();
        for name in names {
            for name in self.families.get(name).map_or(std::slice::from_ref(name), Vec::as_slice) {
                let Some(guest) = self.guests.get(name) else { continue };
                if !guests.iter().any(|known| Arc::ptr_eq(known, guest)) {
                    guests.push(guest);
                }
            }
        }
        guests
    }
}

/// Says that there is no such thing, and what was meant.
pub(crate) fn no_such<'a>(what: &str, name: &str, all: impl Iterator<Item = &'a String> + Clone) -> Box<Diagnostic> {
    let help = match suggest(name, all.clone().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None => format!("there are {}", enumerate(all.map(|n| format!("{n:?}")))),
    };
    Box::new(Diagnostic::error(format!("there is no {what} {name:?}")).help(help))
}

impl Guest {
    /// This host's own userland.
    #[must_use]
    pub fn host(name: &str) -> Self {
        Self { name: name.to_owned(), family: None, spec: GuestSpec::new(Source::host()), layer: Layer::default() }
    }
}

impl Profile {
    /// A profile that says nothing.
    #[must_use]
    pub fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            filter: None,
            jobs: None,
            max_memory: None,
            max_cpus: None,
            fail_fast: false,
            global_timeout: None,
            error_retries: 2,
            junit: None,
            tap: None,
            html: None,
            layer: Layer::default(),
            overrides: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
