#!/bin/sh
# What is deleted is given back by fstrim, and a thin disk has room again.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q "$(disk data0)"
mount "$(disk data0)" /srv
head -c 32M /dev/urandom >/srv/file
sync
rm /srv/file
sync
lab data0 mark trim
fstrim /srv
[ "$(count data0 discards trim)" -ge 1 ] || fail 'nothing was discarded'
