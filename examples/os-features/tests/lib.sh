# shellcheck shell=sh
# What the tests share. Source it first:  . "$(dirname "$0")/../lib.sh"
#
# No test cleans up after itself: its guest is thrown away.

set -eu
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

# How a test ends before its end, which is a pass.
fail() { echo "FAILED: $*" >&2; exit 1; }
skip() { echo "$*"; exit 77; } # the last line is the reason

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

# disk SERIAL: the device of an extra disk. With udev it is /dev/disk/by-id/virtio-SERIAL, but not every guest has udev.
disk() {
    for file in /sys/block/*/serial; do
        if [ "$(cat "$file")" = "$1" ]; then
            file=${file%/serial}
            echo "/dev/${file##*/}"
            return
        fi
    done
    fail "this guest has no disk with the serial number '$1'"
}

# checksum FILE
checksum() { sha256sum <"$1" | cut -d' ' -f1; }

# uncache: what is read from now on comes from the disks.
uncache() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# namespaces NAME...: network namespaces with their loopback up, made anew.
namespaces() {
    for name; do
        ip netns del "$name" 2>/dev/null || :
        ip netns add "$name"
        ip -n "$name" link set lo up
    done
}

# pair NAMESPACE INTERFACE NAMESPACE INTERFACE: a cable between two namespaces, both ends up.
pair() {
    ip -n "$1" link add "$2" type veth peer name "$4" netns "$3"
    ip -n "$1" link set "$2" up
    ip -n "$3" link set "$4" up
}

# reaches NAMESPACE ADDRESS: whether it answers a ping, within three seconds.
reaches() { ip netns exec "$1" ping -q -n -c 1 -W 3 "$2"; }

# For what is there only where systemd is process 1.
needs_systemd() { [ -d /run/systemd/system ] || skip 'systemd does not run in this guest'; }
