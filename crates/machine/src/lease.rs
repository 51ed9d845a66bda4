//! The way to a guest: a clone of a template where there can be one, a cold boot elsewhere.

use std::time::Duration;

use belljar_model::{EventKind, Phase, Verdict};

use crate::{
    Lost,
    command::GuestCommand,
    guest::{self, Guest, Io, Observe, Views},
    plan::Plan,
    session::agent::OutputSink,
    template::TemplateStore,
};

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
    /// Where they are.
    pub store: TemplateStore,
    /// Whether they are used.
    pub using: Use,
}

/// A guest that is wanted.
pub struct Lease<'a> {
    /// Which.
    pub plan: Plan,
    /// Where its template may be.
    pub templates: &'a Templates,
    /// Set-up that runs once and is part of the template.
    pub layer: Option<Layer<'a>>,
    /// Gets the console of each QEMU that is started on the way.
    pub view: Option<Views>,
}

/// Set-up of a guest, before any command that wants it.
pub struct Layer<'a> {
    /// Hash of all that decides what the set-up does: its script, what that reads, its environment.
    pub id: [u8; 32],
    /// Runs with the shares mounted and must exit with 0.
    pub command: GuestCommand,
    /// Limit to the command.
    pub timeout: Option<Duration>,
    /// Takes its output.
    pub sink: &'a mut dyn OutputSink,
}

impl<'a> Lease<'a> {
    /// The guest of this plan, with nothing set up in it, shown to nobody.
    #[must_use]
    pub fn new(plan: Plan, templates: &'a Templates) -> Self {
        Self { plan, templates, layer: None, view: None }
    }
}

/// Gives a guest with a session, its shares mounted.
///
/// Dropping the future kills what was started.
///
/// # Errors
/// A [`Lost`] that says what was awaited and what was seen.
pub async fn lease(wanted: Lease<'_>, observe: Observe<'_>) -> Result<Guest, Lost> {
    let Lease { plan, templates: _, layer, view } = wanted;
    observe(EventKind::Phase { phase: Phase::Boot });
    let mut guest = guest::boot(plan, view.as_ref(), observe).await?;
    if let Some(layer) = layer {
        set_up(&mut guest, layer, observe).await?;
    }
    Ok(guest)
}

async fn set_up(guest: &mut Guest, layer: Layer<'_>, observe: Observe<'_>) -> Result<(), Lost> {
    observe(EventKind::Choice {
        what: "set-up".into(),
        chosen: "run".into(),
        why: "the guest has not been set up yet".into(),
    });
    let Layer { command, timeout, sink, .. } = layer;
    let running = guest.exec(command, Io { stdin: None, sink, control: None }, observe);
    let exit = match timeout {
        Some(limit) => tokio::time::timeout(limit, running).await.unwrap_or_else(|_| {
            let limit = crate::for_people(limit);
            Err(Lost::timeout(Phase::Session, format!("the set-up of the guest was given {limit} and had not ended")))
        })?,
        None => running.await?,
    };
    let verdict = Verdict::of_exit(exit);
    if verdict == Verdict::Pass {
        return Ok(());
    }
    Err(Lost { verdict, message: Some("the set-up of the guest failed".into()), tail: Vec::new() })
}
