# shellcheck shell=bash
# A machine that is kept as it is in the middle of a test, and goes back there.

# fixtures: debian-bookworm
test_goes_back() {
    cat >ws/t.sh <<'TEST'
set -e
disk=/dev/disk/by-id/virtio-data0 boot=$(cat /proc/sys/kernel/random/boot_id)
echo "at '${BELLJAR_REBOOT_MARK-}', number $BELLJAR_REBOOT_COUNT"
[ ! -e /run/boot ] || echo "the boot is $([ "$(cat /run/boot)" = "$boot" ] && echo one || echo another)"
case ${BELLJAR_REBOOT_MARK-} in
"")
    udevadm settle
    mkfs.ext4 -q "$disk"; mount "$disk" /media
    echo synced >/media/synced; sync; echo cached >/media/cached; echo root >/root/file; echo "$boot" >/run/boot
    systemd-run -q --unit=keeper sleep 10000
    echo "of the host" >"$BELLJAR_OUT/result"
    belljar-ctl snapshot ready begin; exit 9 ;;
begin)
    cat /media/synced /media/cached /root/file "$BELLJAR_OUT/result"
    systemctl -q is-active keeper
    echo other >/media/synced; rm /root/file; sync; systemctl stop keeper
    belljar-ctl snapshot later second; exit 9 ;;
second)
    # It dies, and comes back whole.
    belljar-ctl disk data0 error
    if sync -f /media || ls -R /media/lost+found >/dev/null; then echo "no error"; exit 9; fi
    belljar-ctl return ready third; exit 9 ;;
third)
    [ "$(cat "$BELLJAR_OUT/result")" = "of the host" ]; echo changed >"$BELLJAR_OUT/result"
    belljar-ctl disk data0 heal
    cat /media/synced /media/cached /root/file
    systemctl -q is-active keeper && echo "keeper is back"
    belljar-ctl return later fourth; exit 9 ;;
fourth)
    cat /media/synced
    [ ! -e /root/file ]; if systemctl -q is-active keeper; then exit 9; fi
    belljar-ctl return ready fifth; exit 9 ;;
fifth)
    # What was not flushed then is not there either after a cut.
    belljar-ctl power-cut sixth; exit 9 ;;
sixth)
    udevadm settle; mount "$disk" /media; cat /media/synced
    belljar-ctl return ready last; exit 9 ;;
last)
    cat /media/cached "$BELLJAR_OUT/result"
    if belljar-ctl return never x; then exit 9; fi
    echo well ;;
esac
TEST
    bj -v --image "$(fixture debian-bookworm)" --guard io-error=warn --disk size=64M,serial=data0,lab -- sh ./t.sh
    want_code 0
    want_out "at '', number 0
at 'begin', number 1
the boot is one
synced
cached
root
of the host
at 'second', number 2
the boot is one
fault 1
at 'third', number 3
the boot is one
healed 1
synced
cached
root
keeper is back
at 'fourth', number 4
the boot is one
other
at 'fifth', number 5
the boot is one
at 'sixth', number 6
synced
at 'last', number 7
the boot is one
cached
changed
well"
    want_err 'machine: snapshot ready begin \(it is kept, and goes on; it took '
    want_err 'machine: return ready last \(it is what it was; it took '
    want_err 'there is no snapshot never; there are later, ready'
}

# fixtures: debian-bookworm
test_wherever_it_booted() {
    cat >ws/t.sh <<'TEST'
case ${BELLJAR_REBOOT_MARK-} in
"") echo a >/root/f; echo a >/dev/shm/f; sync; belljar-ctl snapshot s two ;;
two) echo b >/root/f; echo b >/dev/shm/f; sync; belljar-ctl return s three ;;
three) cat /root/f /dev/shm/f; belljar-ctl reset four ;;
four) cat /root/f; belljar-ctl return s five ;;
five) cat /root/f /dev/shm/f; exit 7 ;;
esac
exit 9
TEST
    for how in "--no-template --share disk" "--boot-lab --share 9p" "--disk size=16M,bus=scsi,lab --disk size=16M,bus=sata -c 2"; do
        # shellcheck disable=SC2086
        bj --image "$(fixture debian-bookworm)" $how -- sh ./t.sh
        want_code 7
        want_out "a
a
a
a
a"
    done
}

# fixtures: debian-bookworm
test_what_cannot_be_kept() {
    bj -- sh -c 'belljar-ctl snapshot a b'
    want_code 1
    want_err "no snapshot of this guest's machine: its root is the host's own"
    cat >ws/t.sh <<'TEST'
[ -z "${BELLJAR_REBOOT_MARK-}" ] || exit 9
case $1 in
nvme | virtiofs) belljar-ctl snapshot a b ;;
plugged) belljar-ctl unplug nic && belljar-ctl snapshot a b ;;
held) mkdir -p /media/x; mount --bind "$PWD" /media/x; cd /; belljar-ctl snapshot a b ;;
esac
echo "refused $?"
exit 5
TEST
    bj --image "$(fixture debian-bookworm)" --disk size=16M,bus=nvme -- sh ./t.sh nvme
    want_code 5
    want_err 'cannot write down the state of an NVMe disk'
    bj --image "$(fixture debian-bookworm)" -- sh ./t.sh plugged
    want_code 125
    want_err 'what was changed of the machine \(.*network card.*\) would come back as it was at first'
    bj --image "$(fixture debian-bookworm)" -- sh ./t.sh held
    want_code 125
}

# What serves the shares that were mounted again belongs to the guest; the next test has what the one before left of it.
# fixtures: debian-bookworm
test_in_a_shared_guest() {
    mkdir ws/t
    cat >ws/belljar.toml <<TOML
[guests.h]
image = "$(fixture debian-bookworm)"
[[suites]]
name = "s"
tests = "t/*.sh"
guests = ["h"]
isolation = "suite"
TOML
    cat >ws/t/a.sh <<'TEST'
#!/bin/sh
case ${BELLJAR_REBOOT_MARK-} in
"") belljar-ctl snapshot s two ;;
two) echo b >/root/f; sync; belljar-ctl return s three ;;
three) [ ! -e /root/f ]; exit ;;
esac
exit 9
TEST
    cat >ws/t/b.sh <<'TEST'
#!/bin/sh
[ "$BELLJAR_REBOOT_COUNT" = 0 ] || exit 9
if belljar-ctl return s x; then exit 8; fi
[ ! -e /root/f ]
TEST
    chmod +x ws/t/*.sh
    bjt -v
    want_code 0
    want_line '2 passed'
    want_no_line 'new guest|which was killed'
}

# What was not flushed before a snapshot is not flushed by it, and a fault of flushes is none of QEMU's own.
# fixtures: debian-bookworm
test_flushes_nothing() {
    cat >ws/t.sh <<'TEST'
disk=/dev/disk/by-id/virtio-data0
case ${BELLJAR_REBOOT_MARK-} in
"")
    udevadm settle; mkfs.ext4 -q $disk; mount $disk /media; sync; echo unsynced >/media/f
    belljar-ctl disk data0 mark m; belljar-ctl disk data0 error flush times=1 >/dev/null
    setsid sleep 1000 >/dev/null 2>&1 &
    belljar-ctl snapshot s one ;;
one)
    belljar-ctl disk data0 counts m | grep flushes; belljar-ctl disk data0 heal
    cat /media/f; belljar-ctl disk data0 cut strict >/dev/null; umount /media; belljar-ctl disk data0 on
    mount $disk /media; ls /media; belljar-ctl return s two ;;
two) cat /media/f; exit 3 ;;
esac
exit 9
TEST
    bj --image "$(fixture debian-bookworm)" --guard io-error=warn --disk size=64M,serial=data0,lab -- sh ./t.sh
    want_code 3
    want_out 'flushes 0' 'healed 1' unsynced lost+found unsynced
    bj --image "$(fixture debian-bookworm)" --disk size=64M,serial=data0,lab -- sh -c 'belljar-ctl disk data0 hang write; belljar-ctl snapshot a b'
    want_code 125
    want_err 'requests to the disk hang by order; heal that before'
}
