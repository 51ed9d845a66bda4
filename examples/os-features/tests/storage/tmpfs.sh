#!/bin/sh
# tmpfs: its limits to size and to number of files hold, can be raised while it is in use, and its
# memory is free again after it is gone.
. "$(dirname "$0")/../lib.sh"

at=$(mktemp -d)
mount -t tmpfs -o size=8M,nr_inodes=10 limited "$at"
refused dd if=/dev/zero of="$at/data" bs=1M count=9
same "$(stat -c %s "$at/data")" $((8 << 20)) 'what fits into it'
mount -o remount,size=16M "$at"
dd if=/dev/zero of="$at/data" bs=1M count=9

cd "$at"
touch 1 2 3 4 5 6 7 8 # beside these: the directory itself and the data
refused touch 9
cd /
umount "$at"
same "$(ls -A "$at")" '' 'what is left'
