# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# What guards see in real kernels, and under a real systemd.

# Two programs crash, of which one may write no core; one that somebody ends by SIGQUIT and one that is killed do not. A parent that ignores it hides nothing.
test_core_dumps() {
    crash='sh -c "kill -SEGV \$\$"; (ulimit -c 0; sh -c "kill -ABRT \$\$"); sh -c "kill -QUIT \$\$"; sh -c "kill -KILL \$\$"; true'
    bj -- sh -c "$crash"
    want_code 122
    want_line '^belljar: coredump: sh \([0-9]+, /.*, started by sh\) was killed by SIGSEGV' err
    want_line '^belljar: coredump: sh .* was killed by SIGABRT' err
    want_line 'the guard coredump fails it: .*; one more finding' err
    want_no_line 'SIGQUIT|SIGKILL' err
    bj --guard coredump=warn -- sh -c "$crash"
    want_code 0
    want_line '^belljar: coredump: .*SIGSEGV' err
    bj --guard coredump=ignore -- sh -c "$crash"
    want_code 0
    want_no_line 'coredump' err
    # The command's own end is its verdict, and no finding; many threads are one program.
    bj -- sh -c 'kill -SEGV $$'
    want_code 139
    want_no_line 'coredump' err
    bj -- python3 -c '
import os, subprocess, sys
child = "import os, threading, time; [threading.Thread(target=time.sleep, args=(60,), daemon=True).start() for _ in range(8)]; os.abort()"
print(subprocess.run([sys.executable, "-c", child]).returncode)'
    want_code 122
    want_out -6
    [ "$(grep -c '^belljar: coredump: ' err)" = 1 ] || fail 'not one finding'
}

# Who switches off what a guard goes by, or has it gone, gets no pass: nobody has looked.
test_blinded() {
    cat >ws/ignore.py <<'CODE'
import os, socket, struct
s = socket.socket(16, socket.SOCK_DGRAM, 11)
s.bind((os.getpid(), 1))
s.send(struct.pack("=IHHII", 40, 3, 0, 0, os.getpid()) + struct.pack("=IIIIHH", 1, 1, 0, 0, 4, 0) + struct.pack("=I", 2))
CODE
    bj -- sh -c 'python3 ignore.py; sh -c "kill -SEGV \$\$"; exit 0'
    want_code 122
    want_line '^belljar: coredump: what happened meanwhile was not looked at: a program has switched off' err
    # It is switched on again for the next one.
    bj -- sh -c 'sh -c "kill -SEGV \$\$"; exit 0'
    want_line '^belljar: coredump: sh .* was killed by SIGSEGV' err
    bj -- sh -c 'echo 64 >/proc/sys/kernel/tainted; umount -l /proc; exit 0'
    want_code 122
    want_line '^belljar: taint: the kernel is tainted: U' err
    bj -- sh -c 'echo 64 >/proc/sys/kernel/tainted; mount -t tmpfs none /proc/sys/kernel; exit 0'
    want_code 122
    want_line '^belljar: taint: the kernel is tainted: U' err
    # Nor does a flood of the kernel's record hide what is in it.
    bj -- sh -c 'dmesg -n 1; echo on >/proc/sys/kernel/printk_devkmsg
        exec chrt -f 99 python3 -c "
f = open(\"/dev/kmsg\", \"wb\", buffering=0)
for n in range(4000): f.write(b\"x\" * 900)
"'
    want_code 122
    want_line "messages of the guest.s kernel were overwritten before they could be read: they were not looked at" err
    # What was ordered and not waited for is done, or told.
    bj -v --display std -- sh -c 'i=0; while [ $i -lt 5 ]; do echo "screenshot many" >$BELLJAR_CTL; i=$((i + 1)); done; exit 0'
    want_code 0
    [ "$(grep -c 'control: machine: screenshot many' err)" = 5 ] || fail 'not five pictures'
}

# systemd is asked again where it executes itself anew, and a unit that failed is told; where it cannot be asked any more there is no pass.
# fixtures: debian-trixie
test_units_while_systemd_begins_anew() {
    trixie() { bj --image "$(fixture debian-trixie)" -- sh -c "$1"; }
    trixie 'systemd-run --unit=bad --wait /bin/false; systemctl daemon-reexec & exit 0'
    want_code 122
    want_line '^belljar: unit: bad.service failed' err
    trixie 'systemd-run --unit=bad --wait /bin/false; mv /run/systemd/private /run/systemd/p2; exit 0'
    want_code 122
    want_line '^belljar: unit: what happened meanwhile was not looked at: systemd does not say' err
}

# Forks go on as fast as without the guard, which a filter in the kernel sees to, and a flood of crashes is told within bounds.
test_floods() {
    forks='i=0; while [ $i -lt 300 ]; do (:); i=$((i + 1)); done'
    bj -- sh -c "$forks"
    want_code 0
    bj -- sh -c 'i=0; while [ $i -lt 120 ]; do sh -c "kill -SEGV \$\$" 2>/dev/null; i=$((i + 1)); done; true'
    want_code 122
    [ "$(grep -c '^belljar: coredump: sh (' err)" = 20 ] || fail 'not as many findings as are told'
    [ "$(grep -c '^belljar: coredump: ' err)" = 21 ] || fail 'what was not judged is no finding of its own'
    want_line 'more findings of the guard coredump were not recorded' err
    want_line '^belljar: coredump: 70 more core dumps came than can be judged: they were not looked at$' err
}

test_kernel_warns_is_tainted_and_kills() {
    # It warns where RAM ends within what is asked for.
    bj -m 400M --guard taint=ignore -- sh -c 'modprobe slram map=y,0x18000000,0x28000000; true'
    want_code 122
    want_line '^belljar: warning: WARNING: .*memremap' err
    # A warning's own flag is no further finding.
    bj -m 400M -- sh -c 'modprobe slram map=y,0x18000000,0x28000000; true'
    want_code 122
    want_no_line '^belljar: taint' err
    bj -- sh -c 'echo 64 >/proc/sys/kernel/tainted'
    want_code 122
    want_line '^belljar: taint: the kernel is tainted: U' err
    bj -m 400M -- sh -c 'tail /dev/zero; echo $?'
    want_code 122
    want_out 137
    want_line '^belljar: oom: Out of memory: Killed process [0-9]+ \(tail\)' err
    bj -- sh -c 'mount -t cgroup2 none /sys/fs/cgroup; mkdir /sys/fs/cgroup/x; echo +memory >/sys/fs/cgroup/cgroup.subtree_control; echo 20M >/sys/fs/cgroup/x/memory.max
        (sh -c "echo \$PPID" >/sys/fs/cgroup/x/cgroup.procs; exec tail /dev/zero); echo $?'
    want_code 122
    want_out 137
    want_line '^belljar: oom: Memory cgroup out of memory: Killed process' err
}

test_errors_of_disks() {
    # Nobody ordered it.
    bj -- sh -c 'modprobe dm-mod; dmsetup create bad --table "0 8192 error"; dd if=/dev/dm-0 of=/dev/null count=1 2>/dev/null || echo failed'
    want_code 122
    want_out failed
    want_line '^belljar: io-error: Buffer I/O error on dev dm-0' err
    # Somebody did.
    bj -v --disk size=64M,serial=data0,lab -- sh -c 'belljar-ctl disk data0 error; dd if=/dev/vda of=/dev/null count=1 2>/dev/null || echo failed'
    want_code 0
    want_line '^failed$'
    want_line 'I/O error.*vda' err
    want_no_line '^belljar: io-error' err
}

# errors_of BUS ID_PREFIX DISK_OPTIONS: what is excused is what comes of the disk that was told to fail, on it and above it; what comes of another one is not.
errors_of() {
    local bus=$1 id=/dev/disk/by-id/$2 tools
    tools=$(fixture debian-bookworm-tools)
    cat >ws/errors.sh <<'SH'
PATH=$PATH:/usr/sbin:/sbin
id=$1 what=$2
at=0; while [ ! -e "$id"data1 ] && [ $at -lt 100 ]; do at=$((at + 1)); sleep 0.2; done
size=$(blockdev --getsz "$id"data1)
# All but the first of its sectors fail, of which the disk knows nothing.
above() { printf '%s\n' "0 8 linear $id$1 0" "8 $((size - 8)) error" | dmsetup create "above-$1"; }
reads() { dd if="$1" of=/dev/null bs=4096 skip=4 count=1 2>/dev/null && echo "$1 is read"; }
case $what in
    own) belljar-ctl disk data0 error read; reads "${id}data0" ;;
    above)
        echo "0 $size linear ${id}data0 0" | dmsetup create one
        mkfs.ext4 -q /dev/mapper/one; mount /dev/mapper/one /srv; truncate -s 16M /srv/image
        loop=$(losetup --find --show /srv/image); mkfs.ext4 -q "$loop"; mkdir /mnt/in; mount "$loop" /mnt/in
        belljar-ctl disk data0 error write
        (echo x >/mnt/in/f; sync) 2>/dev/null; sleep 1; echo x 2>/dev/null >/srv/f; sync
        belljar-ctl disk data0 heal ;;
    raid)
        mdadm --create /dev/md0 --run --level=0 --raid-devices=2 "${id}data0" "${id}data1" 2>/dev/null
        belljar-ctl disk data1 error read; echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/md0 of=/dev/null bs=1M count=8 skip=8 2>/dev/null && echo 'md0 is read' ;;
    gone)
        mkfs.ext4 -q "${id}data0"; mount "${id}data0" /srv
        belljar-ctl unplug disk data0 surprise || belljar-ctl unplug disk data0
        at=0; while [ -e "${id}data0" ] && [ $at -lt 100 ]; do at=$((at + 1)); sleep 0.2; done
        (echo x >/srv/f; sync) 2>/dev/null; ls /srv >/dev/null 2>&1
        # What is put in may have its name.
        belljar-ctl plug disk data0; sleep 2; sync ;;
    other) belljar-ctl disk data0 error read; reads "${id}data0"; above data1; reads /dev/mapper/above-data1 ;;
    none) belljar-ctl disk data0 counts >/dev/null; above data0; reads /dev/mapper/above-data0 ;;
esac
true
SH
    local disks=(-v --image "$tools" --login root:belljar --disk "size=64M,serial=data0,lab,bus=$bus" --disk "size=64M,serial=data1,lab,bus=$bus")
    local what
    for what in own above raid gone; do
        bj "${disks[@]}" -- sh ./errors.sh "$id" "$what"
        echo "$what: $(grep -cE 'error.*(dev|device) ' err) lines, $(grep -oE '(dev|device) [a-z0-9-]+' err | sort | uniq -c | tr '\n' ' ')"
        want_code 0
        [ "$what" = gone ] || want_line '(error,? (on )?dev|EXT4-fs error)' err
        want_no_line '^belljar: io-error' err
        want_no_line 'is read'
    done
    bj "${disks[@]}" -- sh ./errors.sh "$id" other
    want_code 122
    want_line '^belljar: io-error: .*dm-0.* \(of data1, which nobody told to fail\)' err
    want_no_line '^belljar: io-error.*(data0|as far as)' err
    bj "${disks[@]}" -- sh ./errors.sh "$id" none
    want_code 122
    want_line '^belljar: io-error: .*dm-0' err
}

# fixtures: debian-bookworm-tools
test_errors_of_one_disk_on_virtio() { errors_of virtio virtio-; }
# fixtures: debian-bookworm-tools
test_errors_of_one_disk_on_scsi() { errors_of scsi scsi-0QEMU_QEMU_HARDDISK_; }
# fixtures: debian-bookworm-tools
test_errors_of_one_disk_on_nvme() { errors_of nvme nvme-QEMU_NVMe_Ctrl_; }

# Of two paths to one disk that one's errors are excused that was told to fail.
test_errors_of_one_path() {
    command -v dmsetup >/dev/null || skip 'dmsetup is not there'
    cat >ws/path.sh <<'SH'
modprobe sd_mod; modprobe dm-mod
at=0; while [ ! -e /sys/block/sdb ] && [ $at -lt 100 ]; do at=$((at + 1)); sleep 0.2; done
reads() { dd if=$1 bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null; }
belljar-ctl disk mp0 error path=1 >/dev/null
if reads /dev/sda; then good=sda; ! reads /dev/sdb || exit 3; else good=sdb; reads /dev/sdb || exit 3; fi
case $1 in
    good) echo "0 64 linear /dev/$good 0
64 64 error" | dmsetup create above; dd if=/dev/dm-0 bs=4096 skip=8 count=1 of=/dev/null 2>/dev/null ;;
esac
true
SH
    local disk=(-v --disk "size=64M,bus=scsi,serial=mp0,wwn=0x5000c500a1b2c3d4,paths=2,lab")
    bj "${disk[@]}" -- sh ./path.sh bad
    want_code 0
    want_line 'I/O error, dev sd' err
    bj "${disk[@]}" -- sh ./path.sh good
    want_code 122
    want_line '^belljar: io-error: .*dm-0.* \(of mp0 by path 0, which nobody told to fail\)' err
    want_no_line '^belljar: io-error.*dev sd' err
}

# What was there before is nobody's finding, and each test in a shared guest has its own.
test_tests_that_share_a_guest() {
    mkdir ws/t
    cat >ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*"
isolation = "suite"
setup = "setup"
guards.allow = [{ guard = "taint", match = "(a program asked*)", reason = "for this test" }]
TOML
    printf '#!/bin/sh\necho 1024 >/proc/sys/kernel/tainted; sh -c "kill -SEGV \\$\\$"; true\n' >ws/setup
    printf '#!/bin/sh\ntrue\n' >ws/t/1-clean
    printf '#!/bin/sh\necho 64 >/proc/sys/kernel/tainted\n' >ws/t/2-allowed
    printf '#!/bin/sh\necho 4096 >/proc/sys/kernel/tainted; sh -c "kill -SEGV \\$\\$"; true\n' >ws/t/3-trips
    cp ws/t/1-clean ws/t/4-clean
    printf '#!/bin/sh\n# belljar: guards = { coredump = "warn" }\nsh -c "kill -SEGV \\$\\$"; true\n' >ws/t/5-warns
    printf '#!/bin/sh\nsh -c "kill -SEGV \\$\\$"; exit 3\n' >ws/t/6-fails
    chmod +x ws/setup ws/t/*
    bjt -v --junit ../junit.xml
    want_code 100
    for test in 1-clean 2-allowed 4-clean 5-warns; do want_line "PASS .*$test"; done
    want_line 'FAIL .*3-trips.*(coredump|taint)'
    want_line 'FAIL .*6-fails.*exit code 3'
    want_line 'taint s/2-allowed@host: .*\(allowed: for this test\)'
    want_line 'coredump s/5-warns'
    want_line 'the guard (coredump|taint) fails it' junit.xml
}

# systemd's units, and a daemon that systemd has started. What failed before the command is no finding, and what fails again is one.
# fixtures: debian-bookworm
test_units() {
    local debian=(--image "$(fixture debian-bookworm)" --login root:belljar)
    bj "${debian[@]}" -- true
    want_code 0
    bj "${debian[@]}" -- sh -c 'systemd-run --wait --unit=boom sh -c "exit 3"; true'
    want_code 122
    want_line '^belljar: unit: boom.service failed \(exit-code\)$' err
    mkdir ws/t
    cat >ws/belljar.toml <<TOML
[guests.debian]
image = "$(fixture debian-bookworm)"
login = { user = "root", password = "belljar" }
[[suites]]
name = "s"
tests = "t/*"
isolation = "suite"
setup = "setup"
TOML
    printf '#!/bin/sh\nprintf "[Service]\\nExecStart=/bin/sh -c \\"exit 3\\"\\n" >/etc/systemd/system/boom.service; systemctl daemon-reload; systemctl start boom; sleep 1; systemctl is-failed boom\n' >ws/setup
    printf '#!/bin/sh\nsystemctl is-failed boom\n' >ws/t/1-was-before
    printf '#!/bin/sh\nsystemctl start boom; sleep 1; true\n' >ws/t/2-again
    printf '#!/bin/sh\nkill -SEGV $(systemctl show -p MainPID --value systemd-udevd); sleep 2; systemctl is-active systemd-udevd\n' >ws/t/3-daemon
    chmod +x ws/setup ws/t/*
    bjt -v
    want_code 100
    want_line 'PASS .*1-was-before'
    want_line 'FAIL .*2-again.*the guard unit fails it: boom.service failed'
    want_line 'FAIL .*3-daemon.*the guard coredump fails it: .*started by systemd'
}

# Belljar's own doing in a guest is held against no test: shares, plugging, reboots.
test_nothing_trips_by_itself() {
    bj -v --disk size=64M,serial=d0 --disk size=64M,serial=d1,bus=nvme -- sh -c 'case ${BELLJAR_REBOOT_COUNT} in 0) belljar-ctl reboot x ;; esac; ls /mnt/hostos >/dev/null'
    want_code 0
    want_no_line '^belljar: (coredump|warning|taint|unit|oom|io-error)|guards saw' err
}
