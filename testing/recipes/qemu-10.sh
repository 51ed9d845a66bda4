# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Another QEMU than Debian 12's own 7.2, to stand beside it: 10.0 from its backports, unpacked, not installed.

fixture_describe='directory with QEMU 10.0 (the program is "qemu"), unpacked, to stand beside the one that is installed'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg; }

fixture_build() {
    local out=$1
    mkdir -p "$out"
    debian_unpack bookworm amd64 "$out" ipxe-qemu
    # Backports have no security suite.
    eval "all_$(declare -f apt_sources)"
    # shellcheck disable=SC2317 # debian_unpack calls it
    apt_sources() { all_apt_sources "$@" | grep -v -e '-backports-security '; }
    debian_unpack bookworm-backports amd64 "$out" qemu-system-x86 qemu-system-common qemu-system-data seabios
    # Debian's QEMU looks for its parts where they would be installed.
    cat >"$out/qemu" <<'END'
#!/bin/sh
parts=$(dirname "$(readlink -f "$0")")
export QEMU_MODULE_DIR="$parts/usr/lib/x86_64-linux-gnu/qemu"
exec "$parts/usr/bin/qemu-system-x86_64" -L "$parts/usr/share/qemu" -L "$parts/usr/share/seabios" -L "$parts/usr/lib/ipxe/qemu" "$@"
END
    chmod +x "$out/qemu"
    "$out/qemu" --version | head -n 1 || die 'it does not start: are the libraries of another qemu-system-x86 installed?'
}
