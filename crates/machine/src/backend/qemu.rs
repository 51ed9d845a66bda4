//! Guests that are machines in QEMU.

use std::{collections::BTreeSet, rc::Rc, sync::Arc};

use belljar_guest_spec::{BootSource, GuestSpec, Hardware, ImageRef, Need, Source};
use belljar_model::EventKind;

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
    plan_obstacles,
    qemu::{platform, probe},
    running::CONSOLE_LOG,
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
}

impl Backend for QemuBackend {
    fn gives(&self, source: &Source) -> bool {
        source.boot().is_some()
    }

    fn footprint(&self, hardware: &Hardware) -> Footprint {
        Footprint { memory: hardware.memory, overhead: OVERHEAD, program: "QEMU", cpus: hardware.cpus }
    }

    fn lacks(&self, _: &Source, _: &Hardware, _: &BTreeSet<Need>) -> Option<String> {
        // A machine can have all that can be asked for.
        None
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
        if let BootSource::ContainerImage { image: ImageRef::Engine(_), .. } = source {
            obstacles.extend(self.engines.obstacles());
        }
        obstacles
    }

    fn prepare(&self, request: PrepareRequest) -> Answer<'_, Box<dyn PreparedGuest>> {
        let host = (*self.host).clone();
        let PrepareRequest { spec, share, dir } = request;
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
            let prepare = move || plan::prepare(&source, root, &spec, &share, host, dir);
            let plan = blocking("preparation", prepare).await?;
            let plan = plan.map_err(|error| Lost::from(Cause::Description(error.to_string())).lasting())?;
            Ok(Box::new(PreparedMachine { plan, templates: self.templates.clone() }) as Box<dyn PreparedGuest>)
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
        let LeaseRequest { share, dir, layer, view } = request;
        Box::pin(async move {
            let plan = self.plan.at(share, dir);
            let guest = lease::lease(&plan, &self.templates, layer, view.as_ref(), observe).await?;
            Ok(Box::new(guest) as Box<dyn Guest>)
        })
    }
}
