//! Turns a request into events. Nothing here prints: whoever wants to know, observes.
//!
//! `belljar run` is [`run`]; `belljar test` is [`suite`], with what schedules, what carries out and what gives machines in a room each.

mod attempt;
pub mod beneath;
pub mod cancel;
mod environment;
mod event_writer;
mod exec;
mod executor;
pub mod log;
mod machines;
mod names;
pub mod out_dir;
mod output;
pub mod parts;
#[cfg(test)]
mod pretend;
pub mod run;
pub mod run_dir;
mod schedule;
mod sparse;
pub mod suite;
