#!/bin/sh
# The power of the machine fails, its boot disk's too: what a program had synced to the root file system is there after it, and what was only written is not.
# belljar: boot-lab = true
. "$(dirname "$0")/../lib.sh"
if once ''; then
    sync
    echo precious >/var/tmp/synced
    sync /var/tmp/synced /var/tmp
    echo fleeting >/var/tmp/unsynced
    belljar-ctl power-cut cut strict
fi
same "$(cat /var/tmp/synced)" precious 'what was synced'
[ ! -s /var/tmp/unsynced ] || fail 'what was not synced is there after all: nothing was lost'
dmesg | grep -q 'EXT4-fs.*recovery complete' || fail 'the journal was not replayed'
