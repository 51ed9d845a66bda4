#!/bin/sh
# zram: a disk in memory that compresses. What compresses well takes a small part of its size, and is
# read back right.
# belljar: requires = ["zramctl"]
. "$(dirname "$0")/../lib.sh"

modprobe zram num_devices=1 || skip 'the kernel has no zram'
device=$(zramctl --find --size 64M)
yes 'the same line again and again' | head -c 64M >"$device" || :
sync
read -r data _ used _ <"/sys/block/${device##*/}/mm_stat"
echo "$data bytes in $used"
same "$data" $((64 << 20)) 'bytes stored'
[ "$used" -lt $((data / 4)) ] || fail "they take $used bytes of memory"
same "$(checksum "$device")" "$(yes 'the same line again and again' | head -c 64M | sha256sum | cut -d' ' -f1)" 'the data'
