#!/bin/sh
# A watchdog that nobody feeds resets the machine, which comes up again.
. "$(dirname "$0")/../lib.sh"
if once ''; then
    modprobe i6300esb heartbeat=5
    within 30 [ -e /dev/watchdog ]
    belljar-ctl reboot-prepare bitten
    exec 3>/dev/watchdog # opened, and never fed
    sleep 600
fi
same "${BELLJAR_REBOOT_MARK-}" bitten 'why it is up again'
