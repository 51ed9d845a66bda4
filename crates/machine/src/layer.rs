//! Set-up that is part of a template: it runs once, in a copy of the guest, and that copy is frozen in its turn.
//!
//! The copy has a memory and disks of its own from the start, so that what comes of it needs the guest's own template no more. It keeps the
//! identity with which the guest booted, which its copies change as ever.

use std::{
    fs::File,
    pin::Pin,
    time::{Duration, Instant},
};

use belljar_model::Phase;

use crate::{
    Lost,
    guest::{Guest, Observe},
    lease::{Got, SETTING_UP, Way, has_room, told, warn},
    spec::{ShareSpec, Workspace},
    template::{
        Freezing, Making, Template, TemplateKey, Unfrozen, Unthawed, blocking, explain, freeze, memory, thaw_to_set_up,
    },
};

/// Set-up of a guest, before any command that wants it.
pub struct Layer<'a> {
    /// Hash of all that decides what the set-up does: its scripts, what they read, their environment.
    pub id: [u8; 32],
    /// For a person who lists templates, such as `set-up of storage`.
    pub title: String,
    /// How long it may take, so that others wait for it that long.
    pub limit: Duration,
    /// Does it.
    pub set_up: &'a mut dyn SetUp,
}

/// What comes of a set-up.
pub type SettingUp<'a> = Pin<Box<dyn Future<Output = Result<(), Lost>> + 'a>>;

/// Sets a guest up.
pub trait SetUp {
    /// The workspace that the guest sees while it is set up to be kept: nothing but what [`Layer::id`] knows of. The guest may
    /// write to it, and nobody reads that.
    ///
    /// # Errors
    /// When it cannot be made.
    fn inputs(&mut self) -> Result<Workspace, Lost>;

    /// Does it. With the shares mounted: those of [`SetUp::inputs`], if that was asked for, else the guest's own.
    fn run<'a>(&'a mut self, guest: &'a mut Guest, observe: Observe<'a>) -> SettingUp<'a>;
}

/// Makes the template of a guest that is set up.
pub(crate) async fn make(
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
    let plan = way.plan;
    let (base, again) = match way.base(observe).await? {
        Got::Template { template, fresh } => (template, fresh),
        Got::Guest(_) | Got::Nothing => {
            // Why has been said of the guest itself.
            way.remember(key, "the guest without its set-up cannot be kept".into());
            return Ok(Got::Nothing);
        }
    };
    let disks: u64 = base.disks().ok().iter().flatten().filter_map(|d| d.metadata().ok()).map(|m| m.len()).sum();
    if let Err(why) = has_room(making.dir(), plan.ram_size().saturating_add(disks)) {
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
    let mut plan = plan.with_share(ShareSpec { workspace: Some(inputs), out: plan.share.out.clone() });
    plan.title = format!("{}, {}", plan.title, layer.title);
    let size = plan.ram_size();
    let copied = blocking(move || copy(*base, making, size)).await?;
    let Copied { base, making, ram, disks } = match copied {
        Ok(copied) => copied,
        Err(why) => return refuse(format!("its template cannot be copied: {why}"), observe),
    };
    let kept = ram.try_clone().map_err(|e| Lost::host(e.to_string()))?;
    let frozen = base.session().clone();
    let mut guest = match thaw_to_set_up(&plan, base, ram, disks, again, way.view, observe).await {
        Ok(guest) => guest,
        Err(Unthawed::Lost(lost)) => return Err(lost),
        Err(Unthawed::Copy(failed)) => return refuse(failed.why, observe),
    };
    layer.set_up.run(&mut guest, observe).await?;
    let (mut machine, mut entered) = guest.into_machine(&frozen);
    let mut making = Some(making);
    let freezing = Freezing { plan: &plan, making: &mut making, ram: kept, since };
    match freeze(&mut machine, &mut entered, freezing, observe).await {
        Ok(template) => {
            machine.qemu.kill().await;
            Ok(Got::Template { template: Box::new(template), fresh: true })
        }
        Err(Unfrozen::Lost(lost)) => Err(machine.give_up(lost, Phase::Session).await),
        Err(Unfrozen::Spent(lost)) => refuse(explain(&machine.give_up(lost, Phase::Session).await), observe),
        Err(Unfrozen::GoesOn(why)) => {
            // It has the inputs for its workspace, and cannot be given another.
            machine.qemu.kill().await;
            refuse(why, observe)
        }
    }
}

struct Copied {
    base: Template,
    making: Making,
    ram: File,
    disks: Vec<File>,
}

/// Copies memory and disks of a template, for a guest that may write to them.
fn copy(base: Template, making: Making, size: u64) -> std::io::Result<Copied> {
    let ram = memory(size)?;
    base.copy_ram(&ram, size)?;
    let disks = base.copy_disks(&making)?;
    if !base.is_unchanged() {
        return Err(std::io::Error::other("it was written to meanwhile"));
    }
    Ok(Copied { base, making, ram, disks })
}
