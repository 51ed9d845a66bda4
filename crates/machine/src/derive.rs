//! A template that is made of another, without a boot: a copy of that one goes on, something is done to it, and it is frozen in its turn.
//!
//! There are two recipes. Devices are plugged in ([`plug`]): of the template of a guest come those of all guests that differ from it by
//! disks and the network card. And a set-up runs once ([`set_up`]), of whatever guest.
//!
//! The copy has a memory and volumes of its own from the start, so that what comes of it needs the other template no more. It keeps the
//! identity with which the guest booted, which its copies change as ever.

use std::{fs::File, io, time::Duration};

use belljar_model::{Phase, Verdict};
use tokio::time::Instant;

use crate::{
    Cause, Lost,
    backend::Layer,
    boot::{Entered, Machine},
    guest::Observe,
    lease::{Got, SETTING_UP, TEMPLATE, Way, has_room, told, warn},
    plan::Plan,
    spec::ShareSpec,
    template::{
        Freezing, Making, Rest, Template, TemplateKey, Unfrozen, Unthawed, blocking, freeze, memory, thaw_to_plug,
        thaw_to_set_up,
    },
};

/// How long a guest into which devices were plugged may take to come to rest.
const REST: Duration = Duration::from_millis(400);

/// What came of a recipe.
pub(crate) enum Derived {
    /// What is there now.
    Got(Got),
    /// Nothing; a boot may do it, and the right to make the template is given back for that.
    Boot(Making),
}

/// A template, and whether it was made just now.
struct Parent {
    template: Template,
    again: bool,
}

/// Makes the template of a guest by plugging devices into a copy of its base.
pub(crate) async fn plug(
    way: &Way<'_>,
    base: &Plan,
    key: &TemplateKey,
    making: Making,
    observe: Observe<'_>,
) -> Result<Derived, Lost> {
    let base = Way { plan: base, templates: way.templates, view: way.view };
    let Some(base_key) = base.key(None, observe).await? else { return Ok(Derived::Got(Got::Nothing)) };
    let parent = match base.template(&base_key, None, observe).await {
        Ok(Got::Template { template, fresh }) => Parent { template: *template, again: fresh },
        Ok(Got::Guest(_) | Got::Nothing) => {
            // Why has been said of the base.
            way.remember(key, "the guest cannot be kept without its devices either".into());
            return Ok(Derived::Got(Got::Nothing));
        }
        // Its boot may want the devices: a disk that its fstab(5) names, say.
        Err(lost) if !lost.lasting && matches!(lost.verdict(), Verdict::Crash(_) | Verdict::Timeout(_)) => {
            let why = lost.to_string();
            warn(observe, format!("the guest does not come up without its devices, so that it boots with them: {why}"));
            return Ok(Derived::Boot(making));
        }
        Err(lost) => return Err(lost),
    };
    let store = way.templates.store();
    let noted = way.plan.kinds_to_plug().into_iter().find_map(|kind| store.noted(&base_key, kind));
    if let Some(why) = noted {
        told(observe, TEMPLATE, "booted", format!("it did not come to plugging devices in before: {why}"));
        return Ok(Derived::Boot(making));
    }
    match plug_into(way, &base_key, parent, making, observe).await? {
        Ok(template) => Ok(Derived::Got(Got::Template { template: Box::new(template), fresh: true })),
        Err(Refused { making, why, kind }) => {
            warn(observe, format!("devices cannot be plugged into this guest, so that it boots with them: {why}"));
            if let Some(kind) = kind {
                store.note(&base_key, kind, &why);
            }
            match making {
                Some(making) => Ok(Derived::Boot(making)),
                None => Ok(Derived::Got(Got::Nothing)),
            }
        }
    }
}

/// A second descriptor of the guest's memory could not be had.
fn again(error: &io::Error) -> Lost {
    Cause::host_file("keep hold of the guest's memory", error, "the host may be short of descriptors (ulimit -n)")
        .into()
}

/// Why there is no template.
struct Refused {
    /// Whoever waits can be told something first.
    making: Option<Making>,
    why: String,
    /// The kind of device that is at fault.
    kind: Option<&'static str>,
}

async fn plug_into(
    way: &Way<'_>,
    base_key: &TemplateKey,
    parent: Parent,
    making: Making,
    observe: Observe<'_>,
) -> Result<Result<Template, Refused>, Lost> {
    let plan = way.plan;
    let refuse = |making, why| Ok(Err(Refused { making: Some(making), why, kind: None }));
    if let Err(why) = room_for(plan, &parent.template, &making) {
        return refuse(making, why);
    }
    let what = plan.kinds_to_plug().join(", ");
    told(observe, TEMPLATE, "plugged", format!("{what}: plugged into a copy of the guest's template, once"));
    let since = Instant::now();
    let Copied { base, making, ram, volumes } = match copied(parent.template, making, plan.ram_size()).await? {
        Ok(copied) => copied,
        Err((making, why)) => return refuse(making, format!("its template cannot be copied: {why}")),
    };
    let kept = ram.try_clone().map_err(|e| again(&e))?;
    let thawed = thaw_to_plug(plan, &base, &making, (ram, volumes), parent.again, way.view, observe).await;
    let (machine, entered) = match thawed {
        Ok(guest) => guest,
        Err(Unthawed::Lost(lost)) => return Err(lost),
        Err(Unthawed::Copy(failed)) => return refuse(making, failed.why),
        Err(Unthawed::Unplugged(unplugged)) => {
            return Ok(Err(Refused { making: Some(making), why: unplugged.why, kind: Some(unplugged.kind) }));
        }
    };
    let freezing = Freezing {
        plan,
        title: plan.title_of_template(),
        base: Some(base_key.clone()),
        making: &mut Some(making),
        ram: kept,
        since,
        rest: Rest::AtMost(REST),
    };
    match in_turn(machine, entered, freezing, observe).await? {
        Ok(template) => Ok(Ok(template)),
        Err((making, why)) => Ok(Err(Refused { making, why, kind: None })),
    }
}

/// Makes the template of a guest that is set up.
pub(crate) async fn set_up(
    way: &Way<'_>,
    key: &TemplateKey,
    making: Making,
    layer: &mut Layer<'_>,
    observe: Observe<'_>,
) -> Result<Got, Lost> {
    let refuse = |why: String, observe: Observe<'_>| {
        warn(observe, format!("the guest cannot be kept with its set-up, which runs in every guest instead: {why}"));
        way.remember(key, why);
        Ok(Got::Nothing)
    };
    let Some(parent_key) = way.key(None, observe).await? else { return Ok(Got::Nothing) };
    let parent = match way.template(&parent_key, None, observe).await? {
        Got::Template { template, fresh } => Parent { template: *template, again: fresh },
        Got::Guest(_) | Got::Nothing => {
            // Why has been said of the guest itself.
            way.remember(key, "the guest without its set-up cannot be kept".into());
            return Ok(Got::Nothing);
        }
    };
    if let Err(why) = room_for(way.plan, &parent.template, &making) {
        return refuse(why, observe);
    }
    told(
        observe,
        SETTING_UP,
        "made",
        "the set-up has not run in this guest yet; it runs once, and is copied from then on",
    );
    let since = Instant::now();
    let inputs = layer.set_up.inputs()?;
    let plan = way.plan.with_share(ShareSpec { workspace: Some(inputs), modules: None, ..way.plan.share.clone() });
    let Copied { base, making, ram, volumes } = match copied(parent.template, making, plan.ram_size()).await? {
        Ok(copied) => copied,
        Err((_, why)) => return refuse(format!("its template cannot be copied: {why}"), observe),
    };
    let kept = ram.try_clone().map_err(|e| again(&e))?;
    let frozen = base.session().clone();
    let mut guest = match thaw_to_set_up(&plan, base, ram, volumes, parent.again, way.view, observe).await {
        Ok(guest) => guest,
        Err(Unthawed::Lost(lost)) => return Err(lost),
        Err(Unthawed::Copy(failed)) => return refuse(failed.why, observe),
        Err(Unthawed::Unplugged(unplugged)) => return refuse(unplugged.why, observe),
    };
    layer.set_up.run(&mut guest, observe).await?;
    let (machine, entered) = guest.into_machine(&frozen);
    let freezing = Freezing {
        plan: &plan,
        title: format!("{}, {}", plan.title_of_template(), layer.title),
        base: Some(parent_key),
        making: &mut Some(making),
        ram: kept,
        since,
        rest: Rest::PartOfBoot,
    };
    match in_turn(machine, entered, freezing, observe).await? {
        Ok(template) => Ok(Got::Template { template: Box::new(template), fresh: true }),
        // It has the inputs for its workspace, and cannot be given another.
        Err((_, why)) => refuse(why, observe),
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
    base: Template,
    making: Making,
    ram: File,
    volumes: Vec<File>,
}

/// Copies memory and volumes of a template, for a guest that may write to them.
async fn copied(base: Template, making: Making, size: u64) -> Result<Result<Copied, (Making, io::Error)>, Lost> {
    blocking(move || {
        let copy = || -> io::Result<_> {
            let ram = memory(size)?;
            base.copy_ram(&ram, size)?;
            let volumes = base.copy_volumes(&making)?;
            if base.is_unchanged() { Ok((ram, volumes)) } else { Err(io::Error::other("it was written to meanwhile")) }
        };
        match copy() {
            Ok((ram, volumes)) => Ok(Copied { base, making, ram, volumes }),
            Err(error) => Err((making, error)),
        }
    })
    .await
}
