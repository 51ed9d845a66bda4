# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# A Debian 12 disk for real machines only: its kernel's modules of virtio, 9p and FUSE are deleted, and its initramfs was written anew after that. Root has
# a password, "belljar", so that each way in can be taken.

fixture_describe='Debian 12 disk whose kernel has no virtio, no 9p and no FUSE; root has the password belljar (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps '
        echo uninitialized >"$root/etc/machine-id"
        modules="$root/lib/modules/$kernel"
        (cd "$modules" && find . -name "*.ko*" \( -path "*virtio*" -o -path "*/9p/*" -o -path "*/fuse/*" \) -delete)
        chroot "$root" depmod "$kernel"
        left=$(grep -e virtio -e /9p/ -e /fuse/ "$modules/modules.dep" "$modules/modules.builtin" || :)
        [ -z "$left" ] && grep -q /ahci.ko "$modules/modules.dep" || { echo "the kernel still has: $left" >&2; exit 1; }
        chroot "$root" update-initramfs -u -k "$kernel"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
        chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
    '
}
