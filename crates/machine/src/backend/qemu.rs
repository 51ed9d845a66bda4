//! Guests that are machines in QEMU.

use std::{collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use belljar_guest_spec::{BootSource, GuestSpec, Hardware, ImageRef, Need, Source};
use belljar_model::EventKind;
use tokio::{sync::watch, time::Instant};

use super::{
    Backend, ByHand, Footprint, GuestFiles, LeaseRequest, PrepareRequest, PreparedGuest,
    container::{find::Engines, root},
};
use crate::{
    Cause, Lost,
    command::GuestCommand,
    guest::{Answer, Guest, Observe},
    host::HostContext,
    lease::{self, Templates},
    lost::blocking,
    plan::{self, CONTROL_DIR, Plan},
    plan_direct::{self, WayBack},
    plan_obstacles,
    qemu::{platform, probe},
    running::{CONSOLE_LOG, QemuGuest},
    spec::ShareSpec,
    volume::directory,
};

/// Bytes of memory that QEMU needs beside the guest's.
const OVERHEAD: u64 = 160 << 20;

/// Gives machines in QEMU: those that boot, and copies of templates.
#[derive(Clone, Debug)]
pub struct QemuBackend {
    host: Arc<HostContext>,
    templates: Templates,
    /// What has container images, which may be roots of machines.
    engines: Rc<Engines>,
}

impl QemuBackend {
    /// One that goes by `host`, and keeps its templates there.
    #[must_use]
    pub fn new(host: HostContext, templates: Templates) -> Self {
        let engines = Rc::new(Engines::new(host.clone()));
        Self::with_engines(host, templates, engines)
    }

    /// The same, with an engine that others use, too.
    pub(crate) fn with_engines(host: HostContext, templates: Templates, engines: Rc<Engines>) -> Self {
        Self { host: Arc::new(host), templates, engines }
    }
}

/// The plan of a machine.
#[derive(Debug)]
struct PreparedMachine {
    plan: Plan,
    templates: Templates,
    /// What it was made of.
    spec: GuestSpec,
    share: ShareSpec,
    /// The plan that is followed instead since nobody got in by this one.
    detour: watch::Sender<Option<Rc<Plan>>>,
}

impl PreparedMachine {
    /// Plans the other start of what is in the image whose own boot let nobody in.
    async fn plan_detour(&self, closed: &Lost) -> Result<Plan, String> {
        let Some(source) = self.spec.source.boot().cloned() else { return Err("it is no machine".to_owned()) };
        let (spec, share, host, dir) =
            (self.spec.clone(), self.share.clone(), self.plan.host.clone(), self.plan.dir.clone());
        let why = format!("nobody got in by the image's own boot: {}", closed.cause);
        let prepare = move || {
            plan_direct::remember_closed(&source, &host, &dir, Some(&why));
            plan::prepare(&source, None, &spec, &share, host, dir)
        };
        let plan = blocking("preparation", prepare).await.map_err(|lost| lost.cause.to_string())?;
        let mut plan = plan.map_err(|error| error.to_string())?;
        plan.complete_volumes(Vec::new()).await.map_err(|lost| lost.cause.to_string())?;
        if !plan.is_started_by_us() {
            // Where the cache cannot be written to.
            return Err("that its own boot lets nobody in could not be written to the cache".to_owned());
        }
        plan.again = true;
        Ok(plan)
    }

    /// The image's own boot may let somebody in the next time.
    async fn forget_closed(&self) {
        let Some(source) = self.spec.source.boot().cloned() else { return };
        let (host, dir) = (self.plan.host.clone(), self.plan.dir.clone());
        let forget = move || plan_direct::remember_closed(&source, &host, &dir, None);
        // It is forgotten by itself after a day.
        drop(blocking("the cache", forget).await);
    }

    /// Finds the other way where nobody got in by the image's own boot, and tells it to all who want such a guest. Gives back what was lost.
    ///
    /// # Errors
    /// What was lost, where there is no other way, or no time left for it.
    async fn find_detour(&self, closed: Lost, left: Option<Duration>, observe: Observe<'_>) -> Result<Lost, Lost> {
        if left.is_some_and(|left| left.is_zero()) {
            return Err(closed);
        }
        let how = match self.plan.way_back {
            WayBack::Grub => "it is booted once more, by a GRUB of Belljar's own (--access grub does that at once)",
            _ => "its kernel is started once more, directly (--access initrd does that at once)",
        };
        observe(EventKind::Warning {
            message: format!("nobody got in by the image's own boot, so that {how}: {}", closed.cause),
        });
        match self.plan_detour(&closed).await {
            Ok(plan) => {
                let told = self.plan.choices();
                plan.choices().iter().filter(|kind| !told.contains(kind)).cloned().for_each(observe);
                self.detour.send_replace(Some(Rc::new(plan)));
                Ok(closed)
            }
            Err(why) => {
                self.forget_closed().await;
                Err(closed.and_advice(format!("its kernel could not be started otherwise either: {why}")))
            }
        }
    }

    /// A guest by this plan, or by another where nobody gets in.
    async fn lease(&self, request: LeaseRequest<'_>, observe: Observe<'_>) -> Result<QemuGuest, Lost> {
        let LeaseRequest { share, dir, mut layer, view } = request;
        let mut detour = self.detour.subscribe();
        let since = Instant::now();
        let own = self.plan.at(share.clone(), dir.clone());
        let mut closed = None;
        let mut left = None;
        if detour.borrow_and_update().is_none() {
            let leased = tokio::select! {
                biased;
                leased = lease::lease(&own, &self.templates, layer.as_mut(), view.as_ref(), observe) => Some(leased),
                // Somebody else has found out that this one lets nobody in.
                Ok(_) = detour.changed() => None,
            };
            match leased {
                Some(Err(lost)) if lost.no_way_in && self.plan.way_back.is_there() => {
                    left = self.plan.boot_timeout.map(|limit| limit.saturating_sub(since.elapsed()));
                    closed = Some(self.find_detour(lost, left, observe).await?);
                }
                Some(Err(lost)) if self.plan.is_by_our_grub() || (lost.no_way_in && self.plan.is_started_by_us()) => {
                    // If it was started directly for its own boot's sake, that is tried again the next time.
                    self.forget_closed().await;
                    return Err(lost);
                }
                Some(leased) => return leased,
                None => {}
            }
        }
        let Some(other) = self.detour.borrow().clone() else {
            return Err(Cause::Defect("the other way into a guest is gone".to_owned()).into());
        };
        let mut plan = other.at(share, dir);
        // Both boots have one limit.
        plan.boot_timeout = left.or(plan.boot_timeout);
        let leased = lease::lease(&plan, &self.templates, layer.as_mut(), view.as_ref(), observe).await;
        match (leased, closed) {
            (Err(lost), Some(closed)) if lost.no_way_in || plan.is_by_our_grub() => {
                // With all of the time that was said, the other way may lead there, but not where it ended before that.
                if self.plan.boot_timeout.is_none() || !lost.no_way_in {
                    self.forget_closed().await;
                }
                Err(lost.and_advice(format!("before that, by the image's own boot: {}", closed.cause)))
            }
            (leased, _) => leased,
        }
    }
}

impl Backend for QemuBackend {
    fn gives(&self, source: &Source) -> bool {
        source.boot().is_some()
    }

    fn footprint(&self, hardware: &Hardware) -> Footprint {
        Footprint { memory: hardware.most_memory(), overhead: OVERHEAD, program: "QEMU", cpus: hardware.most_cpus() }
    }

    fn lacks(&self, source: &Source, hardware: &Hardware, _: &BTreeSet<Need>) -> Option<String> {
        // A machine can have all else that can be asked for.
        let boots_from_disk = matches!(source.boot(), Some(BootSource::Image { .. }));
        (hardware.boot_lab && !boots_from_disk)
            .then(|| format!("it wants to break the boot disk, and this guest has none: it boots from {source}"))
    }

    fn files(&self) -> GuestFiles {
        // What the guest fetched the agent from is the same for all.
        GuestFiles { console: Some(CONSOLE_LOG), scratch: &[CONTROL_DIR] }
    }

    fn probe(&self) -> Answer<'_, Option<String>> {
        let host = Arc::clone(&self.host);
        let look = move || -> Result<String, Lost> {
            let cannot = |why: String| Lost::from(Cause::Description(why)).lasting();
            let platform = platform::default();
            let qemu = probe::find_qemu(platform, host.qemu.as_deref(), host.path.as_deref(), &host.cache_dir);
            let qemu = qemu.map_err(|e| cannot(e.to_string()))?;
            let accel = probe::choose_accel(platform, host.accel, &qemu, &host.shim, &host.cache_dir);
            Ok(accel.map_err(|e| cannot(e.to_string()))?.accel.to_string())
        };
        Box::pin(async { blocking("look for QEMU", look).await?.map(Some) })
    }

    fn obstacles(&self, spec: &GuestSpec) -> Vec<String> {
        let Some(source) = spec.source.boot() else { return Vec::new() };
        let mut obstacles = plan_obstacles::obstacles(source, spec, &self.host);
        match source {
            BootSource::ContainerImage { image: ImageRef::Engine(_), .. } => obstacles.extend(self.engines.obstacles()),
            BootSource::ContainerImage { image: ImageRef::Path(path), .. } => obstacles.extend(root::missing(path)),
            _ => {}
        }
        obstacles
    }

    fn prepare(&self, request: PrepareRequest) -> Answer<'_, Box<dyn PreparedGuest>> {
        let host = (*self.host).clone();
        let PrepareRequest { spec, share, dir, leased_at_once: _ } = request;
        Box::pin(async move {
            let Some(source) = spec.source.boot().cloned() else {
                return Err(Cause::Defect(format!("QEMU was asked for a guest of {}", spec.source)).into());
            };
            let root = match &source {
                BootSource::ContainerImage { image, pull, .. } => {
                    Some(root::prepare(&self.engines, image, *pull, (&host, &dir)).await?)
                }
                _ => None,
            };
            let mut spec = spec;
            let made = directory::make_all(&mut spec.hardware.disks, &host, &dir).await?;
            let (for_guest, for_share) = (spec.clone(), share.clone());
            let prepare = move || plan::prepare(&source, root, &for_guest, &for_share, host, dir);
            let plan = blocking("preparation", prepare).await?;
            let mut plan = plan.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting())?;
            plan.complete_volumes(made).await?;
            let (templates, detour) = (self.templates.clone(), watch::Sender::new(None));
            Ok(Box::new(PreparedMachine { plan, templates, spec, share, detour }) as Box<dyn PreparedGuest>)
        })
    }
}

impl PreparedGuest for PreparedMachine {
    fn choices(&self) -> &[EventKind] {
        self.plan.choices()
    }

    fn by_hand(&self, _: Option<&GuestCommand>) -> Result<ByHand, Lost> {
        let commands = self.plan.command_line().map_err(|e| Cause::Description(e.to_string()))?;
        Ok(ByHand { commands, needs_dir: self.plan.needs_run_dir() })
    }

    fn lease<'a, 'l: 'a>(&'a self, request: LeaseRequest<'l>, observe: Observe<'a>) -> Answer<'a, Box<dyn Guest>> {
        Box::pin(async move { Ok(Box::new(self.lease(request, observe).await?) as Box<dyn Guest>) })
    }
}
