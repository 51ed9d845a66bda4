# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154,SC2317 # testing/fixture reads fixture_*, and sets work; the set-up script is expanded later; esp_disk calls fill_esp
# Debian 13 as a unified kernel image that systemd-boot starts: kernel, initramfs and the kernel's words in one EFI program, and none of them anywhere else. Root
# is locked.
# shellcheck source=testing/recipes/esp
. "$here/esp"

fixture_describe='Debian 13 disk for UEFI only, systemd-boot and a unified kernel image, root locked (systemd 257)'
fixture_suffix=qcow2
fixture_also=(esp)

fixture_needs() { debian_disk_needs; }

fill_esp() {
    mcopy -i "$2" "$1/boot/debian.efi" ::/EFI/Linux/debian.efi
    as_root rm "$1/boot/debian.efi"
}

fixture_build() {
    esp_disk "$1" systemd-sysv,dbus,systemd-ukify '
        echo uninitialized >"$root/etc/machine-id"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
        printf "root=UUID=%s ro console=tty0 console=ttyS0,115200" $uuid >"$root/tmp/cmdline"
        chroot "$root" ukify build --linux=/boot/vmlinuz-$kernel --initrd=/boot/initrd.img-$kernel --cmdline=@/tmp/cmdline --uname=$kernel --output=/boot/debian.efi >&2
        rm "$root"/boot/vmlinuz* "$root"/boot/initrd* "$root/tmp/cmdline"
    '
}
