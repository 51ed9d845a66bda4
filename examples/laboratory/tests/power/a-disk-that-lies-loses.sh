#!/bin/sh
# A disk that acknowledges flushes and does not do them loses what was synced: fsync is worth as much as the disk.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q "$(disk data0)"
mount "$(disk data0)" /srv
sync
lab data0 lose flush
echo precious >/srv/file
sync /srv/file || fail 'the disk was to say that all is well'
lab data0 cut strict
umount /srv
lab data0 heal
lab data0 on
mount "$(disk data0)" /srv
[ ! -s /srv/file ] || fail 'the file is there although no flush was done'
