#!/bin/sh
# Disk quota: a user gets so much and not more, whatever room there is, and others are not affected.
# belljar: requires = ["mkfs.xfs", "xfs_quota", "setpriv"]
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d)
mkfs.xfs -q "$device"
mount -o uquota "$device" "$at"
chmod 1777 "$at"
xfs_quota -x -c 'limit bhard=2m 4711' "$at"
as() { user=$1; shift; setpriv --reuid="$user" --regid=4711 --clear-groups "$@"; }

as 4711 dd if=/dev/zero of="$at/one" bs=1M count=1 conv=fsync
refused as 4711 dd if=/dev/zero of="$at/two" bs=1M count=2 conv=fsync
as 4712 dd if=/dev/zero of="$at/other" bs=1M count=3 conv=fsync
rm "$at/one" "$at/two"
as 4711 dd if=/dev/zero of="$at/three" bs=1M count=2 conv=fsync
