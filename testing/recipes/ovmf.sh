# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*
# UEFI firmware as Debian 12 packages it, unpacked, not installed: its descriptions name files that are not there.

fixture_describe='directory with UEFI firmware for PCs (the package ovmf), unpacked, not installed'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; }

fixture_build() { debian_unpack bookworm amd64 "$1" ovmf; }
