#!/bin/sh
# Linux RAID 1: the data outlives a failed disk, and is on both disks again after a new one was added.
# belljar: requires = ["mdadm", "mkfs.ext4"]
. "$(dirname "$0")/../lib.sh"

one=$(disk data0) two=$(disk data1) at=$(mktemp -d)
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --size=128M --metadata=1.2 "$one" "$two"
mkfs.ext4 -q /dev/md0
mount /dev/md0 "$at"
head -c 8M /dev/urandom >"$at/data"
before=$(checksum "$at/data")

mdadm /dev/md0 --fail "$one"
mdadm /dev/md0 --remove "$one"
same "$(cat /sys/block/md0/md/degraded)" 1 'disks missing'
uncache
same "$(checksum "$at/data")" "$before" 'the data on one disk'

wipefs --quiet --all "$one" # as a new one
mdadm /dev/md0 --add "$one"
mdadm --wait /dev/md0 || : # fails if there is nothing to wait for any more
same "$(cat /sys/block/md0/md/degraded)" 0 'disks missing after the repair'

mdadm /dev/md0 --fail "$two"
uncache
same "$(checksum "$at/data")" "$before" 'the data on the new disk'
