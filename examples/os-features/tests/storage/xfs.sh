#!/bin/sh
# XFS with reflinks: a copy shares its blocks with the original until one of them is written to,
# and the file system is whole afterwards.
# belljar: requires = ["mkfs.xfs"]
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d)
available() { df --output=avail -k "$at" | tail -n 1; }

mkfs.xfs -q -m reflink=1 "$device"
mount "$device" "$at"
head -c 32M /dev/urandom >"$at/original"
sync
before=$(checksum "$at/original") room=$(available)

cp --reflink=always "$at/original" "$at/copy"
sync
[ $((room - $(available))) -lt 1024 ] || fail "a copy by reflink took $((room - $(available))) KiB"

printf changed | dd of="$at/copy" conv=notrunc
umount "$at"
xfs_repair -n "$device"
mount "$device" "$at"
same "$(checksum "$at/original")" "$before" 'the original after its copy was written to'
same "$(head -c 7 "$at/copy")" changed 'the copy'
