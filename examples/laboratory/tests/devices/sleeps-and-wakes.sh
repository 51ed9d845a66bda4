#!/bin/sh
# The machine suspends to RAM and is woken: its disks and what was in memory are there.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q /dev/disk/by-id/virtio-v0
mount /dev/disk/by-id/virtio-v0 /srv
echo before >/srv/file
echo memory >/run/file
belljar-ctl wakeup 3s
cd /
echo mem >/sys/power/state
same "$(cat /srv/file /run/file | tr '\n' ' ')" 'before memory ' 'what was there'
echo after >/srv/file
sync /srv/file
dmesg | grep -q 'PM: suspend exit' || fail 'it did not sleep'
