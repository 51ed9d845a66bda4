# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# A Debian 12 disk as its users have it: systemd, a login on the serial console, DHCP on whatever card there is. No
# agent, no cloud-init, no sshd, nothing that knows of Belljar.

fixture_describe='Debian 12 disk: GPT, GRUB (BIOS, UEFI), systemd, serial login root:belljar'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,make,libcap2-bin '
        # A machine id of its own at each first boot, as on the images that distributions publish.
        echo uninitialized >"$root/etc/machine-id"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
        chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
    '
}
