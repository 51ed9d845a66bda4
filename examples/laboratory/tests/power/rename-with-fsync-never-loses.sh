#!/bin/sh
# A program that syncs the new file before it renames it has the old content or the new one, whenever the power of the disk is cut: over a hundred seeds.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$(disk data0)" 16M
start() { mount -o noauto_da_alloc,commit=1 "$(disk data0)" /srv; }
for seed in $(seq 100); do
    start
    echo "old $seed" >/srv/file; sync /srv/file
    echo "new $seed" >/srv/new; sync /srv/new
    mv /srv/new /srv/file
    # Somebody else's; the cut comes in the middle of it, or behind it.
    (echo "$seed" >/srv/other; sync /srv/other) & other=$!
    [ $((seed % 2)) = 0 ] || wait $other
    lab data0 cut "seed=$seed" >/dev/null
    wait $other || :
    umount /srv
    lab data0 on
    start
    case $(cat /srv/file) in "old $seed" | "new $seed") ;; *) fail "seed $seed: '$(cat /srv/file)'" ;; esac
    umount /srv
done
