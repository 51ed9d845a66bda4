//! Events made readable. A reporter reads events and nothing else.

pub mod run;
