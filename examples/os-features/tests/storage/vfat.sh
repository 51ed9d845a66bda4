#!/bin/sh
# VFAT, as on every memory card: names of either case are the same file, long names survive, and there
# is no place for links and owners.
# belljar: requires = ["mkfs.vfat"]
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d) name='a name that is longer than eight and three.text'
mkfs.vfat -F 32 "$device"
mount -t vfat "$device" "$at"

echo hello >"$at/$name"
same "$(cat "$at/A NAME THAT IS LONGER THAN EIGHT AND THREE.TEXT")" hello 'the file by its name in capitals'
refused ln -s "$name" "$at/link"
refused chown nobody "$at/$name"

umount "$at"
fsck.vfat -n "$device"
mount -t vfat "$device" "$at"
same "$(ls "$at")" "$name" 'the directory'
