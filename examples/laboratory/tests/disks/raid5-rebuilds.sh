#!/bin/sh
# RAID 5 of three disks, one of which dies: the data is computed from the others, and is whole on a disk that is added again.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --force --level=5 --raid-devices=3 --size=48M "$(disk data0)" "$(disk data1)" "$(disk data2)"
mdadm --wait /dev/md0 || :
dd if=/dev/urandom of=/dev/md0 bs=1M count=96 oflag=direct 2>/dev/null
sum() { dd if=/dev/md0 bs=1M count=96 iflag=direct 2>/dev/null | sha256sum; }
before=$(sum)
lab data2 error
same "$(sum)" "$before" 'the data with a dead disk'
dd if=/dev/zero of=/dev/md0 bs=4k count=1 seek=1 oflag=direct conv=notrunc 2>/dev/null
after=$(sum)
same "$(cat /sys/block/md0/md/degraded)" 1 'disks missing'
lab data2 heal
mdadm /dev/md0 --remove faulty || mdadm /dev/md0 --remove "$(disk data2)"
mdadm --zero-superblock "$(disk data2)"
mdadm /dev/md0 --add "$(disk data2)"
mdadm --wait /dev/md0 || :
lab data0 error
same "$(sum)" "$after" 'the data with the rebuilt disk and another one dead'
