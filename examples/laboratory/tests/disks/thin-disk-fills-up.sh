#!/bin/sh
# A thin disk has no room left although the file system has: writing fails, and goes on when room is made.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q -O ^has_journal -E nodiscard,lazy_itable_init=0 "$(disk data0)"
mount -o errors=continue "$(disk data0)" /srv
sync
lab data0 capacity 48MiB
refused dd if=/dev/urandom of=/srv/big bs=1M count=96 conv=fsync
rm /srv/big
lab data0 capacity none
head -c 64M /dev/urandom >/srv/big
sync /srv/big
