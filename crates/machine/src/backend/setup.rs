//! Set-up that is part of a guest: it runs once where its outcome can be kept, else in every guest.

use std::time::Duration;

use crate::{
    Lost,
    guest::{Answer, Guest, Observe},
    spec::Workspace,
};

/// Set-up of a guest, before any command that wants it.
pub struct Layer<'a> {
    /// Hash of all that decides what the set-up does: its scripts, what they read, their environment.
    pub id: [u8; 32],
    /// For a person who lists what is kept, such as `set-up of storage`.
    pub title: String,
    /// How long it may take, so that others wait for it that long.
    pub limit: Duration,
    /// Does it.
    pub set_up: &'a mut dyn SetUp,
}

/// Sets a guest up.
pub trait SetUp {
    /// The workspace that the guest sees while it is set up to be kept: nothing but what [`Layer::id`] knows of. The guest may
    /// write to it, and nobody reads that.
    ///
    /// # Errors
    /// When it cannot be made.
    fn inputs(&mut self) -> Result<Workspace, Lost>;

    /// Does it. With the shares mounted: those of [`SetUp::inputs`], if that was asked for, else the guest's own.
    fn run<'a>(&'a mut self, guest: &'a mut dyn Guest, observe: Observe<'a>) -> Answer<'a, ()>;
}
