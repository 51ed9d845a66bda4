//! The conversation with a running guest.

pub mod agent;
pub mod console;
