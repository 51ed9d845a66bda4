#!/bin/sh
# Somebody pulls a disk out of a RAID 1 that is in use, and puts another one in: it is rebuilt, and nothing is lost.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 "$(scsi s0)" "$(scsi s1)"
mkfs.ext4 -q /dev/md0
mount /dev/md0 /srv
head -c 8M /dev/urandom >/srv/file
before=$(checksum /srv/file)
sync
belljar-ctl unplug disk s1
degraded() { echo alive >/srv/alive; sync /srv/alive; grep -q '\[U_\]' /proc/mdstat; }
within 60 degraded
belljar-ctl plug disk spare
within 60 [ -e "$(scsi spare)" ]
mdadm /dev/md0 --add "$(scsi spare)"
whole() { grep -q '\[UU\]' /proc/mdstat; }
within 120 whole
# The other one goes as well.
belljar-ctl unplug disk s0
uncache
same "$(checksum /srv/file)" "$before" 'the file on the disk that was put in'
