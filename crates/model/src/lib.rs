//! Belljar's vocabulary: verdicts, how things ended, events, exit codes.
//!
//! This crate opens nothing: what it reads is handed to it. Everything in it that is serialised is part of the stable schema of the
//! event log (see [`event`]).

pub mod event;
pub mod exit_code;
pub mod log;
pub mod merge;
pub mod run_id;
pub mod summary;
pub mod test_run;
#[cfg(test)]
mod test_run_schema;
pub mod verdict;

pub use event::{Event, EventKind, Phase, Scope};
pub use log::read_log;
pub use run_id::RunId;
pub use summary::RunSummary;
pub use test_run::{AttemptId, UnitId};
pub use verdict::{Crash, CrashKind, Exit, Fault, Verdict};
