#!/bin/sh
# A medium error on one disk: md reads from the other, and writes the sector anew, which heals it.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --assume-clean --level=1 --raid-devices=2 --size=64M "$(disk data0)" "$(disk data1)"
dd if=/dev/urandom of=/dev/md0 bs=1M count=64 oflag=direct 2>/dev/null
before=$(dd if=/dev/md0 bs=1M count=64 iflag=direct 2>/dev/null | sha256sum)
lab data0 damage 32MiB+64KiB
lab data1 damage 48MiB+64KiB
echo check >/sys/block/md0/md/sync_action
idle() { [ "$(cat /sys/block/md0/md/sync_action)" = idle ]; }
within 120 idle
same "$(cat /sys/block/md0/md/degraded)" 0 'disks missing'
# Neither reads with an error any more.
for one in data0 data1; do dd if="$(disk $one)" of=/dev/null bs=1M count=65 iflag=direct 2>/dev/null || fail "$one was not mended"; done
same "$(dd if=/dev/md0 bs=1M count=64 iflag=direct 2>/dev/null | sha256sum)" "$before" 'what is on the RAID'
