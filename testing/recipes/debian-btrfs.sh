# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 12 on btrfs, without any boot loader: no firmware finds anything to start. Root is locked.

fixture_describe='Debian 12 disk on btrfs, no boot loader, root locked (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; need mkfs.btrfs btrfs-progs; }

# In the place of lib.sh's: the same arguments.
btrfs_disk() {
    local root=$1 image=$2 offset=$3 size=$4 uuid=$5 part=$work/btrfs.raw
    truncate -s "${size}k" "$part"
    as_root mkfs.btrfs -q -U "$uuid" -L root --rootdir "$root" "$part" || die "mkfs.btrfs could not fill $part from $root"
    dd if="$part" of="$image" bs=1M seek="$offset" oflag=seek_bytes conv=notrunc,sparse status=none
    rm "$part"
}

fixture_build() {
    eval "$(declare -f debian_disk | sed -e '/^1[45]: start=/d' -e '/install_grub_[a-z]* "\$root"/d' -e 's/ext4 "\$root"/btrfs_disk "$root"/' \
        -e 's/UUID=%s \/ ext4 errors=remount-ro 0 1/UUID=%s \/ btrfs defaults 0 0/')"
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,btrfs-progs '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        rm -r "$root/boot/grub"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
    '
}
