# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# What the guest says of itself: results that only their own test can give, faults of its kernel, and its death.

# suite TEXT: the workspace ws has this configuration of a suite of all files in t; the guest is the host's userland.
suite() {
    mkdir -p ws/t
    printf '[guests.g]\nmemory = "512MiB"\n\n[[suites]]\nname = "s"\ntests = ["t/*"]\nguests = ["g"]\n%s\n' "$1" >ws/belljar.toml
}
unit() { printf '#!/bin/sh\n%s\n' "$2" >"ws/t/$1"; chmod +x "ws/t/$1"; }
# of_unit UNIT KIND FIELD: this field of its events of this kind, one a line.
of_unit() {
    python3 - "$@" <<'P'
import glob, json, sys
unit, kind, field = sys.argv[1:]
for pattern in "state/runs/*/events.jsonl", "state/*/runs/*/events.jsonl":
    for file in glob.glob(pattern):
        for line in open(file):
            event = json.loads(line)
            if event.get("kind") == kind and event["unit"] == f"s/{unit}@g":
                print(event[field])
P
}
verdict() { of_unit "$1" unit-ended verdict; }
marks() { of_unit "$1" mark text; }
consoles() { find state -name console.log -exec cat {} +; }

test_a_neighbour_cannot_pass_for_the_next() {
    suite 'isolation = "suite"'
    cp "$top/testing/guests/forger.py" ws/forger.py
    unit 1-leaves-a-forger 'python3 forger.py; until grep -q forger /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.1; done; sleep 2'
    unit 2-fails 'sleep 3; exit 1'
    unit 3-looks 'for p in /proc/[0-9]*; do if tr "\0" " " <$p/cmdline 2>/dev/null | grep -q "[f]orger.py"; then exit 1; fi; done'
    bjt
    want_code 100
    # The attack is a real one: it had the port. It only came to nothing.
    consoles | grep -q 'forger: has the port: True' || fail 'the forger did not get the port, so this shows nothing'
    [ "$(verdict 2-fails)" = fail ] || fail "the result of the second test is $(verdict 2-fails)"
    [ "$(verdict 3-looks)" = pass ] || fail 'the forger is still there'
    grep -rq 'which was killed: python3' state || fail 'nobody says that something was left behind'
}

test_marks_belong_to_the_test_that_set_them() {
    suite 'isolation = "suite"'
    # The first leaves somebody behind who goes on with it.
    unit 1-marks 'echo "mark one" >$BELLJAR_CTL; (while :; do echo mark late; sleep 0.1; done >$BELLJAR_CTL) & echo "mark two" >$BELLJAR_CTL; exit 0'
    unit 2-marks 'sleep 1; echo "mark three" >$BELLJAR_CTL; su -s /bin/sh nobody -c "echo mark as nobody >/run/belljar/control"; unshare -n sh -c "echo mark in a namespace >$BELLJAR_CTL"'
    unit 3-fills 'i=0; while [ $i -lt 1500 ]; do echo "mark $i"; i=$((i+1)); done >$BELLJAR_CTL'
    bjt -v
    want_code 0
    diff <(marks 1-marks | grep -v '^late$') <(printf '%s\n' one two) || fail 'other marks of the first test are wanted (>)'
    diff <(marks 2-marks) <(printf '%s\n' three 'as nobody' 'in a namespace') || fail 'other marks of the second test are wanted (>)'
    [ "$(marks 3-fills | sort -n | uniq | wc -l)" = 1000 ] || fail "the third test has $(marks 3-fills | wc -l) marks"
    want_line 'mark s/2-marks@g: three$'
    want_line 'more than 1000 marks'
}

test_what_is_left_behind_is_ended_and_daemons_of_the_set_up_live() {
    suite 'isolation = "suite"
setup = "setup.sh"'
    printf '#!/bin/sh\nsetsid sh -c "sleep 100000 & exec sleep 100001" >/dev/null 2>&1 </dev/null &\nsleep 0.5\n' >ws/setup.sh
    chmod +x ws/setup.sh
    unit 1-leaves 'setsid sleep 200000 >/dev/null 2>&1 & (setsid setsid sh -c "trap : TERM HUP; while :; do sleep 200001; done" &) ; unshare -pf --mount-proc sleep 200002 & sleep 1; exit 0'
    unit 2-looks 'ps ax | grep "[s]leep 20000" && exit 1; ps ax | grep -c "[s]leep 10000" | grep -qx 2'
    bjt
    want_code 0
    # What cannot be ended: the next test gets another guest.
    rm -r ws/t state
    unit 1-mounts 'mount -t tmpfs tmpfs /tmp; exit 0' || true
    mkdir -p ws/t; unit 1-mounts 'mount -t tmpfs tmpfs /tmp; exit 0'; unit 2-next 'touch /tmp/x; exit 0'
    bjt
    want_code 0
    grep -rq 'a new guest is taken.*/tmp' state || fail 'nobody says why there is a new guest'
}

test_a_unit_that_unmounts_the_workspace() {
    suite 'isolation = "suite"
workspace-mode = "ro"'
    unit 1-unmounts 'cd /; umount -l /mnt/hostos'
    unit 2-next 'test -e belljar.toml'
    unit 3-over 'mount -t tmpfs tmpfs /mnt/hostos'
    unit 4-last 'test -e belljar.toml'
    bjt
    [ "$(verdict 2-next) $(verdict 4-last)" = 'pass pass' ] || fail "the next ones: $(verdict 2-next) $(verdict 4-last)"
    grep -rq 'a new guest is taken.*/mnt/hostos (unmounted' state || fail 'nobody says why there is a new guest'
}

test_a_unit_that_mounts_over_what_others_use() {
    suite 'isolation = "suite"
setup = "setup.sh"'
    printf '#!/bin/sh\nmkdir -p /srv/kept; mount -t tmpfs tmpfs /srv/kept\n' >ws/setup.sh
    chmod +x ws/setup.sh
    # Each second one of a pair would pass if it saw what the first one did.
    unit 1-a 'mount --bind /bin/true /bin/bash; mount --bind /bin/true /bin/sh'
    unit 1-b 'exit 1'
    unit 2-a 'mount --bind /bin/true "$BELLJAR_WORKSPACE/t/2-b"'
    unit 2-b 'exit 1'
    unit 3-a 'mount -t tmpfs tmpfs /usr'
    unit 3-b 'exit 1'
    unit 4-a 'umount /srv/kept'
    unit 4-b 'if mountpoint /srv/kept; then exit 1; fi'
    # In its own places a mount is nobody's concern.
    unit 5-a 'mkdir -p /mnt/mine; mount -t tmpfs tmpfs /mnt/mine'
    unit 5-b 'mountpoint /mnt/mine || exit 1'
    bjt
    for pair in 1 2 3 4; do
        [ "$(verdict $pair-a) $(verdict $pair-b)" = 'pass fail' ] || fail "pair $pair: $(verdict $pair-a) $(verdict $pair-b)"
    done
    [ "$(verdict 5-b)" = pass ] || fail "a mount in /mnt: $(verdict 5-b)"
}

test_what_is_written_under_a_mount_is_told() {
    bj -- sh -c 'mkdir "$BELLJAR_OUT/d"; mount -t tmpfs tmpfs "$BELLJAR_OUT/d"; echo result >"$BELLJAR_OUT/d/f"'
    want_code 125
    want_err 'left something mounted in its output directory.*/run/belljar/out/d'
    # Also where nobody can look any more.
    bj -- sh -c ': >"$BELLJAR_OUT/f"; mount --bind /etc/hostname "$BELLJAR_OUT/f"; umount -l /proc'
    want_code 125
    bj -- sh -c 'mkdir d; mount -t tmpfs tmpfs d; echo result >d/f'
    want_code 0
    want_err 'left something mounted in the workspace.*/mnt/hostos/d'
    bj -- sh -c 'mkdir -p d; mount -t tmpfs tmpfs d; umount d'
    want_code 0
    if grep -q 'left something mounted' err; then fail 'what was unmounted is told of'; fi
}

test_an_output_directory_that_is_moved() {
    bj --out results -- sh -c 'echo x >"$BELLJAR_OUT/f"; mv results aside; mkdir results'
    want_code 125
    want_err 'is in .*/ws/aside'
    [ "$(cat ws/aside/f)" = x ] || fail 'the result is not where it is said to be'
    bj --out results -- sh -c 'rm -r results; ln -s /etc results'
    want_code 125
    want_err 'is lost'
}

test_unmounting_everything_is_told() {
    bj -- sh -c 'echo >f; umount -a -l; exit 0'
    want_code 125
    want_err 'changed what is mounted'
    want_err '/mnt/hostos .unmounted'
    want_no_line 'disk full' err
}

# hung NAME TEXT: a task that hangs for 2 s in the kernel, on an extra disk, after TEXT; it is seen whatever TEXT does.
hung() {
    bj --memory 768MiB --disk size=64M --timeout 240s -- sh -c "
        disk=\$(ls /dev/vd? | tail -n 1); mkfs.ext4 -q \$disk && mkdir -p /tmp/d && mount \$disk /tmp/d || exit 99
        sysctl -q kernel.hung_task_timeout_secs=2 || exit 98
        $2
        fsfreeze -f /tmp/d; (echo x >/tmp/d/x) & sleep 30; fsfreeze -u /tmp/d; exit 0"
    want_code 121
    want_err 'blocked for more than'
}
test_a_fault_that_the_console_does_not_show() { hung dmesg 'dmesg -n 1'; }
test_a_fault_after_printk() { hung printk 'sysctl -q kernel.printk="3 4 1 3"'; }
test_a_fault_in_an_escape_sequence() { hung escape 'dmesg -C; printf "\033]0;" >/dev/console'; }
test_a_fault_in_a_long_line() { hung long 'head -c 5000 /dev/zero | tr "\0" x >/dev/console'; }

test_words_are_no_fault() {
    bj -- sh -c 'echo "BUG: only my own words" >/dev/console; echo "[   12.345678] BUG: only my own words" >/dev/console
        echo "BUG: only my own words" >/dev/kmsg; echo "<0>Oops: 0002 [#1] SMP" >/dev/kmsg
        echo "[   99.123456] reboot: System halted" >/dev/console; sleep 1; exit 0'
    want_code 0
    want_err "no message of the kernel's"
}

test_a_panic_is_one() {
    bj -- sh -c 'echo c >/proc/sysrq-trigger; sleep 60'
    want_code 121
    want_err 'panic'
}

test_a_halted_guest() {
    bj --timeout 200s -- python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0xcdef0123)'
    want_code 121
    want_err 'halt'
}

test_a_driver_that_is_unbound() {
    bj --timeout 200s -- sh -c 'cd /sys/bus/virtio/drivers/virtio_console && for d in virtio*; do echo $d >unbind; done; sleep 100'
    want_code 121
    want_err "agent's port was closed"
}

# fixtures: debian-bookworm
test_an_agent_that_is_killed() {
    bj --image "$(fixture debian-bookworm)" --login root:belljar --timeout 200s -- sh -c 'kill -9 -1; sleep 100'
    want_code 121
    want_err "agent's port was closed"
}

# fixtures: debian-bookworm
test_a_guest_that_suspends_itself() {
    # Nothing of it is under way on a share while it sleeps.
    echo before >ws/file
    bj --image "$(fixture debian-bookworm)" --login root:belljar --timeout 200s -- sh -c 'cd /; (sleep 1; echo +4 >/sys/class/rtc/rtc0/wakealarm; echo mem >/sys/power/state); echo awake; cat /mnt/hostos/file; echo after >$BELLJAR_OUT/file; exit 5'
    want_err 'suspended itself'
    want_err 'woke after'
    want_code 5
    want_out awake before
    [ "$(cat state/runs/*/out/file)" = after ] || fail 'what came after is lost'
    if grep -q 'did not survive that' err; then fail 'its shares have survived'; fi
}

test_a_root_directory_that_does_not_wake_is_told() {
    bj --timeout 30s -- rtcwake -m mem -s 3
    want_code 124
    want_err 'woke after'
    want_err 'whatever uses a 9p share from now on hangs, its root'
}
