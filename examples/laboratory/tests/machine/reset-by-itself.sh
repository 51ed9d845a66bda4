#!/bin/sh
# The test resets its machine without a word to anybody: what was synced is there.
. "$(dirname "$0")/../lib.sh"
if once ''; then
    echo precious >/var/lib/file
    sync
    belljar-ctl reboot-prepare again
    echo b >/proc/sysrq-trigger
    sleep 600
fi
same "$(cat /var/lib/file)" precious 'what was synced'
