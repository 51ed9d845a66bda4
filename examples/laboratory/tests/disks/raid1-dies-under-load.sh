#!/bin/sh
# RAID 1: a disk dies under load, work goes on without it, and a spare takes its place.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --size=128M "$(disk data0)" "$(disk data1)"
mkfs.ext4 -q /dev/md0
mount /dev/md0 /srv
head -c 8M /dev/urandom >/srv/file
before=$(checksum /srv/file)
(while :; do dd if=/dev/zero of=/srv/load bs=64k count=16 conv=fsync 2>/dev/null; done) & load=$!
lab data1 error
degraded() { grep -q '\[U_\]' /proc/mdstat; }
within 60 degraded
echo alive >/srv/alive
sync /srv/alive
mdadm /dev/md0 --add "$(disk data2)"
whole() { grep -q '\[UU\]' /proc/mdstat; }
within 120 whole
kill $load
uncache
same "$(checksum /srv/file)" "$before" 'the file'
# The first disk dies as well: what the spare has is enough.
lab data0 error
uncache
same "$(checksum /srv/file)" "$before" 'the file on the spare'
