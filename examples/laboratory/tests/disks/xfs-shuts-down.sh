#!/bin/sh
# XFS shuts itself down when its log cannot be written, and replays it once the disk is well.
# belljar: requires = ["mkfs.xfs"]
. "$(dirname "$0")/../lib.sh"
mkfs.xfs -q -m rmapbt=0 "$(disk data0)" 2>/dev/null || mkfs.xfs -q --unsupported "$(disk data0)"
mount "$(disk data0)" /srv
echo precious >/srv/file
sync /srv/file
lab data0 error write,flush
sh -c 'echo lost >/srv/lost && sync /srv/lost' && fail 'the error was swallowed'
down() { ! ls /srv >/dev/null 2>&1; }
within 60 down
lab data0 heal
umount /srv
mount "$(disk data0)" /srv
same "$(cat /srv/file)" precious 'what had been synced'
