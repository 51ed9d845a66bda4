#!/bin/sh
# A write that the disk acknowledges and loses is found by checksums, where a file system without them would give old bytes.
# belljar: requires = ["mkfs.btrfs"]
. "$(dirname "$0")/../lib.sh"
mkfs.btrfs -q -d single -m dup "$(disk data0)"
mount "$(disk data0)" /srv
head -c 8M /dev/urandom >/srv/file
lab data0 lose write at=100MiB+100MiB
head -c 64M /dev/urandom >/srv/other
sync
lab data0 heal
umount /srv
mount "$(disk data0)" /srv 2>/dev/null || exit 0 # so much is lost that it does not even mount: found, too
if cat /srv/file /srv/other >/dev/null && btrfs scrub start -B /srv; then fail 'nobody noticed lost writes'; fi
