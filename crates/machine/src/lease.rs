//! The way to a guest: a clone of a template where there can be one, a cold boot elsewhere.

use std::{
    fs::File,
    io,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use belljar_model::{EventKind, Phase, Verdict};
use rustix::fs::MemfdFlags;
use tokio::sync::oneshot;

use crate::{
    Lost,
    boot::{Booted, Unbooted},
    command::GuestCommand,
    guest::{Guest, Io, Observe, Views},
    plan::Plan,
    session::agent::OutputSink,
    template::{Claim, Making, TemplateKey, TemplateStore, Unfrozen, Unthawed, freeze, thaw},
};

/// How often a template is looked for: once, again after it was waited for or found bad, and once more.
const TRIES: usize = 3;
/// Bytes that must be free beside the guest's memory before a template is made: what it writes while it boots, and some for others.
const ROOM: u64 = 1 << 30;

/// Whether templates are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Used where there is one, and made where there is none.
    #[default]
    Make,
    /// Used where there is one.
    Find,
    /// Every guest boots.
    Never,
}

/// Where templates are, and whether they are used.
#[derive(Clone, Debug)]
pub struct Templates {
    /// Where they are.
    pub store: TemplateStore,
    /// Whether they are used.
    pub using: Use,
}

/// A guest that is wanted.
pub struct Lease<'a> {
    /// Which.
    pub plan: Plan,
    /// Where its template may be.
    pub templates: &'a Templates,
    /// Set-up that runs once and is part of the template.
    pub layer: Option<Layer<'a>>,
    /// Gets the console of each QEMU that is started on the way.
    pub view: Option<Views>,
}

/// Set-up of a guest, before any command that wants it.
pub struct Layer<'a> {
    /// Hash of all that decides what the set-up does: its script, what that reads, its environment.
    pub id: [u8; 32],
    /// Runs with the shares mounted and must exit with 0.
    pub command: GuestCommand,
    /// Limit to the command.
    pub timeout: Option<Duration>,
    /// Takes its output.
    pub sink: &'a mut dyn OutputSink,
}

impl<'a> Lease<'a> {
    /// The guest of this plan, with nothing set up in it, shown to nobody.
    #[must_use]
    pub fn new(plan: Plan, templates: &'a Templates) -> Self {
        Self { plan, templates, layer: None, view: None }
    }
}

/// Gives a guest with a session, its shares mounted: a clone where there can be one, else one that boots.
///
/// Dropping the future kills what was started and removes what was half-made.
///
/// # Errors
/// A [`Lost`] that says what was awaited and what was seen.
pub async fn lease(wanted: Lease<'_>, observe: Observe<'_>) -> Result<Guest, Lost> {
    let Lease { plan, templates, layer, view } = wanted;
    observe(EventKind::Phase { phase: Phase::Boot });
    let view = view.as_ref();
    let mut guest = match by_template(&plan, templates, view, observe).await? {
        Some(guest) => guest,
        None => boot(&plan, view, observe).await?,
    };
    if let Some(layer) = layer {
        set_up(&mut guest, layer, observe).await?;
    }
    Ok(guest)
}

/// Boots a guest that is not kept.
async fn boot(plan: &Plan, view: Option<&Views>, observe: Observe<'_>) -> Result<Guest, Lost> {
    let launch = plan.launch().map_err(|e| Lost::host(e.to_string()))?;
    let booted = Booted::boot(plan, launch, view, observe).await.map_err(Unbooted::lost)?;
    booted.finish(&plan.share, observe).await
}

/// A clone, or the guest that was to become a template and could not. `None`: one has to boot.
async fn by_template(
    plan: &Plan,
    templates: &Templates,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<Option<Guest>, Lost> {
    if templates.using == Use::Never {
        return Ok(None);
    }
    let key = {
        let plan = plan.clone();
        blocking(move || plan.template_key(None)).await?
    };
    let key = match key {
        Ok(key) => key,
        Err(why) => {
            choice(observe, "none", why.to_string());
            return Ok(None);
        }
    };
    let store = &templates.store;
    let mut waited = false;
    for _ in 0..TRIES {
        let found = {
            let (store, key) = (store.clone(), key.clone());
            blocking(move || store.find(&key)).await?
        };
        match found {
            Ok(Some(template)) => {
                choice(observe, "found", format!("made {} ago", age(template.made())));
                match thaw(plan, template, false, view, observe).await {
                    Ok(guest) => return Ok(Some(guest)),
                    Err(Unthawed::Lost(lost)) => return Err(lost),
                    Err(Unthawed::Template(why)) => {
                        warn(observe, format!("the template of this guest is of no use and was removed: {why}"));
                        let (store, key) = (store.clone(), key.clone());
                        blocking(move || store.remove(&key)).await?;
                    }
                }
            }
            Ok(None) => {}
            Err(flaw) => warn(observe, format!("the template of this guest was removed, for {flaw}")),
        }
        if templates.using == Use::Find {
            choice(observe, "none", "there is none for this guest, and none is to be made");
            return Ok(None);
        }
        let claim = {
            let (store, key) = (store.clone(), key.clone());
            blocking(move || store.claim(&key, false)).await?
        };
        match claim {
            Ok(Claim::Ours(making)) => return make(plan, making, view, observe).await,
            Ok(Claim::Made) => {}
            Ok(Claim::Taken) if waited => {}
            Ok(Claim::Taken) => {
                choice(observe, "awaited", "somebody else is making it");
                waited = true;
                await_maker(store, &key, plan).await;
            }
            Err(error) => {
                let dir = store.dir().display();
                warn(observe, format!("templates cannot be kept in {dir}, so that every guest has to boot: {error}"));
                return Ok(None);
            }
        }
    }
    choice(observe, "none", "the one that there was came to nothing");
    Ok(None)
}

/// Boots a guest, freezes it, and gives a clone of it.
async fn make(plan: &Plan, making: Making, view: Option<&Views>, observe: Observe<'_>) -> Result<Option<Guest>, Lost> {
    let (store, key) = (making.store().clone(), making.key().clone());
    if let Err(why) = has_room(making.dir(), plan.ram_size()) {
        warn(observe, format!("this guest cannot be kept as a template, so that it has to boot each time: {why}"));
        return Ok(None);
    }
    choice(observe, "made", "there is none for this guest yet; it boots once, and is copied from then on");
    let since = Instant::now();
    let prepared = memory(plan.ram_size()).and_then(|ram| {
        let again = ram.try_clone()?;
        plan.launch_to_freeze(&making, ram.into()).map(|launch| (launch, again)).map_err(io::Error::other)
    });
    let (launch, ram) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => {
            warn(observe, format!("this guest cannot be kept as a template: {why}"));
            return Ok(None);
        }
    };
    let mut booted = match Booted::boot(plan, launch, view, observe).await {
        Ok(booted) => booted,
        // A machine as it has to be for a template may be one that this QEMU cannot make.
        Err(Unbooted::Start(why)) => {
            warn(observe, format!("this guest cannot be kept as a template: {why}"));
            return Ok(None);
        }
        Err(Unbooted::Lost(lost)) => return Err(lost),
    };
    match freeze(&mut booted, plan, making, ram, since, observe).await {
        Ok(template) => {
            booted.machine.qemu.kill().await;
            drop(booted);
            match thaw(plan, template, true, view, observe).await {
                Ok(guest) => Ok(Some(guest)),
                Err(Unthawed::Lost(lost)) => Err(lost),
                Err(Unthawed::Template(why)) => {
                    warn(observe, format!("this guest could be frozen, but its copy does not go on: {why}"));
                    store.remove(&key);
                    Ok(None)
                }
            }
        }
        Err(Unfrozen::Lost(lost)) => Err(booted.machine.give_up(lost, Phase::Session).await),
        Err(Unfrozen::GoesOn(why)) => {
            warn(observe, format!("this guest cannot be kept as a template: {why}"));
            booted.finish(&plan.share, observe).await.map(Some)
        }
    }
}

/// Waits until whoever makes the template has made it, or has given up.
async fn await_maker(store: &TemplateStore, key: &TemplateKey, plan: &Plan) {
    let (tell, told) = oneshot::channel();
    let (store, key) = (store.clone(), key.clone());
    // A thread of its own: if nobody waits any more it must not keep a runtime from ending.
    std::thread::spawn(move || {
        // A claim that nobody takes is given back at once.
        drop(tell.send(store.claim(&key, true).map(drop)));
    });
    drop(tokio::time::timeout(plan.boot_limit(), told).await);
}

/// A guest's memory, in a file without a name.
fn memory(size: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create("belljar-ram", MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    Ok(file)
}

fn has_room(dir: &Path, ram: u64) -> Result<(), String> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| e.to_string())?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < ram.saturating_add(ROOM) {
        return Err(format!("there is not enough room in {}", dir.display()));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Lost> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Lost::host(format!("Belljar's own work on a template broke off: {e}; please report it")))
}

fn choice(observe: Observe<'_>, chosen: &str, why: impl Into<String>) {
    observe(EventKind::Choice { what: "template".into(), chosen: chosen.into(), why: why.into() });
}

fn warn(observe: Observe<'_>, message: String) {
    observe(EventKind::Warning { message });
}

/// How long ago these seconds since the epoch were.
fn age(made: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match now.saturating_sub(made) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

async fn set_up(guest: &mut Guest, layer: Layer<'_>, observe: Observe<'_>) -> Result<(), Lost> {
    observe(EventKind::Choice {
        what: "set-up".into(),
        chosen: "run".into(),
        why: "the guest has not been set up yet".into(),
    });
    let Layer { command, timeout, sink, .. } = layer;
    let running = guest.exec(command, Io { stdin: None, sink, control: None }, observe);
    let exit = match timeout {
        Some(limit) => tokio::time::timeout(limit, running).await.unwrap_or_else(|_| {
            let limit = crate::for_people(limit);
            Err(Lost::timeout(Phase::Session, format!("the set-up of the guest was given {limit} and had not ended")))
        })?,
        None => running.await?,
    };
    let verdict = Verdict::of_exit(exit);
    if verdict == Verdict::Pass {
        return Ok(());
    }
    Err(Lost { verdict, message: Some("the set-up of the guest failed".into()), tail: Vec::new() })
}
