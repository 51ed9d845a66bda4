# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 13 as nobody can log in to it: root is locked, and there is no other user. Nothing is on the serial line either: no
# console of the kernel, no getty, not even the boot loader.

fixture_describe='Debian 13 disk, root locked, nothing on the serial line (systemd 257)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    # This machine's chpasswd cannot work with a newer C library's modules; root gets no password anyway.
    eval "$(declare -f debian_disk | sed -e 's/debian_root bookworm/debian_root trixie/' -e '/chpasswd -R/d')"
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        sed -i -e "s/ console=tty0 console=ttyS0,115200//" -e "/^serial /d; /^terminal_/d" "$root/boot/grub/grub.cfg"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        chroot "$root" systemctl --quiet enable systemd-networkd.service
        chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
    '
}
