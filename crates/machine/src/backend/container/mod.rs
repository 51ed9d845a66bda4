//! Guests that are containers, of podman or docker, through their command lines.
//!
//! ```text
//! ContainerBackend ── find ──> Engine ── image ──> PreparedContainer ── arguments ──> engine run ──> agent
//!                     by trying          what it is                                                    │
//!                                                    ContainerGuest <── a socket in a bind mount ──────┘
//! ```
//!
//! The agent is the container's first process, and connects to a socket of Belljar's that is mounted beside it: nothing of the engine's is between
//! them, and a container whose Belljar is gone, by `SIGKILL` too, ends by itself. The engine starts containers and removes them, and mounts what
//! they see of the host.

mod ahead;
mod arguments;
pub(crate) mod call;
mod claim;
mod engine;
pub(crate) mod find;
mod gauged;
mod guest;
mod image;
mod import;
mod keep;
pub(crate) mod making;
mod owner;
mod places;
mod prepared;
pub(crate) mod root;
mod socket;
mod strays;
mod systemd;

use std::{cell::RefCell, collections::BTreeSet, fmt, path::Path, rc::Rc, sync::Arc};

use belljar_guest_spec::{GuestSpec, Hardware, ImageRef, Need, PullPolicy, Source};

pub use self::{call::end_calls, claim::sweep, keep::KeptImage};
use self::{
    claim::Claim,
    engine::{Engine, EngineKind},
    find::{Engines, NoEngine},
    keep::KeptSetUps,
    owner::Owner,
    places::SeenPlaces,
    prepared::PreparedContainer,
};
use super::{Backend, Footprint, GuestFiles, PrepareRequest, PreparedGuest};
use crate::{Cause, Lost, guest::Answer, host::HostContext, plan::CONTROL_DIR};

/// Bytes of memory that an engine's program, and what watches a container, need beside the container's.
const OVERHEAD: u64 = 48 << 20;

/// Gives containers.
#[derive(Clone)]
pub struct ContainerBackend(Rc<Shared>);

/// What all containers of this process share.
pub(crate) struct Shared {
    host: HostContext,
    engines: Rc<Engines>,
    claim: RefCell<Option<Arc<Claim>>>,
    kept: KeptSetUps,
    seen: SeenPlaces,
}

impl fmt::Debug for ContainerBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerBackend").field("engine", &self.0.engines.known()).finish_non_exhaustive()
    }
}

impl ContainerBackend {
    /// One that goes by `host`.
    #[must_use]
    pub fn new(host: HostContext) -> Self {
        let engines = Rc::new(Engines::new(host.clone()));
        Self::with_engines(host, engines)
    }

    /// The same, with an engine that others use, too.
    pub(crate) fn with_engines(host: HostContext, engines: Rc<Engines>) -> Self {
        Self(Rc::new(Shared {
            host,
            engines,
            claim: RefCell::default(),
            kept: KeptSetUps::default(),
            seen: SeenPlaces::default(),
        }))
    }

    /// What can be said of each engine that there is, with whether it works; an error where there is none.
    ///
    /// # Errors
    /// Why there is no engine, with what to do.
    pub async fn look(&self) -> Result<Vec<(bool, String)>, String> {
        let programs = find::candidates(&self.0.host).map_err(|NoEngine(why)| why)?;
        let mut said = Vec::new();
        for program in programs {
            said.push(match find::try_engine(&program, &self.0.host).await {
                Ok(engine) => (true, described(&engine)),
                Err(NoEngine(why)) => (false, why),
            });
        }
        Ok(said)
    }
}

/// Images that the engine keeps for this cache's containers: `removes` has all of them removed that are not in use, and gives those. No engine is asked where there is no
/// sign of any.
///
/// # Errors
/// Why the engine cannot be asked, for a person.
pub async fn kept_images(host: HostContext, removes: bool) -> Result<Vec<KeptImage>, String> {
    let cache = host.cache_dir.clone();
    if !keep::may_be_there(&cache) {
        return Ok(Vec::new());
    }
    let engine = find::find(&host).await.map_err(|NoEngine(why)| why)?;
    let kept = keep::kept(&engine, &cache).await;
    let kept = kept.map_err(|error| engine.lost("tell of its images", &error).to_string())?;
    Ok(if removes { keep::remove(&engine, &cache, kept).await } else { kept })
}

impl Shared {
    /// The engine, found once.
    pub(crate) async fn engine(&self) -> Result<&Engine, Lost> {
        self.engines.get().await
    }

    /// Leaves a note that this process has containers, if there is none yet. Without one nobody looks for what is left of them, which is
    /// nothing as a rule.
    pub(crate) fn claim(&self, engine: &Engine, owner: Option<&Owner>) -> Option<Arc<Claim>> {
        let mut claim = self.claim.borrow_mut();
        if claim.is_none()
            && let Some(owner) = owner
        {
            *claim = Claim::new(&self.host.cache_dir, owner, &engine.path).ok().map(Arc::new);
        }
        claim.clone()
    }
}

/// What an engine does not limit here, for a person.
fn unlimited(engine: &Engine) -> Option<String> {
    let options = &engine.options;
    let all = [("memory", options.memory), ("processors", options.cpus)];
    let unlimited: Vec<_> = all.into_iter().filter_map(|(what, limited)| (!limited).then_some(what)).collect();
    (!unlimited.is_empty()).then(|| unlimited.join(" and "))
}

/// An engine for a person: what it is, what it has to be told, and what it cannot do.
pub(crate) fn described(engine: &Engine) -> String {
    let options = &engine.options;
    let mut said = format!("{} ({})", engine.path.display(), engine.version);
    let told = options.runtime.iter().map(|runtime| format!("--runtime {runtime}"));
    let told: Vec<_> = told.chain(options.ulimits.iter().map(|limit| format!("--ulimit {limit}"))).collect();
    if !told.is_empty() {
        said.push_str(&format!("; a container starts with {}", told.join(" ")));
    }
    if let Some(what) = unlimited(engine) {
        said.push_str(&format!("; it cannot limit {what}"));
    }
    if !options.overlay {
        said.push_str(match engine.kind {
            EngineKind::Podman => "; it mounts no overlay, so that a workspace that is cow is copied",
            EngineKind::Docker => "; a workspace that is cow is copied",
        });
    }
    said
}

impl Backend for ContainerBackend {
    fn gives(&self, source: &Source) -> bool {
        source.container().is_some()
    }

    fn footprint(&self, hardware: &Hardware) -> Footprint {
        Footprint { memory: hardware.memory, overhead: OVERHEAD, program: "the container engine", cpus: hardware.cpus }
    }

    fn lacks(&self, source: &Source, hardware: &Hardware, needs: &BTreeSet<Need>) -> Option<String> {
        if needs.contains(&Need::Machine) {
            return Some(
                "it needs a machine, and this guest is a container, which has no kernel of its own".to_owned(),
            );
        }
        if needs.contains(&Need::Systemd) && source.container().is_some_and(|container| !container.systemd) {
            let said =
                "it needs systemd, and this guest is a container without it (`systemd = true` has the image's own run)";
            return Some(said.to_owned());
        }
        if hardware.spare_cpus > 0 || hardware.spare_memory > 0 {
            let said = "it wants processors or memory to plug in, and this guest is a container, which has none";
            return Some(said.to_owned());
        }
        if hardware.boot_lab {
            return Some("it wants to break the boot disk, and this guest is a container, which has none".to_owned());
        }
        (!hardware.disks.is_empty())
            .then(|| "it wants disks, and this guest is a container, which has none of its own".to_owned())
    }

    fn files(&self) -> GuestFiles {
        GuestFiles { console: None, scratch: &[CONTROL_DIR, prepared::COVERS_DIR] }
    }

    fn probe(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { self.0.engine().await.map(|_| None) })
    }

    fn obstacles(&self, spec: &GuestSpec) -> Vec<String> {
        // Whether one works is found out when it is needed: that takes seconds the first time.
        let found = self.0.engines.obstacles();
        let Some(source) = spec.source.container().filter(|_| found.is_empty()) else { return found };
        let missing = match &source.image {
            ImageRef::Path(path) => root::missing(path),
            ImageRef::Engine(name) if source.pull == PullPolicy::Never => lacks_image(&self.0.host, name),
            ImageRef::Engine(_) => None,
        };
        missing.into_iter().collect()
    }

    fn prepare(&self, request: PrepareRequest) -> Answer<'_, Box<dyn PreparedGuest>> {
        Box::pin(async move {
            let prepared = PreparedContainer::new(Rc::clone(&self.0), request).await?;
            Ok(Box::new(prepared) as Box<dyn PreparedGuest>)
        })
    }
}

/// Why there is no image of this name, by an engine that is known to work; none where there is one, or nobody is known to ask.
fn lacks_image(host: &HostContext, name: &str) -> Option<String> {
    let (host, name) = (host.clone(), name.to_owned());
    // Who asks may be in a runtime already, in which none can be begun.
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let engine = find::remembered(&host)?;
        let looked = runtime.block_on(image::look(&engine, &name, PullPolicy::Never));
        let Err(Lost { cause: Cause::Description(why), .. }) = looked else { return None };
        Some(why)
    });
    asked.join().ok().flatten()
}

/// A file for a person, in a guest's directory; without it a run is as good.
fn note(dir: &Path, name: &str, text: &str) {
    let _ = fs_err::write(dir.join(name), format!("{text}\n"));
}
