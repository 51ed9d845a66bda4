//! Directories of the host's for a guest that can mount nothing of the host's: on a disk, as a tar archive each way.
//!
//! Host and guest use the same code, so that what one writes the other reads. [`layout`] says what is where on the disk, [`device`] reads and
//! writes it past the page cache, [`tar`] is the archive, [`pack`] puts directories into one, and [`unpack`] makes files of it.
//!
//! Neither side trusts the other. What is unpacked stays in its directory: a path is walked name by name, through no symbolic link, and never
//! upwards. On the host plain files come of it: no owner, no set-uid or set-gid bit, no device. What was changed on both sides is a
//! conflict, which is told and overwrites nothing.

pub mod device;
pub mod fuzz;
mod holes;
pub mod layout;
pub mod pack;
pub mod record;
pub mod tar;
#[cfg(test)]
mod tests;
pub mod unpack;
