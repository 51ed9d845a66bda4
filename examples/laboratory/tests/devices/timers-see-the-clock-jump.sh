#!/bin/sh
# Somebody sets the clock: a timer of the wall clock is due at once, one that counts the time is not.
. "$(dirname "$0")/../lib.sh"
systemd-run -q --on-calendar="$(date -d '+30 min' '+%Y-%m-%d %H:%M:%S')" --timer-property=AccuracySec=1s touch /run/wall
systemd-run -q --on-active=30min --timer-property=AccuracySec=1s touch /run/elapsed
belljar-ctl clock +1h
within 60 [ -e /run/wall ]
[ ! -e /run/elapsed ] || fail 'half an hour has not passed'
# And back: what was done does not happen twice.
rm /run/wall
belljar-ctl clock -1h
sleep 3
[ ! -e /run/wall ] || fail 'the timer went off twice'
