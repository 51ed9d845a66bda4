#!/bin/sh
# A write stays in memory until it is synced, and a sync is a flush of the disk.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$(disk data0)"
mount "$(disk data0)" /srv
sync
lab data0 mark written
echo precious >/srv/file
same "$(count data0 flushes written)" 0 'flushes before anybody asked for one'
lab data0 mark synced
sync /srv/file
[ "$(count data0 flushes synced)" -ge 1 ] || fail 'fsync did not reach the disk'
[ "$(count data0 writes synced)" -ge 1 ] || fail 'fsync wrote nothing'
