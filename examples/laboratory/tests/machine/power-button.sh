#!/bin/sh
# The power button: systemd-logind shuts the system down, and all is on the disk when it comes up again.
. "$(dirname "$0")/../lib.sh"
if once ''; then
    head -c 4M /dev/urandom >/var/lib/data
    checksum /var/lib/data >"$BELLJAR_OUT/before"
    belljar-ctl power-button again
fi
same "$(checksum /var/lib/data)" "$(cat "$BELLJAR_OUT/before")" 'what was on the disk'
