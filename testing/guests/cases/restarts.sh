# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# A machine that goes down in the middle of a test and comes up again, or in which another kernel or all programs begin.

# The machine goes down in each way and comes up again with its disks, and the test goes on where it was. What was synced is there after a power cut,
# what was not is gone; faults stay.
test_restarts() {
    cat >ws/t.sh <<'TEST'
set -e
disk=/dev/vda
echo "at ${BELLJAR_REBOOT_MARK:-begin} $BELLJAR_REBOOT_COUNT up $(cut -d. -f1 /proc/uptime)"
case ${BELLJAR_REBOOT_MARK:-begin} in
begin)
    mkfs.ext4 -q $disk
    mkdir -p /tmp/m; mount $disk /tmp/m
    echo kept >/tmp/m/kept; sync /tmp/m/kept
    echo lost >/tmp/m/lost
    # Written to the disk, and not flushed.
    printf %4096s x | dd of=$disk bs=4096 seek=40000 oflag=direct
    belljar-ctl disk data0 error read at=200MiB+4KiB
    belljar-ctl power-cut cut
    echo "it lived on" ;;
cut)
    mkdir -p /tmp/m; mount $disk /tmp/m
    cat /tmp/m/kept
    [ ! -s /tmp/m/lost ]
    [ -z "$(dd if=$disk bs=4096 skip=40000 count=1 iflag=direct | tr -d '\0')" ]
    if dd if=$disk of=/dev/null bs=4096 count=1 skip=51200 iflag=direct; then exit 9; fi
    echo orderly >/tmp/m/orderly
    /tmp/autopkgtest-reboot orderly
    echo "it lived on" ;;
orderly)
    [ "$AUTOPKGTEST_REBOOT_MARK" = orderly ] && [ "$TMT_REBOOT_COUNT" = 2 ]
    mkdir -p /tmp/m; mount $disk /tmp/m
    cat /tmp/m/orderly
    # A reset leaves to the disk what the kernel has given to it.
    echo flushed >/tmp/m/reset; sync /tmp/m/reset
    belljar-ctl reset reset
    echo "it lived on" ;;
reset)
    mkdir -p /tmp/m; mount $disk /tmp/m
    cat /tmp/m/reset
    belljar-ctl reboot-prepare itself
    umount /tmp/m
    echo b >/proc/sysrq-trigger
    sleep 60 ;;
itself)
    ip link set eth0 up
    belljar-ctl link down
    sleep 1
    cat /sys/class/net/eth0/carrier
    belljar-ctl link up
    exit 7 ;;
esac
TEST
    bj -v --memory 512M --nic isolated --disk size=256M,serial=data0,lab -- sh ./t.sh
    cat out
    want_code 7
    for at in 'begin 0' 'cut 1' 'orderly 2' 'reset 3' 'itself 4'; do want_line "^at $at up [0-9]\$|^at $at up [0-9][0-9]\$"; done
    for line in kept orderly flushed 0; do want_line "^$line\$"; done
    want_no_line 'lived on'
    want_line 'control: machine: power-cut cut strict \(data0 lost [1-9][0-9]* of [0-9]+ changes that were not flushed\)' err
    want_line 'control: machine: reboot orderly \(it is up again; it took .* to go down, and .* to come up\)' err
    want_line 'control: machine: link down' err
}

# What is asked of a disk that hangs, or waits for its time, goes with the machine. A SCSI controller waits for it before QEMU says that its processors stand still.
test_restarts_whatever_hangs() {
    for bus in scsi virtio; do for how in 'hang write' 'delay read by=10min times=1'; do for down in power-cut reset; do
        echo "$bus: $how, $down"
        bj --memory 512M -w none --disk "size=64M,serial=d,bus=$bus,lab" -- sh -c '
            [ "$BELLJAR_REBOOT_COUNT" = 0 ] || exit 5
            [ $1 = virtio ] && disk=/dev/vda || disk=/dev/sda
            modprobe sd_mod; for i in $(seq 50); do [ -b $disk ] && break; sleep 0.1; done
            belljar-ctl disk d $2
            case $2 in *write*) dd if=/dev/zero of=$disk bs=64k count=8 oflag=direct & ;; *) dd if=$disk of=/dev/null bs=64k count=8 iflag=direct & ;; esac
            sleep 1; belljar-ctl $3 x; exit 3' sh "$bus" "$how" "$down"
        want_code 5
    done; done; done
}

# What is written before a restart that the test brings about is on the host, whatever carries it; a panic is none, however quiet; what hangs goes with the machine.
test_restarts_lose_nothing() {
    cat >ws/t.sh <<'TEST'
set -e
case ${BELLJAR_REBOOT_MARK-} in
"")
    echo first >$BELLJAR_OUT/first
    echo 1..1
    printf 'ok 1 - begun '
    # Somebody's line is not ended.
    printf 'mark x' >$BELLJAR_CTL
    belljar-ctl reboot-prepare itself
    echo late >$BELLJAR_OUT/late
    echo b >/proc/sysrq-trigger
    sleep 60 ;;
itself)
    echo 'not ok 1 - a'
    echo second >$BELLJAR_OUT/second
    belljar-ctl disk data0 hang write
    dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null &
    sleep 1
    belljar-ctl reset hung ;;
hung)
    if belljar-ctl power-button; then exit 1; fi
    cat /sys/class/net/eth0/address >$BELLJAR_OUT/address
    belljar-ctl link down
    belljar-ctl power-cut address ;;
address)
    belljar-ctl disk data0 heal
    cmp /sys/class/net/eth0/address $BELLJAR_OUT/address
    echo 0 >/proc/sys/kernel/printk
    echo -1 >/proc/sys/kernel/panic
    belljar-ctl reboot-prepare panic
    echo c >/proc/sysrq-trigger
    sleep 60 ;;
panic) echo "it was taken for a restart" ;;
esac
TEST
    bj -v --run-dir ../rd --share disk --disk size=64M,lab,serial=data0 -- sh ./t.sh
    want_code 121
    want_line '^ok 1 - begun $'
    want_line '^not ok 1 - a$'
    want_no_line 'it was taken for a restart'
    want_err 'what it wrote to them after that is lost'
    want_err "the network card's cable was plugged out; with the restart it is plugged in"
    want_err 'panicked while running'
    [ "$(cat rd/out/first)" = first ] && [ "$(cat rd/out/second)" = second ] || fail "results are lost"
    [ ! -e rd/out/late ] || fail "what came late is there"
}

# Somebody who reads slowly gets all that was said before a restart.
test_restart_and_a_slow_reader() {
    cat >ws/t.sh <<'TEST'
case ${BELLJAR_REBOOT_MARK-} in
"") seq 1 60000; belljar-ctl reset x ;;
*) echo again ;;
esac
TEST
    (cd ws && exec "$BELLJAR" run -- sh ./t.sh </dev/null 2>../err) | (sleep 25; cat >out)
    [ "$(grep -c . out)" = 60001 ] && [ "$(tail -n 1 out)" = again ] || fail "output is lost"
}

# On an image that boots by itself, from its template: the guest's own service manager takes it down, and what is on its boot disk stays. A reset that
# nobody has asked for is a crash.
# fixtures: debian-bookworm
test_reboot_of_an_image() {
    suite_on debian-bookworm </dev/null
    cat >ws/t/reboot.sh <<'TEST'
#!/bin/sh
# belljar: timeout = "60s"
set -e
echo "start $BELLJAR_REBOOT_COUNT"
if [ -z "${BELLJAR_REBOOT_MARK:-}" ]; then
    echo "before" >/var/tmp/f
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\nExecStop=sh -c "echo stopped >>/var/tmp/f"\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/tell.service
    systemctl daemon-reload; systemctl enable --now tell
    echo result >"$BELLJAR_OUT/first"
    belljar-ctl reboot again
fi
# What was written to the boot disk before, and by a service that was stopped in order; and what is a result.
[ "$(cat /var/tmp/f)" = "$(printf 'before\nstopped')" ]
systemctl is-active tell
[ "$(cat "$BELLJAR_OUT/first")" = result ]
TEST
    cat >ws/t/unasked.sh <<'TEST'
#!/bin/sh
echo b >/proc/sysrq-trigger
sleep 60
TEST
    chmod +x ws/t/*.sh
    bjt -v -j1
    want_code 100
    # It took longer than its timeout, by the time that the machine was down.
    want_line 'PASS \[.*s/reboot.sh@h'
    want_line 'CRASH \[.*s/unasked.sh@h: the guest rebooted unasked'
    want_line 'machine: reboot again \(it is up again; '
}
# Another kernel in the place of the one that runs: the test goes on, with what it wrote, its disks and its card; what cannot be loaded is refused; a
# kernel that nobody put the agent into is got into by its console; one that does not come up is a crash.
# fixtures: debian-bookworm
test_kexec() {
    suite_on debian-bookworm <<'TOML'
disks = [{ size = "64MiB", serial = "d0", lab = true }]
TOML
    cat >ws/t/kexec.sh <<'TEST'
#!/bin/sh
# belljar: timeout = "60s"
set -e
boot=$(cat /proc/sys/kernel/random/boot_id)
case ${BELLJAR_REBOOT_MARK-} in
"")
    for wrong in loaded "kernel=/etc/passwd initrd=/etc/passwd" "kernel=/nowhere initrd=/etc/passwd" kernel=/vmlinuz "a b"; do
        # shellcheck disable=SC2086
        if belljar-ctl kexec $wrong; then echo "done: $wrong"; exit 1; fi
    done
    if belljar-ctl soft-reboot; then echo "systemd 252 has none"; exit 1; fi
    if su nobody -s /bin/sh -c 'belljar-ctl kexec append=x'; then echo "nobody says which"; exit 1; fi
    echo "$boot" >/var/tmp/boot
    cat /sys/class/net/*/address >/var/tmp/address
    belljar-ctl disk d0 mark before
    echo result >"$BELLJAR_OUT/first"
    printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\nExecStop=sh -c "echo stopped >/var/tmp/stopped"\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/tell.service
    systemctl daemon-reload; systemctl enable --now tell
    belljar-ctl kexec one append=belljar.test=1 ;;
one)
    grep -w belljar.test=1 /proc/cmdline
    [ "$(cat /var/tmp/boot)" != "$boot" ]; [ "$(cat /var/tmp/stopped)" = stopped ]; [ "$(cat "$BELLJAR_OUT/first")" = result ]
    [ "$(cat /var/tmp/address)" = "$(cat /sys/class/net/*/address)" ]
    # The same server has counted what the new kernel read.
    [ "$(belljar-ctl disk d0 counts before | sed -n 's/^reads //p')" -gt 0 ]
    echo "$boot" >/var/tmp/boot
    # The agent loads it for who may not, and the agent of the kernel before is not in it twice.
    su nobody -s /bin/sh -c 'belljar-ctl kexec two' ;;
two)
    [ "$(cat /var/tmp/boot)" != "$boot" ]; [ "$(grep -o rdinit= /proc/cmdline | wc -l)" = 1 ]; [ "$BELLJAR_REBOOT_COUNT" = 2 ]
    ls "$BELLJAR_OUT"/first ;;
esac
TEST
    cat >ws/t/loaded.sh <<'TEST'
#!/bin/sh
set -e
[ "$BELLJAR_REBOOT_COUNT" = 0 ] || { ! grep rdinit /proc/cmdline; exit 0; }
perl -e 'open(K, "<", "/boot/vmlinuz-$ARGV[0]") or die; open(I, "<", "/boot/initrd.img-$ARGV[0]") or die; my $c = `cat /proc/cmdline`; chomp $c; $c .= "\0";
    my $r = syscall(320, fileno(K), fileno(I), length($c), $c, 0); die "kexec: $!" if $r != 0;' "$(uname -r)"
belljar-ctl kexec back loaded
TEST
    cat >ws/t/wrong.sh <<'TEST'
#!/bin/sh
belljar-ctl kexec x append=rdinit=/nowhere
TEST
    chmod +x ws/t/*.sh
    bjt -v
    want_code 100
    want_line 'PASS \[.*s/kexec.sh@h'
    want_line 'PASS \[.*s/loaded.sh@h'
    want_line 'CRASH \[.*s/wrong.sh@h: the guest powered off while booting'
    want_line "Belljar's program in the guest said: execute /nowhere"
    want_line 'machine: kexec two \(it is up again; '
    bj -- sh -c 'belljar-ctl kexec; echo "code $?"'
    want_line 'code 1'
    want_err 'take a guest with its system on an image|none of /boot/'
}

# All programs begin again under the same kernel: those of a test are gone, what is in /run and on the disk stays, and a root that is prepared is gone to.
# fixtures: debian-trixie
test_soft_reboot() {
    cat >ws/soft.sh <<'TEST'
set -e
boot=$(cat /proc/sys/kernel/random/boot_id)
echo "start $BELLJAR_REBOOT_COUNT"
case ${BELLJAR_REBOOT_MARK-} in
"")
    echo "$boot" >/run/boot
    echo result >"$BELLJAR_OUT/first"
    systemd-run --unit=left sleep 10000
    setsid sleep 20000 >/dev/null 2>&1 &
    belljar-ctl soft-reboot one ;;
one)
    [ "$(cat /run/boot)" = "$boot" ]; [ "$(cat "$BELLJAR_OUT/first")" = result ]
    if systemctl -q is-active left || pgrep sleep; then echo "something lives on"; exit 1; fi
    systemctl show -p SoftRebootsCount
    mkdir -p /run/nextroot /run/layer/upper /run/layer/work
    mount -t overlay -o lowerdir=/,upperdir=/run/layer/upper,workdir=/run/layer/work overlay /run/nextroot
    touch /run/nextroot/this-is-it
    belljar-ctl soft-reboot two ;;
two)
    ls /this-is-it; grep ' / ' /proc/self/mounts
    [ "$BELLJAR_REBOOT_COUNT" = 2 ] && echo well ;;
esac
TEST
    bj -v --image "$(fixture debian-trixie)" -- sh ./soft.sh
    want_code 0
    want_line '^SoftRebootsCount=1'
    want_line '^overlay / overlay'
    want_line '^well'
    want_err 'machine: soft-reboot two \(it is up again; '
}
