# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# The Debian 12 disk of debian-bookworm with the tools that tests of an operating system call, as a tester would install
# them: file systems, LVM, RAID, encryption, firewall. Belljar itself needs none of them.

fixture_describe='debian-bookworm with the tools of examples/os-features: LVM, mdadm, cryptsetup, nftables, …'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    local stock=systemd-sysv,udev,dbus,kmod,iproute2,procps,make,libcap2-bin
    local storage=xfsprogs,btrfs-progs,dosfstools,fdisk,dmsetup,lvm2,mdadm,cryptsetup-bin
    local network=nftables,iputils-ping,netcat-openbsd
    debian_disk "$1" "$stock,$storage,$network" '
        echo uninitialized >"$root/etc/machine-id"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
        chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
    '
}
