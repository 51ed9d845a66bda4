# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# A disk for arm64 that UEFI starts: GRUB on an EFI system partition, a stock kernel, and a root on ext4 whose programs are busybox alone. A whole Debian would need
# an emulator of its programs on this machine.
# shellcheck source=testing/recipes/foreign
. "$here/foreign"

fixture_describe='disk image for arm64 (raw): UEFI, GRUB, a stock kernel, busybox on ext4, root without a password'
fixture_suffix=raw
fixture_from=busybox-arm64

fixture_needs() { need mke2fs e2fsprogs; need sfdisk fdisk; need mformat mtools; [ -e /usr/share/AAVMF/AAVMF_CODE.fd ] || missing_packages+=(qemu-efi-aarch64); }

fixture_build() {
    local out=$1 from=$2 root=$work/disk-root uuid=5b0e9a1c-64aa-4c3c-9f3a-aa64aa64aa64 esp=2048 first=34816 sectors version
    sectors=$((192 * 2048 - first - 2048))
    foreign_unpack bookworm arm64 "$work/grub" grub-efi-arm64-bin
    mkdir -p "$root"
    (cd "$root" && gzip -dc "$from/initrd" | cpio -idm --quiet)
    # The initramfs of this disk is the same but for its first program, which goes on to the disk.
    cp -a "$root" "$work/initrd"
    cat >"$work/initrd/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in virtio_pci virtio_blk ext4; do modprobe $module 2>/dev/null; done
until [ -b /dev/vda1 ]; do usleep 100000; done
mkdir -p /new
mount -t ext4 -o ro /dev/vda1 /new
exec switch_root /new /sbin/init
END
    rm "$root/init"
    version=$(ls "$root/lib/modules")
    mkdir -p "$root"/{boot/grub,mnt,new}
    cp "$from/vmlinuz" "$root/boot/vmlinuz-$version"
    initramfs "$work/initrd" "$root/boot/initrd.img-$version"
    printf 'NAME="Busybox on arm64"\nID=busybox\nPRETTY_NAME="Busybox on arm64"\n' >"$root/etc/os-release"
    printf 'root::0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    cat >"$root/sbin/init" <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -o remount,rw /dev/vda1 /
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname disk
ip link set lo up
while :; do setsid getty -L 115200 ttyAMA0 vt100; done
END
    chmod 755 "$root/sbin/init" "$work/initrd/init"
    cat >"$root/boot/grub/grub.cfg" <<END
set default=0
set timeout=0
search --no-floppy --fs-uuid --set=root $uuid
menuentry "Busybox" {
    linux /boot/vmlinuz-$version root=UUID=$uuid ro console=ttyAMA0
    initrd /boot/initrd.img-$version
}
END
    truncate -s 192M "$out"
    sfdisk --quiet "$out" <<END
label: gpt
15: start=$esp, size=$((first - esp)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
1: start=$first, size=$sectors, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
END
    local at="$out@@$((esp * 512))" binary=$work/grub/usr/lib/grub/arm64-efi/monolithic/grubaa64.efi
    # shellcheck disable=SC2016 # GRUB's variables
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$uuid" >"$work/esp.cfg"
    mformat -i "$at" -T "$((first - esp))" -h 64 -s 32 ::
    mmd -i "$at" ::/EFI ::/EFI/BOOT ::/EFI/debian
    mcopy -i "$at" "$binary" ::/EFI/BOOT/BOOTAA64.EFI
    mcopy -i "$at" "$work/esp.cfg" ::/EFI/debian/grub.cfg
    ext4 "$root" "$out" $((first * 512)) $((sectors / 2)) "$uuid"
}
