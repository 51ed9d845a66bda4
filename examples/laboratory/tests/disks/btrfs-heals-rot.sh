#!/bin/sh
# Bit rot on one disk: Btrfs finds it by its checksums and heals it from the mirror.
# belljar: requires = ["mkfs.btrfs"]
. "$(dirname "$0")/../lib.sh"
mkfs.btrfs -q -m raid1 -d raid1 "$(disk data0)" "$(disk data1)"
mount "$(disk data0)" /srv
head -c 16M /dev/urandom >/srv/file
before=$(checksum /srv/file)
umount /srv
lab data0 rot 64MiB+32MiB
mount "$(disk data0)" /srv
btrfs scrub start -B /srv || :
same "$(checksum /srv/file)" "$before" 'the file after a scrub'
umount /srv
# The mirror is gone: what is left was healed.
mount -o degraded "$(disk data0)" /srv
lab data1 error
uncache
same "$(checksum /srv/file)" "$before" 'the file on the disk that had rotted'
