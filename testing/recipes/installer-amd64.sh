# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Debian 12's installer as it is booted over the network: its own kernel and initramfs, busybox, no 9p.

fixture_describe='directory with the Debian installer for amd64 (vmlinuz, initrd): busybox, no 9p'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; }

fixture_build() { debian_installer amd64 "$1"; }
