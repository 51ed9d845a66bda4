# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154,SC2317 # testing/fixture reads fixture_*, and sets work; the set-up script is expanded later; esp_disk calls fill_esp
# Debian 13 with sysvinit, started by systemd-boot: kernel and initramfs lie on the EFI system partition, beside an entry of the boot loader specification. Root
# is locked, and its init takes no unit from outside.
# shellcheck source=testing/recipes/esp
. "$here/esp"

fixture_describe='Debian 13 disk for UEFI only, systemd-boot with an entry on the EFI system partition, sysvinit, root locked'
fixture_suffix=qcow2
fixture_also=(esp)

fixture_needs() { debian_disk_needs; }

fill_esp() {
    mmd -i "$2" ::/fixture
    mcopy -i "$2" "$1"/boot/vmlinuz-* ::/fixture/linux
    mcopy -i "$2" "$1"/boot/initrd.img-* ::/fixture/initrd
    printf 'title Debian\noptions root=UUID=%s ro console=ttyS0\nlinux /fixture/linux\ninitrd /fixture/initrd\n' "$3" >"$work/entry.conf"
    mcopy -i "$2" "$work/entry.conf" ::/loader/entries/fixture.conf
    as_root rm "$1"/boot/vmlinuz* "$1"/boot/initrd*
}

fixture_build() { esp_disk "$1" sysvinit-core,initscripts ''; }
