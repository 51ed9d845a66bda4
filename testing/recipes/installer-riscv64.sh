# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Debian 13's installer for riscv64, as it is booted over the network.

# shellcheck source=testing/recipes/foreign
. "$here/foreign"

fixture_describe='directory with the Debian installer for riscv64 (vmlinuz, initrd): another processor, no 9p'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; need_split_qemu riscv64; }

fixture_build() {
    local images="$work/unpacked/usr/lib/debian-installer/images/13/riscv64/text/debian-installer/riscv64"
    debian_unpack trixie amd64 "$work/unpacked" debian-installer-13-netboot-riscv64
    mkdir -p "$1"
    cp "$images/linux" "$1/vmlinuz"
    cp "$images/initrd.gz" "$1/initrd"
}
