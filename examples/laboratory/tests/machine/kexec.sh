#!/bin/sh
# Another kernel is started in the place of the one that runs: services are stopped in order, and it has the words that it was to have.
. "$(dirname "$0")/../lib.sh"
if once ''; then
    cat /proc/sys/kernel/random/boot_id >/var/lib/before
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\nExecStop=sh -c "echo stopped >/var/lib/stopped"\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/tell.service
    systemctl daemon-reload
    systemctl enable --now tell
    belljar-ctl kexec again append=laboratory.kexec=1
fi
[ "$(cat /proc/sys/kernel/random/boot_id)" != "$(cat /var/lib/before)" ] || fail 'no other kernel was started'
grep -qw laboratory.kexec=1 /proc/cmdline || fail 'it has other words'
same "$(cat /var/lib/stopped)" stopped 'what the service did at its end'
systemctl is-active tell
