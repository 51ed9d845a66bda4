# shellcheck shell=bash
# shellcheck disable=SC2034 # testing/fixture reads fixture_*, and sets work
# The Debian 12 disk of debian-bookworm as nobody can log in to it: root has no password, and is locked.

fixture_describe='the disk debian-bookworm with root locked (systemd 252, kernel with 9p)'
fixture_suffix=qcow2
fixture_from=debian-bookworm

fixture_needs() { need qemu-img qemu-utils; need debugfs e2fsprogs; }

fixture_build() {
    # shellcheck disable=SC2154 # testing/fixture sets it
    local raw=$work/disk.raw root="$work/disk.raw?offset=$((40960 * 512))"
    qemu-img convert -f qcow2 -O raw "$2" "$raw"
    debugfs -R 'cat /etc/shadow' "$root" 2>/dev/null | sed 's/^root:[^:]*:/root:*:/' >"$work/shadow"
    grep -q '^root:\*:' "$work/shadow" || die 'the disk has no /etc/shadow with root in it'
    debugfs -w -f - "$root" >"$work/debugfs.log" 2>&1 <<END
cd /etc
rm shadow
write $work/shadow shadow
set_inode_field shadow mode 0100640
set_inode_field shadow gid 42
END
    debugfs -R 'cat /etc/shadow' "$root" 2>/dev/null | cmp - "$work/shadow" || { cat "$work/debugfs.log" >&2; die 'debugfs did not write /etc/shadow'; }
    qemu-img convert -f raw -O qcow2 "$raw" "$1"
}
