//! Shares over 9p, which a device of the machine carries.

use std::fs;

use rustix::io::Errno;

use super::{Carrier, Cause, Use, is_known};
use crate::mounts;

/// Message size, in bytes. The kernel makes buffers of this size for each directory that is read, and before 6.1 for each message:
/// with 512000 a walk over many small files took a third more of an emulated processor, and large files gained nothing;
/// with 32768 large files took twice as long.
const MSIZE: u32 = 65_536;

/// The share whose device has this mount tag.
pub(super) struct NineP<'a> {
    pub(super) tag: &'a str,
}

impl Carrier for NineP<'_> {
    fn file_system(&self) -> &'static str {
        "9p"
    }

    fn modules(&self) -> &'static [&'static str] {
        &["9pnet_virtio", "9p"]
    }

    fn bus(&self) -> &'static [&'static str] {
        &["virtio_pci"]
    }

    /// `access=any`: one attachment serves all the guest's users, who are then judged by the guest's kernel from the files'
    /// owners and modes. With the default each user attaches anew, which costs a walk from the root per path and user
    /// and changes nothing, as QEMU does not know the guest's users.
    fn mount(&self, target: &str, wanted: Use) -> Result<(), Errno> {
        let cache = match wanted {
            // Asks the host each time; keeps pages only for files mapped into memory, without which writing through such a mapping fails.
            Use::Exchange => "mmap",
            // Keeps what it has read.
            Use::Reading => "loose",
        };
        let options = format!("trans=virtio,version=9p2000.L,msize={MSIZE},cache={cache},access=any");
        mounts::mount(self.tag, target, self.file_system(), wanted.flags(), &options)
    }

    /// `ENODEV`: no such file system. `EINVAL`: it has no virtio transport. `ENOENT`: no device of this tag, perhaps for want of the
    /// bus's driver.
    fn may_lack_modules(&self, errno: Errno) -> bool {
        matches!(errno, Errno::NODEV | Errno::INVAL | Errno::NOENT)
    }

    fn explain(&self, errno: Errno) -> Cause {
        let has_all =
            || is_known(self.file_system()) && fs::exists("/sys/bus/virtio/drivers/9pnet_virtio").unwrap_or(false);
        match errno {
            Errno::NODEV => Cause::Lacks(None),
            Errno::INVAL | Errno::NOENT if !has_all() => Cause::Lacks(Some("no virtio transport")),
            Errno::NOENT => Cause::Other(Some("the machine has no share of this tag")),
            _ => Cause::Other(None),
        }
    }
}
