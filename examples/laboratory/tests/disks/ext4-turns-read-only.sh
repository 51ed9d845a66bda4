#!/bin/sh
# A journal that cannot be written: ext4 says so to who syncs, turns read-only, and is whole again after fsck.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q "$(disk data0)"
mount -o errors=remount-ro "$(disk data0)" /srv
echo precious >/srv/file
sync /srv/file
lab data0 error write,flush
sh -c 'echo lost >/srv/lost && sync /srv/lost' && fail 'the error was swallowed'
read_only() { ! mkdir "/srv/$(date +%N)" 2>/dev/null; }
within 60 read_only
lab data0 heal
umount /srv
fsck.ext4 -fy "$(disk data0)" || [ $? -le 2 ]
mount "$(disk data0)" /srv
same "$(cat /srv/file)" precious 'what had been synced'
