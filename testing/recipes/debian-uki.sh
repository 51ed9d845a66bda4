# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154,SC2317 # testing/fixture reads fixture_*, and sets work; the set-up script is expanded later; debian_disk calls the function within
# Debian 13 as a unified kernel image that systemd-boot starts: kernel, initramfs and the kernel's words in one EFI program, and none of them anywhere else. Root
# is locked.

fixture_describe='Debian 13 disk for UEFI only, systemd-boot and a unified kernel image, root locked (systemd 257)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    # This machine's chpasswd cannot work with a newer C library's modules; root gets no password anyway. The EFI system partition has room for the image.
    eval "$(declare -f debian_disk | sed -e 's/debian_root bookworm/debian_root trixie/' -e '/chpasswd -R/d' -e '/^14: start=/d' -e '/install_grub_bios "\$root"/d' -e 's/first=40960/first=409600/')"
    # In the place of lib.sh's, with the same arguments.
    install_grub_efi() {
        local root=$1 at="$2@@$(($3 * 512))"
        mformat -i "$at" -T "$4" -h 64 -s 32 ::
        mmd -i "$at" ::/EFI ::/EFI/BOOT ::/EFI/Linux ::/loader
        mcopy -i "$at" "$root/usr/lib/systemd/boot/efi/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
        mcopy -i "$at" "$root/boot/debian.efi" ::/EFI/Linux/debian.efi
        as_root rm "$root/boot/debian.efi"
    }
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,systemd-boot-efi,systemd-ukify,e2fsprogs '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
        printf "root=UUID=%s ro console=tty0 console=ttyS0,115200" $uuid >"$root/tmp/cmdline"
        chroot "$root" ukify build --linux=/boot/vmlinuz-$kernel --initrd=/boot/initrd.img-$kernel --cmdline=@/tmp/cmdline --uname=$kernel --output=/boot/debian.efi >&2
        rm -r "$root"/boot/vmlinuz* "$root"/boot/initrd* "$root/boot/grub" "$root/tmp/cmdline"
    '
}
