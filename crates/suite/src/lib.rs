//! What is to run where: `belljar.toml`, headers, discovery, filters, the matrix, partition.
//!
//! ```text
//! belljar.toml ── Config::load ──> Config ──┐
//! test files ──── discover ──────> Discovery ├─ plan ──> Plan {units, cells, machines, skipped, notes}
//! flags ───────── PlanOptions ──────────────┘              └─ listing ──> `belljar list`
//! ```
//!
//! This crate starts no process, prints nothing and does not read the environment. It reads `belljar.toml`, looks for test files
//! and reads their first bytes. All mistakes of all of them are told at once, as [`diagnostic::Diagnostics`].

pub mod config;
pub mod diagnostic;
pub mod discover;
pub mod files;
pub mod filter;
#[doc(hidden)]
pub mod fuzz;
pub mod glob;
pub mod header;
pub mod partition;
pub mod plan;
pub mod schema;
pub mod settings;
pub mod toml_tree;
pub mod units;

pub use self::{
    config::{Config, ConfigError},
    diagnostic::{Diagnostic, Diagnostics, Severity},
    discover::{Discovery, discover},
    filter::Filter,
    partition::Partition,
    plan::{Plan, PlanOptions, plan},
};
