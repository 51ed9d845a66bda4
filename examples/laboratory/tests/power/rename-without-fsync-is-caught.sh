#!/bin/sh
# A program that renames a new file over an old one without fsync loses data when the power of the disk is cut: over a hundred seeds that is seen.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$(disk data0)" 16M
# Else ext4 mends the program's fault.
start() { mount -o noauto_da_alloc,commit=1 "$(disk data0)" /srv; }
start
echo old >/srv/file
sync
umount /srv
lost=0
for seed in $(seq 100); do
    start
    echo "old $seed" >/srv/file; sync /srv/file
    echo "new $seed" >/srv/new
    mv /srv/new /srv/file
    # What somebody else syncs brings the rename to the disk, and not what is in the file.
    echo "$seed" >/srv/other; sync /srv/other
    lab data0 cut "seed=$seed" >/dev/null
    umount /srv
    lab data0 on
    start
    case $(cat /srv/file) in "old $seed" | "new $seed") ;; *) lost=$((lost + 1)) ;; esac
    umount /srv
done
echo "lost $lost of 100"
[ $lost -ge 1 ] || fail 'a program without fsync never lost anything'
