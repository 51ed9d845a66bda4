#!/bin/sh
# RAID 1 after a power cut in the middle of writes: both disks come to say the same again.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
if once ''; then
    mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --size=64M "$(disk data0)" "$(disk data1)"
    mdadm --wait /dev/md0 || :
    (while :; do dd if=/dev/urandom of=/dev/md0 bs=64k count=512 oflag=direct conv=notrunc 2>/dev/null; done) &
    sleep 3
    belljar-ctl power-cut cut seed=5
fi
mdadm --stop --scan || :
mdadm --assemble --run /dev/md0 "$(disk data0)" "$(disk data1)"
# Else it waits for somebody to write.
mdadm --readwrite /dev/md0 || :
mdadm --wait /dev/md0 || :
same "$(cat /sys/block/md0/md/degraded)" 0 'disks missing'
echo check >/sys/block/md0/md/sync_action
within 120 sh -c '[ "$(cat /sys/block/md0/md/sync_action)" = idle ]'
same "$(cat /sys/block/md0/md/mismatch_cnt)" 0 'differences'
