//! What is on a guest's disk, read from its image without a boot.
//!
//! A disk is somebody else's, and may be hostile. Everything here is read-only, synchronous, told every path, and prints nothing. What is read, how
//! long it takes, and how deep anything goes is limited ([`Limits`] and the constants beside each reader). Nothing here panics: the readers of file systems are
//! in part crates of others, whose panics are caught and told ([`FileError::Panicked`]).
//!
//! - [`Disk`]: the bytes of an image of any format that QEMU knows.
//! - [`inspect`]: partitions, file systems, logical volumes, boot configuration, as a [`Description`], whose files can be read.
//! - [`Description::system`]: the operating system, its kernels, and who may log in.
//! - [`Description::obstacles`]: why no machine boots from it, each a variant.

mod boot;
mod bytes;
mod content;
mod description;
mod disk;
mod fs;
mod lvm;
mod nbd;
mod obstacle;
mod partition;
mod system;

#[doc(hidden)]
pub mod fuzz;

use std::path::Path;

pub use boot::{BootEntry, FileRef, Loader};
pub use content::{Content, ContentKind};
pub use description::{Description, Volume, inspect};
pub use disk::{Disk, Limits, ReadError};
pub use fs::{FileError, View, is_reading};
pub use obstacle::Obstacle;
pub use partition::{Partition, Table};
pub use system::{Abilities, Init, InitKind, Provisioning, RootPassword, System, SystemKernel, all_known};

/// Whether there is a program at a path, or, for a name alone, in the places where programs are. That it is named by a path is up to the caller.
fn is_program(program: &Path) -> bool {
    program.components().count() > 1 && program.is_file()
}
