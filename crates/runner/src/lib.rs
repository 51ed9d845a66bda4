//! Turns a request into events. Nothing here prints: whoever wants to know, observes.

pub mod beneath;
pub mod cancel;
mod exec;
pub mod log;
pub mod out_dir;
pub mod parts;
pub mod run;
pub mod run_dir;
mod sparse;
pub mod suite;
