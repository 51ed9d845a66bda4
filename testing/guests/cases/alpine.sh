# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Alpine: musl, busybox, no boot loader, no login on the serial line.

# fixtures: alpine
test_shell_as_init() {
    local at; at=$(fixture alpine)
    # Its first modprobe takes ten seconds of an emulated processor, and as many more as the host is busy.
    sha256sum "$at/disk.qcow2" >sum
    bj --kernel "$at/vmlinuz" --initrd "$at/initrd" --disk "file=$at/disk.qcow2,serial=root" \
        --append 'root=/dev/vda rootfstype=ext4 modules=ext4,virtio_blk,virtio_pci watchdog_thresh=60 init=/bin/sh' -- \
        sh -c '. /etc/os-release; echo "$ID"; echo err >&2; touch made; exit 7'
    want_code 7
    want_out alpine
    want_line '^err$' err
    [ -e ws/made ]
    sha256sum --quiet -c sum || fail 'the image has changed'
}

# fixtures: alpine
test_emergency_shell() {
    local at; at=$(fixture alpine)
    bj --kernel "$at/vmlinuz" --initrd "$at/initrd" --workspace none -- sh -c 'echo out; uname -r; exit 7'
    want_code 7
    want_line '^6\.18'
}

# No firmware finds anything on it, so its kernel is started directly.
# fixtures: alpine
test_disk_without_boot_loader() {
    local image; image="$(fixture alpine)/disk.qcow2"
    sha256sum "$image" >sum
    bj -v --image "$image" -- sh -c '. /etc/os-release; echo "$ID"; readlink /proc/1/exe; rc-status -r; touch made; exit 7'
    want_code 7
    want_out alpine /bin/busybox default
    want_line '^belljar: start: directly, .*no firmware finds anything on it to start' err
    want_line '^belljar: access: initrd ' err
    [ -e ws/made ]
    sha256sum --quiet -c sum || fail 'the image has changed'
}
