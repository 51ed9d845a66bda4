//! Belljar's program before the guest's own initramfs, as by [`super::initrd`], where GRUB reads the image: one of our own, on a small disk that comes first in the
//! boot order. It finds the guest's configuration, and boots its default entry with our words and our archive ([`belljar_image::grub`]).
//!
//! It reads what Belljar's own readers do not (RAID, ZFS, and whatever GRUB learns), with the firmware's drivers. It leaves as little in the guest, beside one
//! more disk.

use belljar_guest_spec::Access;

use super::{Agent, Rung, Start, image_if_asked, nothing};

pub(super) const GRUB: Rung = Rung {
    name: "grub",
    word: Access::Grub,
    suits: image_if_asked,
    attach: nothing,
    rules: &[],
    agent: Some(Agent {
        which: "was started in the guest's own initramfs by the kernel that Belljar's GRUB had loaded, and went to the guest's root",
        awaited: "was to be started in the guest's own initramfs by the kernel that Belljar's GRUB loads, and to go to the guest's root",
        in_copy: "it was started with its template, and goes on",
        before_boot: true,
    }),
    is_init: false,
    seed: None,
    start: Start::ByOurGrub,
};
