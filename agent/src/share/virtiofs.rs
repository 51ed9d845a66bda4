//! Shares over virtiofs, which a device of the machine carries.

use rustix::io::Errno;

use super::{Carrier, Cause, Use, is_known};
use crate::mounts;

/// The share whose device has this tag.
pub(super) struct Virtiofs<'a> {
    pub(super) tag: &'a str,
}

impl Carrier for Virtiofs<'_> {
    fn file_system(&self) -> &'static str {
        "virtiofs"
    }

    fn modules(&self) -> &'static [&'static str] {
        &["virtiofs"]
    }

    fn bus(&self) -> &'static [&'static str] {
        &["virtio_pci"]
    }

    /// What is kept, and how long, the server says.
    fn mount(&self, target: &str, wanted: Use) -> Result<(), Errno> {
        mounts::mount(self.tag, target, self.file_system(), wanted.flags(), "")
    }

    /// `ENODEV`: no such file system. `EINVAL`: no device of this tag, perhaps for want of the bus's driver.
    fn may_lack_modules(&self, errno: Errno) -> bool {
        matches!(errno, Errno::NODEV | Errno::INVAL)
    }

    fn explain(&self, errno: Errno) -> Cause {
        match errno {
            Errno::NODEV => Cause::Lacks(None),
            Errno::INVAL if !is_known(self.file_system()) => Cause::Lacks(None),
            Errno::INVAL => Cause::Other(Some("the machine has no share of this tag")),
            _ => Cause::Other(None),
        }
    }
}
