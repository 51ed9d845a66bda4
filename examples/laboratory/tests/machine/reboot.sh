#!/bin/sh
# A reboot in the middle of a test: services are stopped in order, what is on the disk stays, and what was enabled runs.
. "$(dirname "$0")/../lib.sh"
if once ''; then
    boot_id=$(cat /proc/sys/kernel/random/boot_id)
    echo "$boot_id" >/var/lib/before
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\nExecStop=sh -c "echo stopped >/var/lib/stopped"\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/tell.service
    systemctl daemon-reload
    systemctl enable --now tell
    belljar-ctl reboot again
fi
[ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat /var/lib/before)" ] || fail 'the guest did not boot again'
same "$(cat /var/lib/stopped)" stopped 'what the service did at its end'
systemctl is-active tell
