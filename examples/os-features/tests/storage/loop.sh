#!/bin/sh
# A file as a disk: its partitions get devices, what is deleted and trimmed in there gives the file's
# blocks back, and the device grows with the file.
# belljar: requires = ["losetup", "sfdisk", "mkfs.ext4"]
. "$(dirname "$0")/../lib.sh"

file=$(mktemp) at=$(mktemp -d)
truncate -s 128M "$file"
printf 'label: gpt\nsize=16MiB\n;\n' | sfdisk --quiet "$file"
modprobe loop
loop=$(losetup --find --show --partscan "$file")
within 10 test -b "${loop}p2"
same "$(blockdev --getsize64 "${loop}p1")" $((16 << 20)) 'the size of the first partition'

mkfs.ext4 -q "${loop}p2"
mount "${loop}p2" "$at"
dd if=/dev/urandom of="$at/data" bs=1M count=64 conv=fsync
full=$(stat -c %b "$file")
rm "$at/data"
sync
fstrim -v "$at"
[ "$(stat -c %b "$file")" -lt $((full - (32 << 11))) ] || fail 'the trim gave no blocks back'
umount "$at"

truncate -s 256M "$file"
losetup --set-capacity "$loop"
same "$(blockdev --getsize64 "$loop")" $((256 << 20)) 'the size of the device'
