//! Disks that can be made to fail: what a *lab disk* is made of, and the server that QEMU's plain `nbd` node is connected to.
//!
//! Belljar serves such a disk itself, so each fault works on every bus and in every guest, and can be changed while the guest runs.
//!
//! | part | does |
//! |---|---|
//! | [`Store`] | the bytes, in layers, and what a power cut leaves of them |
//! | [`LabDisk`] | what becomes of each request: faults, rates, damage; counts and a log |
//! | [`nbd`] | what QEMU says and is told |
//! | [`control`] | what Belljar orders and is told |
//! | [`serve`] | the loop of the server's process |
//!
//! Faults and their words are in [`belljar_guest_spec::fault`].

mod answers;
mod arriving;
pub mod control;
mod disk;
mod extents;
pub mod fuzz;
mod map;
pub mod nbd;
mod serve;
mod setup;
mod store;
mod survival;

pub use answers::{Answers, Piece};
pub use disk::{Fate, LabDisk, When};
pub use serve::{ServeError, serve};
pub use setup::{Below, Setup};
pub use store::{Base, FROZEN_FORMAT, Frozen, GRANULE, Store, StoreError};
pub use survival::{Lost, Survival};
