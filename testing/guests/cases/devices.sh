# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Devices that a guest has where they are asked for.

# A watchdog that is not fed: a verdict of its own in a copy of a template, a restart where that was prepared, nothing where it is fed or stopped.
test_watchdog() {
    bj --watchdog i6300esb -- sh -c 'modprobe i6300esb heartbeat=2 && exec 3>/dev/watchdog && echo armed && sleep 60; echo on'
    want_code 121
    want_out armed
    want_err "the guest's watchdog bit"
    cat >ws/bites.sh <<'END'
set -e
modprobe i6300esb heartbeat=2
case ${BELLJAR_REBOOT_MARK-} in
"") belljar-ctl reboot-prepare bitten; exec 3>/dev/watchdog; sleep 60; exit 1 ;;
esac
exec 3>/dev/watchdog
for i in 1 2 3 4 5 6; do sleep 1; echo >&3; done
printf V >&3; exec 3>&-; sleep 4
echo "$BELLJAR_REBOOT_MARK $BELLJAR_REBOOT_COUNT"
END
    bj -v --watchdog i6300esb -- sh ./bites.sh
    want_code 0
    want_out 'bitten 1'
    want_err "control: machine: reboot-prepare bitten \(the guest's watchdog bit\)"
}

test_watchdogs_of_pcs() {
    bj --watchdog ib700 -- sh -c 'modprobe ib700wdt timeout=2 && exec 3>/dev/watchdog && sleep 60'
    want_code 121
    want_err "the guest's watchdog bit"
    bj --watchdog itco --machine q35 -- sh -c 'modprobe -a lpc_ich i2c_i801; modprobe iTCO_wdt heartbeat=4 && exec 3>/dev/watchdog && sleep 60'
    want_code 121
    want_err "the guest's watchdog bit"
    bj --watchdog itco -- true
    want_code 125
    want_err 'is part of the machine type q35'
}
