# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# The kernels of three releases of Debian (5.10, 6.1, 6.12) with their modules, unpacked side by side.

fixture_describe='directory with the kernels of Debian 11, 12 and 13 and their modules (boot, lib/modules), unpacked'
fixture_suffix=d

fixture_needs() { need dpkg-deb dpkg depmod kmod; }

fixture_build() {
    local out=$1 suite release
    for suite in bullseye bookworm trixie; do debian_unpack "$suite" amd64 "$out" linux-image-amd64; done
    # Debian 13 has it in /usr.
    if [ -d "$out/usr/lib/modules" ]; then
        mv "$out"/usr/lib/modules/* "$out/lib/modules/"
        rm -r "${out:?}/usr"
    fi
    # What no guest loads.
    rm -rf "$out"/lib/modules/*/kernel/{sound,drivers/{gpu,media,net/wireless,infiniband,staging,isdn}} "$out"/boot/{System.map,config}-*
    for release in "$out"/lib/modules/*; do depmod -b "$out" "${release##*/}"; done
}
