# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 12 as clouds have it: the cloud kernel, which has no 9p, no SATA and no USB; cloud-init; root locked, and no user at all.

fixture_describe='Debian 12 disk with the cloud kernel (no 9p), cloud-init and root locked (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,python3,git,cloud-init,linux-image-cloud-amd64 '
        echo uninitialized >"$root/etc/machine-id"
        chroot "$root" passwd --quiet --lock root
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        cloud=$(basename "$root"/boot/vmlinuz-*-cloud-amd64) cloud=${cloud#vmlinuz-}
        sed -i "s/$kernel/$cloud/g" "$root/boot/grub/grub.cfg"
        rm -r "$root/boot"/*-"$kernel" "$root/lib/modules/$kernel"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
        chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
    '
}
