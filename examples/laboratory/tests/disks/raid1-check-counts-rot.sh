#!/bin/sh
# Bit rot on one disk of a RAID 1: a check finds that the two differ, though md cannot know which is right.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --size=64M "$(disk data0)" "$(disk data1)"
mdadm --wait /dev/md0 || :
check() {
    echo check >/sys/block/md0/md/sync_action
    within 120 sh -c '[ "$(cat /sys/block/md0/md/sync_action)" = idle ]'
    cat /sys/block/md0/md/mismatch_cnt
}
same "$(check)" 0 'differences before'
lab data1 rot 32MiB+1MiB
[ "$(check)" -gt 0 ] || fail 'the check found no difference'
