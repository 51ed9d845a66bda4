//! The way to a guest: a clone of a template where there can be one, a cold boot elsewhere.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use belljar_model::{EventKind, Phase};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    Cause, Lost,
    backend::Layer,
    boot::{Booted, Unbooted},
    derive::{Derived, PlugIn, RunSetUp, derive},
    guest::{Observe, Views},
    plan::Plan,
    plug::Unplugged,
    qemu::args::Accel,
    running::QemuGuest,
    template::{
        Blame, Claim, FailedCopy, Freezing, Making, Rest, Template, TemplateKey, TemplateStore, Unfrozen, Unthawed,
        blocking, freeze, memory, thaw,
    },
};

/// How often a template is looked for: once, again after it was waited for or found bad, and once more.
const TRIES: usize = 3;
/// A template whose copies failed so often in a row, and nobody knows why, is removed although its files are whole.
const FAILURES: usize = 3;
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
    store: TemplateStore,
    using: Use,
    /// Guests that could not be kept, and why not, so that it is not tried again and again.
    refused: Arc<Mutex<HashMap<TemplateKey, String>>>,
}

impl Templates {
    /// Templates that are kept in `store`. What could not be kept is remembered by this value and its clones.
    #[must_use]
    pub fn new(store: TemplateStore, using: Use) -> Self {
        Self { store, using, refused: Arc::default() }
    }

    /// Where they are.
    #[must_use]
    pub fn store(&self) -> &TemplateStore {
        &self.store
    }

    /// Whether they are used.
    #[must_use]
    pub fn using(&self) -> Use {
        self.using
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<TemplateKey, String>> {
        // Nothing is half-done while it is held.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a guest with a session, its shares mounted: a clone where there can be one, else one that boots. The set-up in `layer` is kept with
/// its template where that can be, else run in the guest each time; `view` gets the console of each QEMU that is started on the way.
///
/// Dropping the future kills what was started and removes what was half-made.
///
/// # Errors
/// A [`Lost`] that says what was awaited and what was seen.
pub async fn lease(
    plan: &Plan,
    templates: &Templates,
    mut layer: Option<&mut Layer<'_>>,
    view: Option<&Views>,
    observe: Observe<'_>,
) -> Result<QemuGuest, Lost> {
    observe(EventKind::Phase { phase: Phase::Boot });
    let way = Way { plan, templates, view };
    if let Some(layer) = layer.as_deref_mut() {
        match plan.fixed() {
            Ok(()) => {
                if let Some(guest) = way.copy(Some(layer), observe).await? {
                    return Ok(guest.with_restarts(plan, view).with_set_up());
                }
            }
            Err(why) => told(observe, SETTING_UP, "run", why),
        }
    }
    let guest = match way.copy(None, observe).await? {
        Some(guest) => guest,
        None => way.boot(observe).await?,
    };
    let mut guest = guest.with_restarts(plan, view);
    if let Some(layer) = layer {
        layer.set_up.run(&mut guest, observe).await?;
    }
    Ok(guest)
}

/// What is said to be chosen of templates, and of set-ups that are part of one.
pub(crate) const TEMPLATE: &str = "template";
/// What takes its time, and is told without being asked for.
pub(crate) const MADE: &str = "made";
const AWAITED: &str = "awaited";
pub(crate) const SETTING_UP: &str = "set-up";

/// The way to one guest.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) templates: &'a Templates,
    pub(crate) view: Option<&'a Views>,
}

/// What came of looking for a template.
pub(crate) enum Got {
    /// It is there. `fresh`: it was made just now, by a guest whose logs are to be added to.
    Template { template: Box<Template>, fresh: bool },
    /// The guest that was to become one goes on as it is.
    Guest(Box<QemuGuest>),
    /// There is none, and there will be none.
    Nothing,
}

impl Way<'_> {
    /// Boots a guest that is not kept.
    async fn boot(&self, observe: Observe<'_>) -> Result<QemuGuest, Lost> {
        let launch = self.plan.launch().map_err(|e| Cause::Description(e.to_string()))?;
        let booted = Booted::boot(self.plan, launch, self.view, observe).await.map_err(Unbooted::lost)?;
        booted.finish(self.plan, None, observe).await
    }

    /// A clone, or the guest that was to become a template and could not. `None`: one has to boot.
    async fn copy(&self, mut layer: Option<&mut Layer<'_>>, observe: Observe<'_>) -> Result<Option<QemuGuest>, Lost> {
        let what = if layer.is_some() { SETTING_UP } else { TEMPLATE };
        let Some(key) = self.key(layer.as_deref(), observe).await? else { return Ok(None) };
        let mut failed_before = false;
        let late_kind = self.plan.late_kind();
        for _ in 0..TRIES {
            let (template, fresh) = match self.template(&key, layer.as_deref_mut(), observe).await? {
                Got::Template { template, fresh } => (template, fresh),
                Got::Guest(guest) => return Ok(Some(*guest)),
                Got::Nothing => return Ok(None),
            };
            let noted = late_kind.and_then(|kind| self.templates.store.noted(&key, kind));
            if let Some(why) = noted {
                told(observe, what, "none", format!("a device could not be plugged into a copy before: {why}"));
                return Ok(None);
            }
            match thaw(self.plan, *template, fresh, self.view, observe).await {
                Ok(guest) => {
                    self.templates.store.forget_failures(&key);
                    return Ok(Some(guest));
                }
                Err(Unthawed::Unplugged(Unplugged { kind, why })) => {
                    warn(observe, format!("a device cannot be plugged into this guest, so that it has to boot: {why}"));
                    self.templates.store.note(&key, kind, &why);
                    return Ok(None);
                }
                Err(Unthawed::Lost(lost)) => return Err(lost),
                Err(Unthawed::Copy(failed)) if fresh && failed.blame != Blame::Host => {
                    self.remove(&key).await?;
                    let why = format!("it could be frozen, but its copy does not go on: {}", failed.why);
                    self.refuse(&key, why, observe);
                    return Ok(None);
                }
                Err(Unthawed::Copy(failed)) => {
                    let Some(why) = self.judge(&key, *failed, observe).await? else { continue };
                    // Once more, for what the host lacked it may have now.
                    if std::mem::replace(&mut failed_before, true) {
                        warn(
                            observe,
                            format!(
                                "no copy of this guest's template could be started, so that the guest boots; the template stays, for its files are whole: {why}"
                            ),
                        );
                        return Ok(None);
                    }
                    told(
                        observe,
                        what,
                        "again",
                        format!("a copy could not be started, which the template is not to blame for: {why}"),
                    );
                }
            }
        }
        told(observe, what, "none", "the one that there was came to nothing");
        Ok(None)
    }

    /// Removes a template that is of no use; gives why a copy failed if the template stays.
    async fn judge(&self, key: &TemplateKey, failed: FailedCopy, observe: Observe<'_>) -> Result<Option<String>, Lost> {
        let FailedCopy { blame, why, template } = failed;
        let flaw = match blame {
            Blame::Host => return Ok(Some(why)),
            Blame::Template => Some(String::new()),
            Blame::Unknown => {
                let (store, key) = (self.templates.store.clone(), key.clone());
                blocking(move || match template.as_ref().map(Template::verify) {
                    Some(Err(flaw)) if !flaw.is_the_hosts() => Some(format!(" ({flaw})")),
                    _ => (store.count_failure(&key) >= FAILURES).then(|| format!(" (the {FAILURES}. time in a row)")),
                })
                .await?
            }
        };
        let Some(flaw) = flaw else { return Ok(Some(why)) };
        warn(observe, format!("the template of this guest is of no use and was removed: {why}{flaw}"));
        self.remove(key).await?;
        Ok(None)
    }

    /// Under which name the template is kept, if it can be.
    pub(crate) async fn key(
        &self,
        layer: Option<&Layer<'_>>,
        observe: Observe<'_>,
    ) -> Result<Option<TemplateKey>, Lost> {
        if self.templates.using == Use::Never {
            return Ok(None);
        }
        let (plan, id) = (self.plan.clone(), layer.map(|l| l.id));
        match blocking(move || plan.template_key(id.as_ref())).await? {
            Ok(key) => Ok(Some(key)),
            // It is said once, of the guest.
            Err(_) if layer.is_some() => Ok(None),
            Err(why) => {
                told(observe, TEMPLATE, "none", why.to_string());
                Ok(None)
            }
        }
    }

    /// Finds the template, or makes it.
    pub(crate) async fn template(
        &self,
        key: &TemplateKey,
        layer: Option<&mut Layer<'_>>,
        observe: Observe<'_>,
    ) -> Result<Got, Lost> {
        let what = if layer.is_some() { SETTING_UP } else { TEMPLATE };
        let store = &self.templates.store;
        let more = layer.as_ref().map_or(Duration::ZERO, |layer| layer.limit);
        let limit = self.plan.boot_limit().saturating_add(more);
        let mut waiting: Option<Instant> = None;
        let mut tries = 0;
        while tries < TRIES {
            let found = {
                let (store, key) = (store.clone(), key.clone());
                blocking(move || store.find(&key)).await?
            };
            match found {
                Ok(Some(template)) => {
                    told(observe, what, "found", format!("made {} ago", age(template.made())));
                    return Ok(Got::Template { template: Box::new(template), fresh: false });
                }
                Ok(None) => {}
                Err(flaw) if flaw.is_the_hosts() => {
                    warn(
                        observe,
                        format!(
                            "the template of this guest is there and cannot be looked at now, so that the guest boots: {flaw}"
                        ),
                    );
                    return Ok(Got::Nothing);
                }
                Err(flaw) => warn(observe, format!("the template of this guest was removed, for {flaw}")),
            }
            if self.templates.using == Use::Find {
                told(observe, what, "none", "there is none for this guest, and none is to be made");
                return Ok(Got::Nothing);
            }
            if let Some(why) = self.refused(key) {
                told(observe, what, "none", why);
                return Ok(Got::Nothing);
            }
            let claim = {
                let (store, key) = (store.clone(), key.clone());
                blocking(move || store.claim(&key, false)).await?
            };
            match claim {
                Ok(Claim::Ours(making)) => {
                    // By whoever had the claim before.
                    if let Some(why) = self.refused(key) {
                        told(observe, what, "none", why);
                        return Ok(Got::Nothing);
                    }
                    let title = layer.as_ref().map(|layer| format!(", {}", layer.title)).unwrap_or_default();
                    making.announce(&format!("{}{title}", self.plan.title_of_template()));
                    return self.make(key, making, layer, observe).await;
                }
                Ok(Claim::Made) => tries += 1,
                Ok(Claim::Taken) => {
                    // Of several who wait, each has its turn if those before it made nothing.
                    let since = *waiting.get_or_insert_with(|| {
                        let limit = crate::for_people(limit);
                        told(observe, what, AWAITED, format!("somebody else is making it, for {limit} at most"));
                        Instant::now()
                    });
                    let left = limit.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        break;
                    }
                    await_maker(store, key, left).await;
                }
                Err(error) => {
                    let dir = store.dir().display();
                    let why = format!("templates cannot be kept in {dir}, so that every guest has to boot: {error}");
                    // Of the set-up there is nothing more to say, nor of the next guest.
                    if self.remember(key, why.clone()) && layer.is_none() {
                        warn(observe, why);
                    }
                    return Ok(Got::Nothing);
                }
            }
        }
        told(observe, what, "none", "the one that there was came to nothing");
        Ok(Got::Nothing)
    }

    /// Makes a template: of another one, or by a boot.
    async fn make(
        &self,
        key: &TemplateKey,
        making: Making,
        layer: Option<&mut Layer<'_>>,
        observe: Observe<'_>,
    ) -> Result<Got, Lost> {
        // A recipe asks for a template in its turn: the guest's own without its set-up, or its base's.
        let derived = match (layer, self.plan.base()) {
            (Some(layer), _) => Box::pin(derive(self, &mut RunSetUp(layer), key, making, observe)).await?,
            (None, Some(base)) => Box::pin(derive(self, &mut PlugIn { base }, key, making, observe)).await?,
            (None, None) => return self.boot_and_freeze(key, making, observe).await,
        };
        match derived {
            Derived::Got(got) => Ok(got),
            Derived::Boot(making) => {
                if let Err(why) = making.clear() {
                    self.refuse(key, why.to_string(), observe);
                    return Ok(Got::Nothing);
                }
                self.boot_and_freeze(key, making, observe).await
            }
        }
    }

    /// Boots a guest, and freezes it.
    async fn boot_and_freeze(&self, key: &TemplateKey, making: Making, observe: Observe<'_>) -> Result<Got, Lost> {
        let plan = self.plan;
        if let Err(why) = has_room(making.dir(), plan.ram_size()) {
            self.refuse(key, why, observe);
            return Ok(Got::Nothing);
        }
        let boot = if plan.accel() == Accel::Kvm { "seconds" } else { "a minute or so without KVM" };
        let limit = crate::for_people(plan.boot_limit());
        told(
            observe,
            TEMPLATE,
            MADE,
            format!(
                "there is none for this guest yet; it boots once ({boot}, {limit} at most), and is copied from then on"
            ),
        );
        let since = Instant::now();
        let prepared = memory(plan.ram_size()).and_then(|ram| {
            let again = ram.try_clone()?;
            plan.launch_to_freeze(&making, ram.into()).map(|launch| (launch, again)).map_err(io::Error::other)
        });
        let (launch, ram) = match prepared {
            Ok(prepared) => prepared,
            Err(why) => {
                self.refuse(key, why.to_string(), observe);
                return Ok(Got::Nothing);
            }
        };
        let mut booted = match Booted::boot(plan, launch, self.view, observe).await {
            Ok(booted) => booted,
            // A machine as it has to be for a template may be one that this QEMU cannot make.
            Err(Unbooted::Start(why)) => {
                self.refuse(key, Cause::from(why).to_string(), observe);
                return Ok(Got::Nothing);
            }
            Err(Unbooted::Lost(lost)) => return Err(lost),
        };
        let Booted { machine, entered, .. } = &mut booted;
        let mut making = Some(making);
        let mut freezing = Freezing {
            plan,
            title: plan.title_of_template(),
            base: None,
            making: &mut making,
            ram,
            since,
            rest: Rest::PartOfBoot,
        };
        match freeze(machine, entered, &mut freezing, observe).await {
            Ok(template) => {
                booted.machine.qemu.kill().await;
                Ok(Got::Template { template: Box::new(template), fresh: true })
            }
            Err(Unfrozen::Lost(lost)) => Err(booted.machine.give_up(lost, Phase::Session).await),
            Err(Unfrozen::Spent(lost)) => {
                let lost = booted.machine.give_up(lost, Phase::Session).await;
                self.refuse(key, lost.to_string(), observe);
                Ok(Got::Nothing)
            }
            Err(Unfrozen::GoesOn(why)) => {
                self.refuse(key, why, observe);
                drop(making);
                if plan.late_kind().is_some() {
                    // It booted without the devices that each copy was to get.
                    booted.machine.qemu.kill().await;
                    return Ok(Got::Nothing);
                }
                booted.finish(plan, None, observe).await.map(|guest| Got::Guest(Box::new(guest)))
            }
        }
    }

    async fn remove(&self, key: &TemplateKey) -> Result<(), Lost> {
        let (store, key) = (self.templates.store.clone(), key.clone());
        blocking(move || store.remove(&key)).await
    }

    /// Says that this guest has no template, and remembers it.
    fn refuse(&self, key: &TemplateKey, why: String, observe: Observe<'_>) {
        if self.remember(key, why.clone()) {
            warn(observe, format!("this guest cannot be kept as a template, so that it has to boot each time: {why}"));
        }
    }

    /// Why there is to be no template, if that is known.
    fn refused(&self, key: &TemplateKey) -> Option<String> {
        self.templates.refused().get(key).map(|why| format!("it could not be kept before: {why}"))
    }

    /// Nobody who shares these [`Templates`] tries again to make it. Tells whether that is news.
    pub(crate) fn remember(&self, key: &TemplateKey, why: String) -> bool {
        self.templates.refused().insert(key.clone(), why).is_none()
    }
}

/// Waits until whoever makes the template has made it, or has given up.
async fn await_maker(store: &TemplateStore, key: &TemplateKey, limit: Duration) {
    let (tell, told) = oneshot::channel();
    let (store, key) = (store.clone(), key.clone());
    // A thread of its own: if nobody waits any more it must not keep a runtime from ending.
    std::thread::spawn(move || {
        // A claim that nobody takes is given back at once.
        drop(tell.send(store.claim(&key, true).map(drop)));
    });
    drop(tokio::time::timeout(limit, told).await);
}

pub(crate) fn has_room(dir: &Path, ram: u64) -> Result<(), String> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| e.to_string())?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let wanted = ram.saturating_add(ROOM);
    if free < wanted {
        let (free, wanted, dir) = (free >> 20, wanted >> 20, dir.display());
        return Err(format!(
            "there is not enough room in {dir}: {free} MiB are free, and {wanted} MiB are wanted for its memory and what is left to the host"
        ));
    }
    Ok(())
}

pub(crate) fn told(observe: Observe<'_>, what: &str, chosen: &str, why: impl Into<String>) {
    observe(EventKind::Choice { what: what.into(), chosen: chosen.into(), why: why.into() });
}

pub(crate) fn warn(observe: Observe<'_>, message: String) {
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
