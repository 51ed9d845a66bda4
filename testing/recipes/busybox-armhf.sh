# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# shellcheck source=testing/recipes/foreign
. "$here/foreign"

fixture_describe='directory with a stock kernel for armhf (vmlinuz) and a busybox initramfs (initrd), a root shell on its console'

fixture_needs() { foreign_needs; need qemu-system-arm qemu-system-arm; }

fixture_build() { foreign_busybox trixie armhf linux-image-armmp-lpae "$1" virtio_pci virtio_console virtio_blk virtio_net 9p 9pnet_virtio overlay; }
