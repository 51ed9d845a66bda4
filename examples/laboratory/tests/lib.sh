# shellcheck shell=sh
# What the tests share. Source it first:  . "$(dirname "$0")/../lib.sh"
#
# No test cleans up after itself: its guest is thrown away.

set -eu
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

# How a test ends before its end, which is a pass.
fail() { echo "FAILED: $*" >&2; exit 1; }

# same FOUND WANTED WHAT
same() { [ "$1" = "$2" ] || fail "$3: '$1' instead of '$2'"; }

# refused COMMAND...: it must fail. What it says is kept in the test's output, as evidence.
refused() { if "$@"; then fail "this should have been refused: $*"; fi; }

# within SECONDS COMMAND...: it must succeed before so much time has passed.
within() {
    until=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$until" ] || fail "still not so: $*"
        sleep 0.1
    done
}

# disk SERIAL: the device of a lab disk.
disk() { echo "/dev/disk/by-id/virtio-$1"; }

# scsi SERIAL: the device of a disk on SCSI.
scsi() { echo "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_$1"; }

# lab SERIAL ORDER...: has something happen to a lab disk.
lab() { belljar-ctl disk "$@"; }

# count SERIAL WHAT [MARK]: how often that was asked of the disk.
count() { belljar-ctl disk "$1" counts ${3+"$3"} | sed -n "s/^$2 //p"; }

# checksum FILE
checksum() { sha256sum <"$1" | cut -d' ' -f1; }

# uncache: what is read from now on comes from the disks.
uncache() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# once AT: whether the test was started again with this mark; the first time with none.
once() { [ "${BELLJAR_REBOOT_MARK-}" = "$1" ]; }
