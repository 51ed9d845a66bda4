#!/bin/sh
# XFS after a power cut of the machine: each record that was synced is there, in its order, and the rest does no harm.
# belljar: requires = ["mkfs.xfs"]
. "$(dirname "$0")/../lib.sh"
if once ''; then
    mkfs.xfs -q "$(disk data0)"
    mount "$(disk data0)" /srv
    for n in $(seq 40); do
        echo "record $n" >>/srv/journal
        sync /srv/journal
        echo "$n" >"$BELLJAR_OUT/told" # what somebody was told is durable
    done
    for n in $(seq 200); do echo "unsynced $n" >"/srv/file$n"; done
    belljar-ctl power-cut cut seed=7
fi
mount "$(disk data0)" /srv
told=$(cat "$BELLJAR_OUT/told")
same "$told" 40 'what was told'
same "$(head -n "$told" /srv/journal)" "$(for n in $(seq "$told"); do echo "record $n"; done)" 'the journal'
