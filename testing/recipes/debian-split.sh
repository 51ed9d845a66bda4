# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154 # testing/fixture reads fixture_*, and sets work; the set-up script is expanded by the shell that it is for
# Debian 12 as one partitions a server by hand: an MBR, /boot in a primary partition, root, /usr (read only) and /var in logical ones. Root is
# locked, and nothing is said on the serial line but by GRUB.

fixture_describe='Debian 12 disk in several partitions (MBR; /boot, /, /usr, /var), root locked, no serial console (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    local root=$work/root disk=$work/disk.raw number size sectors name
    local uuid=5911a0d2-3c61-4b0e-9f3a-5d2a1c7be10 # and the partition's number
    debian_root bookworm "$root" systemd-sysv,udev,dbus,kmod,iproute2,procps,linux-image-amd64,zstd,grub-pc-bin,grub2-common
    as_root env root="$root" uuid=$uuid bash -euo pipefail -c '
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        echo uninitialized >"$root/etc/machine-id"
        printf "UUID=${uuid}5 / ext4 errors=remount-ro 0 1\nUUID=${uuid}1 /boot ext4 defaults 0 2\n" >"$root/etc/fstab"
        printf "UUID=${uuid}6 /usr ext4 ro 0 2\nUUID=${uuid}7 /var ext4 defaults 0 2\n" >>"$root/etc/fstab"
        # It mounts /usr as well, by what fstab says.
        chroot "$root" update-initramfs -u -k all
        kernel=$(basename "$root"/boot/vmlinuz-*) kernel=${kernel#vmlinuz-}
        mkdir -p "$root/boot/grub/i386-pc"
        cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
        cat >"$root/boot/grub/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set default=0
set timeout=2
insmod part_msdos
insmod ext2
search --no-floppy --fs-uuid --set=root ${uuid}1
menuentry "Debian GNU/Linux" {
    linux /vmlinuz-$kernel root=UUID=${uuid}5 ro quiet
    initrd /initrd.img-$kernel
}
END
    '
    truncate -s 3G "$disk"
    sfdisk --quiet "$disk" <<'END'
label: dos
1: start=2048, size=409600, type=83, bootable
2: start=411648, size=5877760, type=5
5: start=413696, size=1048576, type=83
6: start=1464320, size=3145728, type=83
7: start=4612096, size=1600000, type=83
END
    # GRUB's second part lies between the table and the first partition.
    eval "$(declare -f install_grub_bios | sed -e 's/part_gpt ext2/part_msdos ext2/' -e 's|(\$root)/boot/grub|(\$root)/grub|')"
    install_grub_bios "$root" "$disk" 1 ${uuid}1
    for name in boot usr var; do
        mkdir "$work/$name"
        as_root find "$root/$name" -mindepth 1 -maxdepth 1 -exec mv -t "$work/$name" {} +
    done
    while read -r name number sectors size; do
        ext4 "$name" "$disk" $((sectors * 512)) "$size" "$uuid$number"
    done <<END
$work/boot 1 2048 204800
$root 5 413696 524288
$work/usr 6 1464320 1572864
$work/var 7 4612096 800000
END
    qemu-img convert -f raw -O qcow2 "$disk" "$1"
}
