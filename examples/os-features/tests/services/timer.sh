#!/bin/sh
# A systemd timer starts its service when the time has come, and again each time.
. "$(dirname "$0")/../lib.sh"
needs_systemd

printf '[Service]\nType=oneshot\nExecStart=/bin/sh -c "date >>/run/fired"\n' >/run/systemd/system/clock.service
printf '[Timer]\nOnActiveSec=1s\nOnUnitInactiveSec=1s\nAccuracySec=100ms\n' >/run/systemd/system/clock.timer
systemctl daemon-reload
[ ! -e /run/fired ] || fail 'it ran before it was started'
systemctl start clock.timer
within 60 sh -c '[ "$(cat /run/fired 2>/dev/null | wc -l)" -ge 3 ]'
systemctl list-timers --all clock.timer | grep clock.service

systemctl stop clock.timer
within 60 sh -c '[ "$(systemctl is-active clock.service)" = inactive ]'
fired=$(wc -l </run/fired)
sleep 3
same "$(wc -l </run/fired)" "$fired" 'runs after the timer was stopped'
