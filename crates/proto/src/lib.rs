//! What Belljar and its agent inside the guest say to each other: frames over a byte stream, and messages in frames.
//!
//! The guest is not trusted: every decoder here is bounded in memory and never panics, whatever bytes it is given.

pub mod ask;
pub mod files;
pub mod frame;
pub mod initramfs;
pub mod kernel;
pub mod message;
pub mod mountinfo;
