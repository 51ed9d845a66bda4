//! A set-up runs in a copy of the guest that has not been set up.

use std::borrow::Cow;

use super::{Derived, Keys, Recipe, Refusal};
use crate::{
    Lost,
    backend::Layer,
    boot::{Entered, Machine},
    guest::{Observe, Views},
    lease::{Got, SETTING_UP, Way, told, warn},
    plan::Plan,
    spec::ShareSpec,
    template::{CopyToKeep, Rest, TemplateKey, TemplateStore, Unthawed, thaw_to_set_up},
};

/// Runs a set-up.
pub(crate) struct RunSetUp<'a, 'l>(pub(crate) &'a mut Layer<'l>);

impl Recipe for RunSetUp<'_, '_> {
    const NO_PARENT: &'static str = "the guest without its set-up cannot be kept";
    const REST: Rest = Rest::PartOfBoot;

    fn parent<'a>(&'a self, guest: &'a Plan) -> &'a Plan {
        guest
    }

    fn boots_without_parent(&self, _: &Lost) -> Option<String> {
        // It is the same guest that would boot.
        None
    }

    fn failed_before(&self, _: &Plan, _: &TemplateKey, _: &TemplateStore) -> Option<String> {
        // What could not be kept is remembered under its own key.
        None
    }

    fn announce(&self, _: &Plan, observe: Observe<'_>) {
        let why = "the set-up has not run in this guest yet; it runs once, and is copied from then on";
        told(observe, SETTING_UP, "made", why);
    }

    fn plan<'a>(&mut self, guest: &'a Plan) -> Result<Cow<'a, Plan>, Lost> {
        let workspace = Some(self.0.set_up.inputs()?);
        Ok(Cow::Owned(guest.with_share(ShareSpec { workspace, modules: None, ..guest.share.clone() })))
    }

    async fn carry_out(
        &mut self,
        copy: CopyToKeep<'_>,
        view: Option<&Views>,
        observe: Observe<'_>,
    ) -> Result<(Machine, Entered), Unthawed> {
        let frozen = copy.template.session().clone();
        let mut guest = thaw_to_set_up(copy, view, observe).await?;
        self.0.set_up.run(&mut guest, observe).await.map_err(Unthawed::Lost)?;
        Ok(guest.into_machine(&frozen))
    }

    fn title(&self, guest: &Plan) -> String {
        format!("{}, {}", guest.title_of_template(), self.0.title)
    }

    fn refused(&self, way: &Way<'_>, keys: Keys<'_>, refusal: Refusal, observe: Observe<'_>) -> Derived {
        let why = refusal.why;
        warn(observe, format!("the guest cannot be kept with its set-up, which runs in every guest instead: {why}"));
        way.remember(keys.guest, why);
        // The copy has the inputs for its workspace, and cannot be given another.
        Derived::Got(Got::Nothing)
    }
}
