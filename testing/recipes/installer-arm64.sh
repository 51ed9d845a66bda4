# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Debian 13's installer for arm64, as it is booted over the network.

fixture_describe='directory with the Debian installer for arm64 (vmlinuz, initrd): another processor, no 9p'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; need qemu-system-aarch64 qemu-system-arm; }

fixture_build() {
    local images="$work/unpacked/usr/lib/debian-installer/images/13/arm64/text/debian-installer/arm64"
    # The package is data that any machine can unpack.
    debian_unpack trixie amd64 "$work/unpacked" debian-installer-13-netboot-arm64
    mkdir -p "$1"
    cp "$images/linux" "$1/vmlinuz"
    cp "$images/initrd.gz" "$1/initrd"
}
