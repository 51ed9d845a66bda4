//! Shares over 9p: QEMU serves the directory, and a device of the machine carries it.

use std::ffi::OsString;

use belljar_image::modules::Feature;
use belljar_proto::message::Source;

use super::{ByShell, Kind, check_tag};
use crate::qemu::{
    args::{ArgsError, Device, KeyVal, Seat, Share, push},
    probe::QemuInfo,
};

/// The device that serves it.
pub(crate) const DEVICE: &str = "virtio-9p";
/// The most bytes a mount tag can have (QEMU's `MAX_TAG_LEN` counts the final NUL).
pub const MAX_TAG_LEN: usize = 31;

pub(crate) const NINE_P: Kind = Kind {
    name: "9p",
    file_system: "9p",
    what: "9p file system over virtio",
    advice: "Debian's cloud kernel and the RHEL family have none; use a kernel that has the modules 9p and 9pnet_virtio, or do without \
             shares: --workspace none, and no --out",
    features: &[Feature::VirtioPci, Feature::NineP],
    source: |tag| Source::NineP { tag: tag.to_owned() },
    // These options every kernel since 2.6.38 knows.
    by_shell: Some(ByShell {
        mount: |tag, at, mode| format!("mount -t 9p -o trans=virtio,version=9p2000.L,{mode} {tag} {at}"),
        // The first is built into most kernels, which modprobe may not know.
        load: "modprobe virtio_pci 2>/dev/null; modprobe 9pnet_virtio; modprobe 9p",
        known: "grep -qw 9p /proc/filesystems && ls /sys/bus/virtio/drivers/9pnet_virtio",
    }),
    device: Some(push_device),
    has_port: false,
    has_server: false,
    on_disk: false,
    obstacle,
    // A mounted one is state in QEMU that cannot be saved; the device alone can, and each copy mounts its own directory by it.
    frozen: Ok(()),
};

/// A directory for the guest, by a 9p device. It is served with QEMU's own rights (`security_model=none`): [`crate::qemu::sandbox`] sees
/// to it that plain files come of it.
pub fn push_device(share: &Share, id: &str, seat: Seat, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
    check_tag(share, MAX_TAG_LEN)?;
    let mut back = KeyVal::new("local")
        .set("id", id)
        .set("path", &share.path)
        .set("security_model", "none")
        // Inode numbers stay unique where the directory holds mount points.
        .set("multidevs", "remap");
    if share.read_only {
        back = back.set("readonly", "on");
    }
    push(out, "-fsdev", back);
    let device = Device::new(&seat.transport.device(DEVICE)).text("fsdev", id).text("mount_tag", &share.tag);
    push(out, "-device", device.at(seat.slot).key_val());
    Ok(())
}

fn obstacle(qemu: &QemuInfo) -> Option<String> {
    (!qemu.has_9p).then(|| {
        format!(
            "{} was built without 9p ({DEVICE}), by which the guest gets its directories; install your distribution's full QEMU, or \
             name another with --qemu",
            qemu.path.display()
        )
    })
}
