//! Shares over virtiofs: a program beside QEMU (`virtiofsd`, [`super::virtiofsd`]) serves the directory, and a device of the machine carries it.

use std::ffi::OsString;

use belljar_image::modules::Feature;
use belljar_proto::message::Source;

use super::{ByShell, Kind, check_tag};
use crate::qemu::{
    args::{ArgsError, Device, HelperLine, KeyVal, Seat, Share, push},
    probe::QemuInfo,
};

/// The device behind which the program is.
pub(crate) const DEVICE: &str = "vhost-user-fs";
/// The most bytes that a tag can have (the virtio specification, 5.11.4).
const MAX_TAG_LEN: usize = 36;

pub(crate) const VIRTIOFS: Kind = Kind {
    name: "virtiofs",
    file_system: "virtiofs",
    what: "virtiofs file system",
    advice: "use a kernel that has the module virtiofs (5.4 and later), or leave --share at auto, or do without shares: --workspace none, and no --out",
    features: &[Feature::VirtioPci, Feature::FileSystem("virtiofs")],
    source: |tag| Source::Virtiofs { tag: tag.to_owned() },
    by_shell: Some(ByShell {
        mount: |tag, at, mode| format!("mount -t virtiofs -o {mode} {tag} {at}"),
        load: "modprobe virtio_pci 2>/dev/null; modprobe virtiofs",
        known: "grep -qw virtiofs /proc/filesystems",
    }),
    device: Some(push_device),
    has_port: false,
    has_server: true,
    on_disk: false,
    obstacle,
    frozen: Err(
        "the guest's memory is shared with virtiofsd, which has a part of the guest's state, so that it can be neither frozen nor copied",
    ),
};

/// A directory for the guest, which the program at the other end of the share's line serves.
fn push_device(share: &Share, id: &str, seat: Seat, out: &mut Vec<OsString>) -> Result<(), ArgsError> {
    check_tag(share, MAX_TAG_LEN)?;
    let socket = KeyVal::new("socket").set("id", id);
    let socket = match &share.server {
        Some(HelperLine::Fd(fd)) => socket.set("fd", fd.to_string()),
        Some(HelperLine::Path(path)) => socket.set("path", path),
        None => return Err(ArgsError::Empty { what: "the line to a share's server" }),
    };
    push(out, "-chardev", socket);
    let device = Device::new(&seat.transport.device(DEVICE)).text("chardev", id).text("tag", &share.tag);
    push(out, "-device", device.at(seat.slot).key_val());
    Ok(())
}

fn obstacle(qemu: &QemuInfo) -> Option<String> {
    (!qemu.has_virtiofs).then(|| {
        format!(
            "{} has no device for shares by virtiofs ({DEVICE}); install your distribution's full QEMU, or name another with --qemu, or leave --share at auto",
            qemu.path.display()
        )
    })
}
