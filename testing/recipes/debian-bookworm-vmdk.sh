# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*
# The Debian 12 disk in another format.

fixture_describe='the disk debian-bookworm as vmdk'
fixture_suffix=vmdk
fixture_from=debian-bookworm

fixture_needs() { need qemu-img qemu-utils; }

fixture_build() { qemu-img convert -f qcow2 -O vmdk "$2" "$1"; }
