#!/bin/sh
# ext4: made, filled to the last block, unmounted, checked and mounted again. A full file system
# refuses to grow, keeps what it had, and takes new data once there is room.
# belljar: requires = ["mkfs.ext4"]
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d)
mkfs.ext4 -q "$device" 64M
mount "$device" "$at"

head -c 8M /dev/urandom >"$at/data"
before=$(checksum "$at/data")
refused dd if=/dev/zero of="$at/fill" bs=1M
umount "$at"
e2fsck -fn "$device"

mount "$device" "$at"
same "$(checksum "$at/data")" "$before" 'the data after the disk was full'
rm "$at/fill"
dd if=/dev/zero of="$at/again" bs=1M count=16 conv=fsync
umount "$at"
e2fsck -fn "$device"
