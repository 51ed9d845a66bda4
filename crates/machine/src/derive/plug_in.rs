//! Devices are plugged into a copy of a guest's base: the same guest without them.

use std::{borrow::Cow, time::Duration};

use belljar_model::Verdict;

use super::{Derived, Keys, Recipe, Refusal};
use crate::{
    Lost,
    boot::{Entered, Machine},
    guest::{Observe, Views},
    lease::{Got, TEMPLATE, Way, told, warn},
    plan::Plan,
    template::{CopyToKeep, Rest, TemplateKey, TemplateStore, Unthawed, thaw_to_plug},
};

/// Plugs a guest's devices in.
pub(crate) struct PlugIn {
    /// The guest without them.
    pub(crate) base: Plan,
}

impl Recipe for PlugIn {
    const NO_PARENT: &'static str = "the guest cannot be kept without its devices either";
    const REST: Rest = Rest::AtMost(Duration::from_millis(400));

    fn parent<'a>(&'a self, _: &'a Plan) -> &'a Plan {
        &self.base
    }

    fn boots_without_parent(&self, lost: &Lost) -> Option<String> {
        // Its boot may want the devices: a disk that its fstab(5) names, say.
        let may_want = !lost.lasting && matches!(lost.verdict(), Verdict::Crash(_) | Verdict::Timeout(_));
        may_want.then(|| format!("the guest does not come up without its devices, so that it boots with them: {lost}"))
    }

    fn failed_before(&self, guest: &Plan, parent: &TemplateKey, store: &TemplateStore) -> Option<String> {
        let why = guest.kinds_to_plug().into_iter().find_map(|kind| store.noted(parent, kind))?;
        Some(format!("it did not come to plugging devices in before: {why}"))
    }

    fn announce(&self, guest: &Plan, observe: Observe<'_>) {
        let what = guest.kinds_to_plug().join(", ");
        told(observe, TEMPLATE, "plugged", format!("{what}: plugged into a copy of the guest's template, once"));
    }

    fn plan<'a>(&mut self, guest: &'a Plan) -> Result<Cow<'a, Plan>, Lost> {
        Ok(Cow::Borrowed(guest))
    }

    async fn carry_out(
        &mut self,
        copy: CopyToKeep<'_>,
        view: Option<&Views>,
        observe: Observe<'_>,
    ) -> Result<(Machine, Entered), Unthawed> {
        thaw_to_plug(copy, view, observe).await
    }

    fn title(&self, guest: &Plan) -> String {
        guest.title_of_template()
    }

    fn refused(&self, way: &Way<'_>, keys: Keys<'_>, refusal: Refusal, observe: Observe<'_>) -> Derived {
        let Refusal { making, why, kind } = refusal;
        warn(observe, format!("devices cannot be plugged into this guest, so that it boots with them: {why}"));
        if let Some(kind) = kind {
            way.templates.store().note(keys.parent, kind, &why);
        }
        making.map_or(Derived::Got(Got::Nothing), Derived::Boot)
    }
}
