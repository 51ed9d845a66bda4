# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Debian 12's installer for i386: a guest that cannot run an amd64 program.

fixture_describe='directory with the Debian installer for i386 (vmlinuz, initrd): cannot run amd64 programs'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; }

fixture_build() { debian_installer i386 "$1"; }
