//! The plans of a run's machines, each made once: boot files that were made twice would be those of two guests.

use std::path::PathBuf;

use belljar_guest_spec::GuestSpec;
use belljar_machine::{
    Cause, Lost,
    host::HostContext,
    plan::{Place, Plan},
    spec::ShareSpec,
};
use tokio::sync::OnceCell;

use crate::{attempt, cancel::Cancel};

/// What is known of a machine.
struct MachinePlan {
    spec: Result<GuestSpec, String>,
    plan: OnceCell<Plan>,
}

/// The plans of all machines of a run.
pub(crate) struct MachinePlans {
    host: HostContext,
    /// The run's directory.
    run_dir: PathBuf,
    machines: Vec<MachinePlan>,
}

impl MachinePlans {
    /// Plans that are made when they are asked for.
    pub(crate) fn new(
        host: HostContext,
        run_dir: PathBuf,
        specs: impl IntoIterator<Item = Result<GuestSpec, String>>,
    ) -> Self {
        let machines = specs.into_iter().map(|spec| MachinePlan { spec, plan: OnceCell::new() }).collect();
        Self { host, run_dir, machines }
    }

    /// The same for other machines.
    pub(crate) fn of(&self, specs: impl IntoIterator<Item = Result<GuestSpec, String>>) -> Self {
        Self::new(self.host.clone(), self.run_dir.clone(), specs)
    }

    /// How many machines there are.
    pub(crate) fn len(&self) -> usize {
        self.machines.len()
    }

    /// The plan of a machine, for a guest in this place.
    ///
    /// # Errors
    /// If there is no such guest on this host, or the run is to end.
    pub(crate) async fn get(
        &self,
        machine: usize,
        share: ShareSpec,
        place: Place,
        cancel: &mut Cancel,
    ) -> Result<Plan, Lost> {
        let MachinePlan { spec, plan } = &self.machines[machine];
        let prepared = plan.get_or_try_init(|| self.prepare(spec, &share, &place, cancel)).await?.clone();
        Ok(prepared.at(share, place))
    }

    async fn prepare(
        &self,
        spec: &Result<GuestSpec, String>,
        share: &ShareSpec,
        place: &Place,
        cancel: &mut Cancel,
    ) -> Result<Plan, Lost> {
        let spec = spec.clone().map_err(|why| Lost::from(Cause::Description(why)).lasting())?;
        let Place { console_log, qemu_log, qemu_command, .. } = place.clone();
        // Boot files that no cache can take go here: they are for all guests, and the first one's own directory moves when it ends.
        let run_dir = self.run_dir.clone();
        let host = HostContext { run_dir, console_log, qemu_log, qemu_command, ..self.host.clone() };
        attempt::prepare(spec, share.clone(), host, cancel).await
    }
}
