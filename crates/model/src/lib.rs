//! Belljar's vocabulary: verdicts, how things ended, events, exit codes.
//!
//! This crate does no input or output. Everything in it that is serialised is part of the stable schema of the
//! event log (see [`event`]).

pub mod event;
pub mod exit_code;
pub mod run_id;
pub mod verdict;

pub use event::{Event, EventKind, Phase};
pub use run_id::RunId;
pub use verdict::{Crash, CrashKind, Exit, Fault, Verdict};
