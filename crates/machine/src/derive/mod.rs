//! A template that is made of another, without a boot: a copy of that one goes on, something is done to it, and it is frozen in its turn.
//!
//! The algorithm is one ([`derive`]); what is done, and what differs with it, is a [`Recipe`]. There are two. Devices are plugged in
//! ([`PlugIn`]): of the template of a guest come those of all guests that differ from it by disks and the network card. And a set-up
//! runs once ([`RunSetUp`]), in whatever guest.
//!
//! The copy has a memory and volumes of its own from the start, so that what comes of it needs the other template no more. It keeps the
//! identity with which the guest booted, which its copies change as ever.

mod plug_in;
mod run_set_up;

use std::{borrow::Cow, fs::File, io};

use belljar_model::Phase;
use tokio::time::Instant;

pub(crate) use self::{plug_in::PlugIn, run_set_up::RunSetUp};
use crate::{
    Cause, Lost,
    boot::{Entered, Machine},
    guest::{Observe, Views},
    lease::{Got, TEMPLATE, Way, has_room, told, warn},
    plan::Plan,
    template::{
        CopyToKeep, Freezing, Making, Rest, Template, TemplateKey, TemplateStore, Unfrozen, Unthawed, blocking, freeze,
        memory,
    },
};

/// What came of a recipe.
pub(crate) enum Derived {
    /// What is there now.
    Got(Got),
    /// Nothing; a boot may do it, and the right to make the template is given back for that.
    Boot(Making),
}

/// What is done to the copy of a template that is to become another, and what differs with that.
pub(crate) trait Recipe {
    /// What is said of the guest where the one that it is made of cannot be kept.
    const NO_PARENT: &'static str;
    /// How long the guest may take to come to rest afterwards.
    const REST: Rest;

    /// The guest of whose template the copy is made; `guest` is the one that comes of it.
    fn parent<'a>(&'a self, guest: &'a Plan) -> &'a Plan;

    /// What is to be said if the guest can boot instead after its parent was lost while it booted; else the loss is the guest's too.
    fn boots_without_parent(&self, lost: &Lost) -> Option<String>;

    /// Why it came to nothing with this parent before, if somebody noted that: then the guest boots.
    fn failed_before(&self, guest: &Plan, parent: &TemplateKey, store: &TemplateStore) -> Option<String>;

    /// Says what is about to be done.
    fn announce(&self, guest: &Plan, observe: Observe<'_>);

    /// The machine of the copy.
    ///
    /// # Errors
    /// When what it needs of the host cannot be had.
    fn plan<'a>(&mut self, guest: &'a Plan) -> Result<Cow<'a, Plan>, Lost>;

    /// Starts the copy, and does it.
    async fn carry_out(
        &mut self,
        copy: CopyToKeep<'_>,
        view: Option<&Views>,
        observe: Observe<'_>,
    ) -> Result<(Machine, Entered), Unthawed>;

    /// What comes of it, for a person.
    fn title(&self, guest: &Plan) -> String;

    /// Says that nothing came of it, and sees to it that nobody tries it in vain; gives what becomes of the guest.
    fn refused(&self, way: &Way<'_>, keys: Keys<'_>, refusal: Refusal, observe: Observe<'_>) -> Derived;
}

/// Under which names two templates are kept of which one is made of the other.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub(crate) guest: &'a TemplateKey,
    pub(crate) parent: &'a TemplateKey,
}

/// Why no template came of a recipe.
pub(crate) struct Refusal {
    /// The right to make the template, if it is left. Whoever waits for it can be told something first.
    pub(crate) making: Option<Making>,
    pub(crate) why: String,
    /// The kind of device that is at fault.
    pub(crate) kind: Option<&'static str>,
}

/// Makes the template of a guest of another one by a recipe.
pub(crate) async fn derive<R: Recipe>(
    way: &Way<'_>,
    recipe: &mut R,
    key: &TemplateKey,
    making: Making,
    observe: Observe<'_>,
) -> Result<Derived, Lost> {
    let nothing = Ok(Derived::Got(Got::Nothing));
    let parent = Way { plan: recipe.parent(way.plan), ..*way };
    let Some(parent_key) = parent.key(None, observe).await? else { return nothing };
    // It may be made in its turn.
    let (template, again) = match parent.template(&parent_key, None, observe).await {
        Ok(Got::Template { template, fresh }) => (*template, fresh),
        Ok(Got::Guest(_) | Got::Nothing) => {
            // Why has been said of the parent.
            way.remember(key, R::NO_PARENT.into());
            return nothing;
        }
        Err(lost) => {
            let Some(message) = recipe.boots_without_parent(&lost) else { return Err(lost) };
            warn(observe, message);
            return Ok(Derived::Boot(making));
        }
    };
    if let Some(why) = recipe.failed_before(way.plan, &parent_key, way.templates.store()) {
        told(observe, TEMPLATE, "booted", why);
        return Ok(Derived::Boot(making));
    }
    match follow(way, recipe, &parent_key, (template, again), making, observe).await? {
        Ok(template) => Ok(Derived::Got(Got::Template { template: Box::new(template), fresh: true })),
        Err(refusal) => Ok(recipe.refused(way, Keys { guest: key, parent: &parent_key }, refusal, observe)),
    }
}

/// Follows the recipe, with the parent's template, and whether it was made just now.
async fn follow<R: Recipe>(
    way: &Way<'_>,
    recipe: &mut R,
    parent_key: &TemplateKey,
    (template, again): (Template, bool),
    making: Making,
    observe: Observe<'_>,
) -> Result<Result<Template, Refusal>, Lost> {
    let refuse = |making, why| Ok(Err(Refusal { making, why, kind: None }));
    if let Err(why) = room_for(way.plan, &template, &making) {
        return refuse(Some(making), why);
    }
    recipe.announce(way.plan, observe);
    let since = Instant::now();
    let plan = recipe.plan(way.plan)?;
    let (making, copied) = copied(template, making, plan.ram_size()).await?;
    let Copied { template, ram, volumes } = match copied {
        Ok(copied) => copied,
        Err(why) => return refuse(Some(making), format!("its template cannot be copied: {why}")),
    };
    let kept = ram.try_clone().map_err(|error| {
        let mend = "the host may be short of descriptors (ulimit -n)";
        Cause::host_file("keep hold of the guest's memory", &error, mend)
    })?;
    let copy = CopyToKeep { plan: &plan, template, making: &making, ram, volumes, again };
    let (machine, entered) = match recipe.carry_out(copy, way.view, observe).await {
        Ok(guest) => guest,
        Err(Unthawed::Lost(lost)) => return Err(lost),
        Err(Unthawed::Copy(failed)) => return refuse(Some(making), failed.why),
        Err(Unthawed::Unplugged(unplugged)) => {
            return Ok(Err(Refusal { making: Some(making), why: unplugged.why, kind: Some(unplugged.kind) }));
        }
    };
    let freezing = Freezing {
        plan: &plan,
        title: recipe.title(&plan),
        base: Some(parent_key.clone()),
        making: &mut Some(making),
        ram: kept,
        since,
        rest: R::REST,
    };
    match in_turn(machine, entered, freezing, observe).await? {
        Ok(template) => Ok(Ok(template)),
        Err((making, why)) => refuse(making, why),
    }
}

/// Freezes a guest whose machine is of no use after that, whatever comes of it. Gives the right to make the template back, if it is left.
async fn in_turn(
    mut machine: Machine,
    mut entered: Entered,
    mut freezing: Freezing<'_>,
    observe: Observe<'_>,
) -> Result<Result<Template, (Option<Making>, String)>, Lost> {
    let frozen = freeze(&mut machine, &mut entered, &mut freezing, observe).await;
    let making = freezing.making.take();
    match frozen {
        Ok(template) => {
            machine.qemu.kill().await;
            Ok(Ok(template))
        }
        Err(Unfrozen::Lost(lost)) => Err(machine.give_up(lost, Phase::Session).await),
        Err(Unfrozen::Spent(lost)) => Ok(Err((making, machine.give_up(lost, Phase::Session).await.to_string()))),
        Err(Unfrozen::GoesOn(why)) => {
            machine.qemu.kill().await;
            Ok(Err((making, why)))
        }
    }
}

fn room_for(plan: &Plan, parent: &Template, making: &Making) -> Result<(), String> {
    let volumes: u64 = parent.volumes().ok().iter().flatten().filter_map(|d| d.metadata().ok()).map(|m| m.len()).sum();
    has_room(making.dir(), plan.ram_size().saturating_add(volumes))
}

struct Copied {
    template: Template,
    ram: File,
    volumes: Vec<File>,
}

/// Copies memory and volumes of a template, for a guest that may write to them.
async fn copied(template: Template, making: Making, size: u64) -> Result<(Making, io::Result<Copied>), Lost> {
    blocking(move || {
        let copy = || -> io::Result<Copied> {
            let ram = memory(size)?;
            template.copy_ram(&ram, size)?;
            let volumes = template.copy_volumes(&making)?;
            if !template.is_unchanged() {
                return Err(io::Error::other("it was written to meanwhile"));
            }
            Ok(Copied { template, ram, volumes })
        };
        let copied = copy();
        (making, copied)
    })
    .await
}
