#!/bin/sh
# A system is prepared once, ruined in several ways, and is whole again each time.
. "$(dirname "$0")/../lib.sh"
whole() {
    systemctl -q is-active prepared || fail "after $1 the service does not run"
    same "$(cat /etc/prepared)" yes "what was prepared, after $1"
    [ -x /usr/bin/sort ] || fail "after $1 a program is missing"
}
case ${BELLJAR_REBOOT_MARK-} in
'')
    echo yes >/etc/prepared
    systemd-run -q --unit=prepared sleep 10000
    belljar-ctl snapshot prepared no-etc ;;
no-etc)
    whole 'the snapshot'
    # shellcheck disable=SC2114 # it comes back
    rm -rf /etc
    refused getent passwd root
    belljar-ctl return prepared no-programs ;;
no-programs)
    whole 'the loss of /etc'
    rm /usr/bin/sort
    systemctl stop prepared
    belljar-ctl return prepared no-space ;;
no-space)
    whole 'the loss of a program'
    fallocate -l $(($(df --output=avail -B1 / | tail -1) - (32 << 20))) /var/full
    refused dd if=/dev/zero of=/var/more bs=1M status=none
    belljar-ctl return prepared end ;;
end)
    whole 'a full disk'
    [ ! -e /var/full ] || fail 'the disk is full yet' ;;
esac
