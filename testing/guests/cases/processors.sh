# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Guests with another processor than this host's: stock kernels of Debian 13, emulated.

has_qemu() { command -v "$1" >/dev/null || skip "there is no $1"; }

# on NAME ARGUMENT...: a stock kernel with a busybox, for the processor that the fixture busybox-NAME is for.
on() { local at; at=$(fixture "busybox-$1"); bj --kernel "$at/vmlinuz" --initrd "$at/initrd" "${@:2}"; }

# as_a_guest_should NAME MACHINE [boots]: exact code, streams, the workspace both ways, a signal, a copy of a template.
as_a_guest_should() {
    echo theirs >ws/input
    on "$1" -v -- sh -c 'cat input; echo "to stderr" >&2; uname -m >result; echo left >"$BELLJAR_OUT/file"; exit 7'
    want_code 7
    want_out theirs
    want_line '^to stderr$' err
    want_line "^$2\$" ws/result
    want_err "processor: "
    want_err 'access: shell'
    want_err 'share: 9p'
    if [ "${3:-}" = boots ]; then want_err 'template: none'; else want_err 'template: made'; fi
    on "$1" -v -- sh -c 'kill -9 $$'
    want_code 137
    [ "${3:-}" = boots ] || want_err 'template: found'
}

# fixtures: busybox-arm64
test_aarch64() {
    has_qemu qemu-system-aarch64
    as_a_guest_should arm64 aarch64
    on arm64 --timeout 3s -- sleep 100
    want_code 124
    want_err 'was given 3 s'
    on arm64 -- sh -c 'echo c >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_err 'kernel panicked'
    on arm64 -- sh -c 'reboot -f; sleep 100'
    want_code 121
    want_err 'rebooted unasked'
    on arm64 --workspace-mode cow -- sh -c 'echo x >input; echo y >new; cat input'
    want_code 0
    want_out x
    [ "$(cat ws/input)" = theirs ] && [ ! -e ws/new ]
}

# fixtures: installer-arm64
test_aarch64_installer() {
    has_qemu qemu-system-aarch64
    head -c 4k /dev/urandom >stdin
    local at; at=$(fixture installer-arm64)
    bj -v --kernel "$at/vmlinuz" --initrd "$at/initrd" --append rdinit=/bin/sh --workspace none -- sh -c 'cat; uname -m >&2; exit 7'
    want_code 7
    cmp stdin out
    want_line '^aarch64$' err
    want_err 'share: none'
}

# fixtures: disk-arm64
test_aarch64_disk() {
    has_qemu qemu-system-aarch64
    [ -e /usr/share/AAVMF/AAVMF_CODE.fd ] || skip 'there is no UEFI firmware for aarch64'
    local image; image=$(fixture disk-arm64)
    "$BELLJAR" doctor "$image" >told || :
    want_line '^[a-z]* *for  *aarch64' told
    bj -v --image "$image" -- sh -c 'uname -m; echo left >result; [ -d /sys/firmware/efi ] && exit 7'
    want_code 7
    want_out aarch64
    [ "$(cat ws/result)" = left ]
    want_err 'processor: aarch64 \(the system on its disk'
    want_err 'firmware: .*UEFI'
}

# fixtures: busybox-riscv64
test_riscv64() { has_qemu qemu-system-riscv64; as_a_guest_should riscv64 riscv64; }

# fixtures: installer-riscv64
test_riscv64_installer() {
    has_qemu qemu-system-riscv64
    local at; at=$(fixture installer-riscv64)
    bj --kernel "$at/vmlinuz" --initrd "$at/initrd" --append rdinit=/bin/sh --workspace none -- sh -c 'uname -m; exit 7'
    want_code 7
    want_out riscv64
}

# fixtures: busybox-s390x
test_s390x() { has_qemu qemu-system-s390x; as_a_guest_should s390x s390x; }

# fixtures: busybox-ppc64el
test_ppc64le() { has_qemu qemu-system-ppc64; as_a_guest_should ppc64el ppc64le boots; }

# fixtures: busybox-armhf
test_arm() { has_qemu qemu-system-arm; as_a_guest_should armhf armv7l; }
