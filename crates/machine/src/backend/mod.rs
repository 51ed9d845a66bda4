//! What gives guests, whatever they are. Whoever runs tests goes through this, and knows no more of it.
//!
//! ```text
//! Backends ── of(source) ──> Backend ── prepare ──> PreparedGuest ── lease ──> Guest
//!                             what this host        looked at once,             runs commands
//!                             can do                leased often                until its end
//! ```
//!
//! A further backend is a room of its own here, its line in [`Backends::all`], and the [`Source`] of its guests in `guest-spec`.

pub mod container;
pub mod qemu;
mod setup;

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
};

use belljar_guest_spec::{GuestSpec, Hardware, Need, Source};
use belljar_model::EventKind;

pub use self::setup::{Layer, SetUp};
use self::{
    container::{ContainerBackend, find::Engines},
    qemu::QemuBackend,
};
use crate::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Answer, Guest, Observe, Views},
    host::HostContext,
    lease::Templates,
    spec::ShareSpec,
};

/// Gives guests of some sources. It is asked only for those.
pub trait Backend: fmt::Debug {
    /// Whether guests of this source are its own.
    fn gives(&self, source: &Source) -> bool;

    /// What a guest of its own takes from the host.
    fn footprint(&self, hardware: &Hardware) -> Footprint;

    /// What a test wants that no guest of its own ever has: the reason for which the test is skipped.
    fn lacks(&self, source: &Source, hardware: &Hardware, needs: &BTreeSet<Need>) -> Option<String>;

    /// The files that it keeps of each guest.
    fn files(&self) -> GuestFiles;

    /// Finds out whether there can be guests at all on this host. Gives the accelerator that they have unless they say otherwise; none where
    /// there is no such thing. The error is for a person, with how to mend it.
    fn probe(&self) -> Answer<'_, Option<String>>;

    /// All that keeps this guest from being started, as far as a look at the host tells, with how to mend it. Makes nothing.
    fn obstacles(&self, spec: &GuestSpec) -> Vec<String>;

    /// Looks at what the guest is made of, and makes what all of its kind need.
    fn prepare(&self, request: PrepareRequest) -> Answer<'_, Box<dyn PreparedGuest>>;
}

/// A guest that can be started, as often as one likes: nothing is open yet.
pub trait PreparedGuest: fmt::Debug {
    /// What was chosen, and why.
    fn choices(&self) -> &[EventKind];

    /// How a person starts the same guest by hand, with this command where what starts a guest can be told one.
    ///
    /// # Errors
    /// If it cannot be said.
    fn by_hand(&self, command: Option<&GuestCommand>) -> Result<ByHand, Lost>;

    /// Gives a guest with a session, its shares mounted: the copy of one that booted where there can be one, else one that starts. Dropping
    /// the answer ends what was started and removes what was half-made.
    fn lease<'a, 'l: 'a>(&'a self, request: LeaseRequest<'l>, observe: Observe<'a>) -> Answer<'a, Box<dyn Guest>>;
}

/// A guest that is to be prepared.
#[derive(Clone, Debug)]
pub struct PrepareRequest {
    /// What it is to be, the environment looked up.
    pub spec: GuestSpec,
    /// What the first of its kind sees of the host. Others see directories elsewhere, and as many.
    pub share: ShareSpec,
    /// The directory for what all of its kind need and no cache can take; it exists.
    pub dir: PathBuf,
    /// One is leased at once, with this share, this directory and no set-up: what starts it may begin while the rest is looked at.
    pub leased_at_once: bool,
}

/// Removes what guests needed that no cache could take ([`PrepareRequest::dir`]), once none of them is there any more.
pub fn clear(dir: &Path) {
    belljar_image::cache::clear_scratch(dir);
}

/// A guest that is wanted, of those that were prepared.
pub struct LeaseRequest<'a> {
    /// What it sees of the host.
    pub share: ShareSpec,
    /// Its directory, in which its logs are; it exists.
    pub dir: PathBuf,
    /// Set-up that is part of the guest: kept with it where that can be, else run in the guest each time.
    pub layer: Option<Layer<'a>>,
    /// Gets the console of each machine that is started on the way.
    pub view: Option<Views>,
}

impl LeaseRequest<'_> {
    /// A guest with nothing set up in it, shown to nobody.
    #[must_use]
    pub fn new(share: ShareSpec, dir: PathBuf) -> Self {
        Self { share, dir, layer: None, view: None }
    }
}

/// Commands that a person can paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByHand {
    /// One a line.
    pub commands: String,
    /// Whether they need files of the directory that the guest was prepared in.
    pub needs_dir: bool,
}

/// What a guest takes from the host while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of memory that it was given.
    pub memory: u64,
    /// Bytes of memory that what runs it needs beside that.
    pub overhead: u64,
    /// The program that needs this, for a person.
    pub program: &'static str,
    /// Processors.
    pub cpus: u32,
}

impl Footprint {
    /// Bytes of memory in all.
    #[must_use]
    pub fn total_memory(&self) -> u64 {
        self.memory.saturating_add(self.overhead)
    }
}

/// What of a guest is in its directory, by the names there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestFiles {
    /// Everything that came over its console, as it came; none if it has none.
    pub console: Option<&'static str>,
    /// Of no use when it has ended.
    pub scratch: &'static [&'static str],
}

/// All that give guests here.
#[derive(Clone, Debug)]
pub struct Backends(Vec<Rc<dyn Backend>>);

impl Backends {
    /// Those of Belljar.
    #[must_use]
    pub fn all(host: HostContext, templates: Templates) -> Self {
        let engines = Rc::new(Engines::new(host.clone()));
        let containers = ContainerBackend::with_engines(host.clone(), Rc::clone(&engines));
        Self(vec![Rc::new(containers), Rc::new(QemuBackend::with_engines(host, templates, engines))])
    }

    /// These. Of two that give guests of the same source, the first does.
    #[must_use]
    pub fn of_these(backends: Vec<Rc<dyn Backend>>) -> Self {
        Self(backends)
    }

    /// The one that gives guests of this source.
    ///
    /// # Errors
    /// If none does.
    pub fn of(&self, source: &Source) -> Result<&Rc<dyn Backend>, Lost> {
        self.0.iter().find(|backend| backend.gives(source)).ok_or_else(|| {
            Lost::from(Cause::Defect(format!("nothing in this program gives guests of {source}"))).lasting()
        })
    }
}
