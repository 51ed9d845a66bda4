# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*, and sets work
# The disk of debian-locked with a boot menu that waits for a key, for ever.

fixture_describe='the disk debian-locked, whose GRUB waits at its menu for a key (timeout=-1)'
fixture_suffix=qcow2
fixture_from=debian-locked

fixture_needs() { need qemu-img qemu-utils; need debugfs e2fsprogs; }

fixture_build() {
    # shellcheck disable=SC2154 # testing/fixture sets it
    local raw=$work/disk.raw root="$work/disk.raw?offset=$((40960 * 512))"
    qemu-img convert -f qcow2 -O raw "$2" "$raw"
    debugfs -R 'cat /boot/grub/grub.cfg' "$root" 2>/dev/null | sed 's/^set timeout=0$/set timeout=-1/' >"$work/grub.cfg"
    grep -q '^set timeout=-1$' "$work/grub.cfg" || die 'the disk has no /boot/grub/grub.cfg with a timeout'
    debugfs -w -f - "$root" >"$work/debugfs.log" 2>&1 <<END
cd /boot/grub
rm grub.cfg
write $work/grub.cfg grub.cfg
END
    debugfs -R 'cat /boot/grub/grub.cfg' "$root" 2>/dev/null | cmp - "$work/grub.cfg" || { cat "$work/debugfs.log" >&2; die 'debugfs did not write /boot/grub/grub.cfg'; }
    qemu-img convert -f raw -O qcow2 "$raw" "$1"
}
