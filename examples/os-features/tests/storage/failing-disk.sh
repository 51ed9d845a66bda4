#!/bin/sh
# A disk that fails under a file system, made with the device mapper: what is on good sectors is read on,
# what is not is an input/output error and nothing else, and ext4 turns read-only.
# belljar: requires = ["dmsetup", "mkfs.ext4"]
# belljar: guards = { allow = [{ guard = "io-error", match = "dm-", reason = "the test has the device mapper make them" }] }
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d) sectors=131072
modprobe dm-mod
table() { echo "$*" | dmsetup load weak; dmsetup suspend --nolockfs weak; dmsetup resume weak; }

echo "0 $sectors linear $device 0" | dmsetup create weak
dmsetup mknodes
mkfs.ext4 -q -E lazy_itable_init=0,nodiscard /dev/mapper/weak
mount -o errors=remount-ro /dev/mapper/weak "$at"
echo precious >"$at/file"
sync

table "0 $sectors error"
uncache
refused cat "$at/file"
read_only() { mkdir "$at/at-$(date +%N)" 2>&1 | grep 'Read-only file system'; } # once the journal could not be written
within 60 read_only

umount "$at"
table "0 $sectors linear $device 0"
mount /dev/mapper/weak "$at"
same "$(cat "$at/file")" precious 'the file once the disk is well again'
