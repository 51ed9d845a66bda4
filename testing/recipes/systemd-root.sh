# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*
# A root directory with systemd in it, as people make them for containers that are to have services: no kernel, no modules.

fixture_describe='root directory of a minimal Debian 13 with systemd, without a kernel'
fixture_suffix=d

fixture_needs() { need mmdebstrap mmdebstrap; }

fixture_build() { debian_root trixie "$1" systemd-sysv,dbus,udev; }
