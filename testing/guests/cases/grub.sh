# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Images that a GRUB of Belljar's own starts.

no_boot() { want_no_line '^belljar: (template: made|template: none|booted)' err; }
# What is left in the guest of the way in: words on the kernel line, and the disk behind all others.
state='grep -o "rdinit=.*" /proc/cmdline && readlink -f /dev/disk/by-id/virtio-belljar-grub && cat /proc/1/comm && systemctl is-system-running --wait'

# enters IMAGE [OPTION...]: from a boot, and then in a copy with another disk.
enters() {
    local image=$1 before
    shift
    command -v grub-mkimage >/dev/null || skip 'there is no grub-mkimage (grub-common)'
    before=$(sha256sum <"$image")
    bj -v --image "$image" "$@" -- sh -c "$state"
    want_code 0
    want_out rdinit=/belljar/agent /dev/vdb systemd running
    want_line '^belljar: access: grub ' err
    want_line '^belljar: entry: Debian GNU/Linux \(' err
    want_line '^belljar: template: made' err
    bj -v --image "$image" "$@" -- sh -c "$state; findmnt -n -o SOURCE /"
    no_boot
    want_out rdinit=/belljar/agent /dev/vdb systemd running "${root_on:-/dev/vda1}"
    [ "$(sha256sum <"$image")" = "$before" ] || fail 'the image has changed'
}

# Nobody gets in by its own boot, and Belljar reads no RAID.
# fixtures: debian-raid
test_where_belljar_cannot_read_the_image() {
    export BELLJAR_CACHE_DIR=$dir/cache root_on=/dev/md127
    enters "$(fixture debian-raid)"
    want_line '^belljar: start: by a GRUB of Belljar.s own, .*GRUB may be able to read partition 1 \(Linux RAID\)' err
}

# fixtures: debian-trixie
test_by_a_bios() {
    export BELLJAR_CACHE_DIR=$dir/cache
    [ -d /usr/lib/grub/i386-pc ] || skip 'there is no GRUB for a BIOS (grub-pc-bin)'
    enters "$(fixture debian-trixie)" --access grub
    want_line '^belljar: GRUB: .*/i386-pc; it boots the default entry' err
}

# fixtures: debian-uefi ovmf
test_by_uefi() {
    with_ovmf
    export BELLJAR_CACHE_DIR=$dir/cache
    [ -d /usr/lib/grub/x86_64-efi ] || skip 'there is no GRUB for UEFI (grub-efi-amd64-bin)'
    enters "$(fixture debian-uefi)" --access grub
    want_line '^belljar: GRUB: .*/x86_64-efi; it boots the default entry' err
}
