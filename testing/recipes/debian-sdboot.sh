# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154,SC2317 # testing/fixture reads fixture_*, and sets work; the set-up script is expanded later; debian_disk calls the function within
# Debian 13 with sysvinit, started by systemd-boot: kernel and initramfs lie on the EFI system partition, beside an entry of the boot loader specification. Root
# is locked, and its init takes no unit from outside.

fixture_describe='Debian 13 disk for UEFI only, systemd-boot with an entry on the EFI system partition, sysvinit, root locked'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    # As in debian-uki.
    eval "$(declare -f debian_disk | sed -e 's/debian_root bookworm/debian_root trixie/' -e '/chpasswd -R/d' -e '/^14: start=/d' -e '/install_grub_bios "\$root"/d' -e 's/first=40960/first=409600/')"
    # In the place of lib.sh's, with the same arguments.
    install_grub_efi() {
        local root=$1 at="$2@@$(($3 * 512))" uuid=$5
        mformat -i "$at" -T "$4" -h 64 -s 32 ::
        mmd -i "$at" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries ::/fixture
        mcopy -i "$at" "$root/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -i "$at" "$root"/boot/vmlinuz-* ::/fixture/linux
        mcopy -i "$at" "$root"/boot/initrd.img-* ::/fixture/initrd
        printf 'title Debian\noptions root=UUID=%s ro console=ttyS0\nlinux /fixture/linux\ninitrd /fixture/initrd\n' "$uuid" >"$work/entry.conf"
        mcopy -i "$at" "$work/entry.conf" ::/loader/entries/fixture.conf
        as_root rm -r "$root"/boot/vmlinuz* "$root"/boot/initrd* "$root/boot/grub"
    }
    debian_disk "$1" sysvinit-core,initscripts,udev,kmod,iproute2,procps,systemd-boot-efi,e2fsprogs '
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
    '
}
