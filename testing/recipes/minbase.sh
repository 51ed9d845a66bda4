# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*
# A root directory as people make them for chroots and containers: no kernel, no modules, /lib a link to usr/lib.

fixture_describe='root directory of a minimal Debian 12 without a kernel, with nft and modprobe'
fixture_suffix=d

fixture_needs() { need mmdebstrap mmdebstrap; }

fixture_build() { debian_root bookworm "$1" nftables,kmod; }
