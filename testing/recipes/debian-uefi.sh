# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 12 that only UEFI firmware starts: an EFI system partition, and nothing for a BIOS. Root is locked.

fixture_describe='Debian 12 disk for UEFI only, root locked (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    eval "$(declare -f debian_disk | sed -e '/^14: start=/d' -e '/install_grub_bios "\$root"/d')"
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
    '
}
