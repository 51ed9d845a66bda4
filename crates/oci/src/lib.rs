//! Container images, read as engines write them, and written as one file system that a machine mounts.
//!
//! ```text
//! OCI layout, its archive, docker save ──> Image ── layers ──> Tree ──> EROFS, with Facts behind it
//! archive of a root, a directory ────────────┘
//! ```
//!
//! No file of an image is ever made on the host: the tree is in memory, the bytes of files go straight into the file system. So owners, modes, devices and
//! capabilities are what the image says, whoever runs this, and nothing in an image leads anywhere on the host. Every blob is held against its
//! digest. An image may come from anybody: whatever grows with it is bounded ([`limits`]).
//!
//! - [`image`]: what an image is, and its file system.
//! - [`facts`]: what is known of such a file system.
//! - [`digest`]: by which parts of an image name each other.

pub mod digest;
pub mod facts;
pub mod fuzz;
pub mod image;
pub mod limits;

mod archive;
mod directory;
mod erofs;
mod export;
mod sink;
mod sparse;
mod tree;
mod unpack;

#[cfg(test)]
mod tests;

pub use self::archive::LayerError;
