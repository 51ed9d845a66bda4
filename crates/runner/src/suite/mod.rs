//! `belljar test`: a plan becomes events.
//!
//! ```text
//! run ──┬─ listing       libtest binaries are listed; the plan is made again and told
//!       └─ Dispatcher ── Executor ── Pool ── Machines
//! ```
//!
//! All of it runs on one thread. The dispatcher (`crate::schedule`) alone starts and ends things; each cell (a unit alone, or those that
//! share a guest) is a task of the executor's, which gets its guests from the machines. What each of them sees goes to the one event log.

pub mod history;
mod obstacles;
mod run;
#[cfg(test)]
mod tests;

pub use self::{
    obstacles::{lacks, obstacles},
    run::{Ended, Request, run},
};
pub use crate::{
    executor::listing::Cases,
    schedule::{RunControl, RunLimits, StandStill, resources},
};
