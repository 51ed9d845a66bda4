#!/bin/sh
# ext4 under load, its disk's power cut at some moment by many seeds, with torn and lost writes among them: the journal makes it whole each time.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$(disk data0)" 64M
for seed in $(seq 20); do
    mount -o commit=1 "$(disk data0)" /srv
    (i=0; while :; do i=$((i + 1)); mkdir -p "/srv/d$((i % 7))"; head -c 20k /dev/urandom >"/srv/d$((i % 7))/f$((i % 50))"; done) 2>/dev/null & load=$!
    sleep "0.$((seed % 10 + 1))"
    sync -f /srv/. & sync=$!
    lab data0 cut "seed=$seed" >/dev/null
    kill $load
    wait $load $sync || :
    # Its last program may still have a file open.
    within 20 umount /srv
    lab data0 on
    # It replays the journal; after that nothing is wrong.
    fsck.ext4 -p "$(disk data0)" >/dev/null || [ $? -le 1 ] || fail "seed $seed: fsck"
    fsck.ext4 -fn "$(disk data0)" || fail "seed $seed: the file system is damaged"
done
