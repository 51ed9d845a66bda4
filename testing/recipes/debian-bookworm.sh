# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# A Debian 12 disk as its users have it: GPT, GRUB for BIOS and for UEFI, ext4, systemd, the generic kernel, a login on
# the serial console (root, password "belljar"). No agent, no cloud-init, nothing that knows of Belljar.
#
# Neither a loop device nor a mount: mke2fs fills the file system from a directory, and GRUB is written by hand.

fixture_describe='Debian 12 disk image (GPT, GRUB, systemd, serial login root:belljar)'
fixture_suffix=qcow2

fixture_needs() {
    need mmdebstrap mmdebstrap; need mke2fs e2fsprogs; need sfdisk fdisk; need qemu-img qemu-utils
    need mformat mtools
}

fixture_build() {
    local out=$1 root=$work/root disk=$work/disk.raw uuid=b17e9a5c-3c61-4b0e-9f3a-5d2a1c7be110 kernel
    local mib=2048 bios=2048 esp=8192 rootfs=40960 # a sector is 512 bytes
    debian_root bookworm "$root" \
        systemd-sysv,udev,dbus,kmod,iproute2,procps,make,libcap2-bin,linux-image-amd64,zstd,grub-pc-bin,grub-efi-amd64-bin,grub2-common

    say 'setting it up: password, file systems, network, GRUB'
    kernel=$(basename "$root"/boot/vmlinuz-*) kernel=${kernel#vmlinuz-}
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root env root="$root" uuid=$uuid kernel="$kernel" bash -euo pipefail -c '
        echo root:belljar | chpasswd -R "$root"
        echo debian >"$root/etc/hostname"
        printf "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n" >"$root/etc/hosts"
        printf "UUID=%s / ext4 errors=remount-ro 0 1\n" "$uuid" >"$root/etc/fstab"
        # A machine id of its own at each first boot, as the images that distributions publish have it.
        echo uninitialized >"$root/etc/machine-id"
        printf "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n" >"$root/etc/systemd/network/ether.network"
        systemctl --root="$root" --quiet enable systemd-networkd.service serial-getty@ttyS0.service
        systemctl --root="$root" --quiet disable systemd-networkd-wait-online.service
        printf "GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200\"\nGRUB_TERMINAL=\"console serial\"\n" >"$root/etc/default/grub"
        mkdir -p "$root/boot/grub/i386-pc"
        cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
        cat >"$root/boot/grub/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set default=0
set timeout=0
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root $uuid
menuentry "Debian GNU/Linux" {
    echo "Loading Linux $kernel ..."
    linux /boot/vmlinuz-$kernel root=UUID=$uuid ro console=tty0 console=ttyS0,115200
    echo "Loading initial ramdisk ..."
    initrd /boot/initrd.img-$kernel
}
END
    '

    say "writing a disk of $mib MiB: partitions, ext4 from the directory, GRUB"
    truncate -s ${mib}M "$disk"
    sfdisk --quiet "$disk" <<END
label: gpt
label-id: 6D1A3A0B-52C1-4C3C-8B16-2C0E1F0C9A01
14: start=$bios, size=$((esp - bios)), type=21686148-6449-6E6F-744E-656564454649
15: start=$esp, size=$((rootfs - esp)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
1: start=$rootfs, size=$((mib * 2048 - rootfs - 2048)), type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
END
    install_grub_bios "$root" "$disk" $bios $uuid
    install_grub_efi "$root" "$disk" $esp $((rootfs - esp)) $uuid
    ext4 "$root" "$disk" $((rootfs * 512)) $(((mib * 2048 - rootfs - 2048) / 2)) $uuid
    say 'converting it to qcow2'
    qemu-img convert -f raw -O qcow2 "$disk" "$out"
}
