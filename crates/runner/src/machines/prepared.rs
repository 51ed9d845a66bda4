//! The machines of a run, each prepared once: boot files that were made twice would be those of two guests.

use std::path::PathBuf;

use belljar_guest_spec::GuestSpec;
use belljar_machine::{
    Cause, Lost,
    backend::{Backends, PrepareRequest, PreparedGuest},
    spec::ShareSpec,
};
use tokio::sync::OnceCell;

use crate::{attempt, cancel::Cancel};

/// What is known of a machine.
struct PreparedMachine {
    spec: Result<GuestSpec, String>,
    prepared: OnceCell<Box<dyn PreparedGuest>>,
}

/// All machines of a run.
pub(crate) struct PreparedMachines {
    backends: Backends,
    /// The run's directory.
    run_dir: PathBuf,
    machines: Vec<PreparedMachine>,
}

impl PreparedMachines {
    /// Machines that are prepared when they are asked for.
    pub(crate) fn new(
        backends: Backends,
        run_dir: PathBuf,
        specs: impl IntoIterator<Item = Result<GuestSpec, String>>,
    ) -> Self {
        let machines = specs.into_iter().map(|spec| PreparedMachine { spec, prepared: OnceCell::new() }).collect();
        Self { backends, run_dir, machines }
    }

    /// The same for other machines.
    pub(crate) fn of(&self, specs: impl IntoIterator<Item = Result<GuestSpec, String>>) -> Self {
        Self::new(self.backends.clone(), self.run_dir.clone(), specs)
    }

    /// How many machines there are.
    pub(crate) fn len(&self) -> usize {
        self.machines.len()
    }

    /// A machine, prepared for guests that see as much of the host as `share` says.
    ///
    /// # Errors
    /// If there is no such guest on this host, or the run is to end.
    pub(crate) async fn get(
        &self,
        machine: usize,
        share: &ShareSpec,
        cancel: &mut Cancel,
    ) -> Result<&dyn PreparedGuest, Lost> {
        let PreparedMachine { spec, prepared } = &self.machines[machine];
        let prepared = prepared.get_or_try_init(|| self.prepare(spec, share, cancel)).await?;
        Ok(&**prepared)
    }

    async fn prepare(
        &self,
        spec: &Result<GuestSpec, String>,
        share: &ShareSpec,
        cancel: &mut Cancel,
    ) -> Result<Box<dyn PreparedGuest>, Lost> {
        let spec = spec.clone().map_err(|why| Lost::from(Cause::Description(why)).lasting())?;
        // What no cache can take goes into the run's directory: it is for all guests, and the first one's own moves when it ends.
        let request = PrepareRequest { spec, share: share.clone(), dir: self.run_dir.clone(), leased_at_once: false };
        attempt::prepare(&self.backends, request, cancel).await
    }
}
