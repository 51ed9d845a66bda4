# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Guests that booted once and are copied from then on.

# A cache of this case's own, so that it can be spoilt. What was found out about KVM is kept.
own_cache() {
    mkdir cache
    cp "$BELLJAR_CACHE_DIR"/belljar-kvm-* cache/ 2>/dev/null || :
    export BELLJAR_CACHE_DIR=$dir/cache
}
templates() { find "$BELLJAR_CACHE_DIR/templates" -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort; }
one_template() { [ "$(templates | wc -l)" = 1 ] || fail "there is not one template: $(templates)"; echo "$BELLJAR_CACHE_DIR/templates/$(templates)"; }
made() { want_line 'template: made' err; }
plugged() { want_line 'template: plugged' err; }
# Nothing has booted: a template was there, as it is or for devices to be plugged into a copy of it.
no_boot() { want_line 'template: found' err; want_no_line 'template: made' err; want_no_line 'template: none' err; }
found() { want_line 'template: found' err; }
# A guest that says who it is.
who='cat /etc/machine-id; hostname; od -An -tx1 -N16 /dev/urandom; cat /sys/class/net/*/address; date +%s'

test_the_second_run_is_a_copy() {
    own_cache
    bj -v -- sh -c 'echo out; echo err >&2; echo file >f; echo kept >$BELLJAR_OUT/k; exit 7'
    want_code 7
    made
    rm ws/f
    bj -v --out "$dir/results" -- sh -c 'cat; echo out; echo err >&2; echo file >f; echo kept >$BELLJAR_OUT/k; exit 7' </dev/null
    want_code 7
    found
    want_out out
    want_line '^err$' err
    [ "$(cat ws/f)" = file ]
    [ "$(cat results/k)" = kept ]
    bj -v --no-template -- true
    want_code 0
    want_no_line 'template:' err
    # The agent's own priority and protection are none of the command's.
    bj -- sh -c 'nice; cat /proc/self/oom_score_adj'
    want_out 0 0
    bj --user nobody -- nice
    want_out 0
    bj -v -- sh -c 'kill -9 $$'
    want_code 137
    found
    bj -v -- /no/such/program
    want_code 127
    # Another machine is another template.
    bj -v --memory 768M -- true
    made
    [ "$(templates | wc -l)" = 2 ]
}

# Two copies have nothing in common but what the guest had before; neither sees what the other writes.
apart() {
    local i now
    for i in 1 2 3; do
        now=$(date +%s)
        bj -v "$@" -- sh -c "$who"'; ls /marks /dev/shm/mark 2>/dev/null; mkdir -p /marks; echo mine >/marks/mine; echo mine >/dev/shm/mark; sync'
        want_code 0
        mv out "who$i"
        [ "$i" = 1 ] || found
        local at; at=$(tail -n 1 "who$i")
        [ "$at" -ge "$now" ] && [ "$at" -le "$(date +%s)" ] || fail "the clock says $at and not $now; or something was seen of another guest"
    done
    python3 - who1 who2 who3 <<'PY' || fail "two guests have something in common: $(cat who1 who2 who3)"
import sys
seen = [open(f).read().split("\n") for f in sys.argv[1:]]
for index, name in enumerate(["machine id", "host name", "random numbers", "hardware address"]):
    values = [lines[index].strip() for lines in seen]
    assert len(set(values)) == len(values) and all(values), (name, values)
PY
}

test_copies_are_apart() { apart; }

# fixtures: debian-bookworm
test_copies_of_a_disk_image_are_apart() {
    before=$(sha256sum <"$(fixture debian-bookworm)")
    apart --image "$(fixture debian-bookworm)" --login root:belljar
    bj -v --image "$(fixture debian-bookworm)" --login root:belljar -- sh -c '
        [ "$(getent hosts "$(hostname)" | wc -l)" != 0 ] || echo "my name cannot be looked up"
        systemctl is-system-running; dmesg | grep -c "crng reseeded"'
    want_no_line 'cannot be looked up'
    want_line '^running$'
    found
    [ "$(sha256sum <"$(fixture debian-bookworm)")" = "$before" ] || fail 'the image has changed'
}

# fixtures: debian-bookworm
test_an_image_that_changed_is_another_guest() {
    own_cache
    qemu-img create -q -f raw data 4M
    printf one | dd of=data conv=notrunc status=none
    bj -v --disk "file=$dir/data" -- head -c 3 /dev/vda
    plugged
    [ "$(cat out)" = one ]
    bj -v --disk "file=$dir/data" -- sh -c 'head -c 3 /dev/vda; echo xxx >/dev/vda'
    found
    [ "$(cat out)" = one ]
    # In place, and the time of the last change set back.
    touch -r data time
    printf two | dd of=data conv=notrunc status=none
    touch -r time data
    bj -v --disk "file=$dir/data" -- head -c 3 /dev/vda
    plugged
    [ "$(cat out)" = two ]
}

test_a_spoilt_template_is_made_anew() {
    own_cache
    local how t
    bj -v -- true
    made
    for how in 'truncate -s 100M ram' 'truncate -s 0 ram' 'rm ram' 'rm manifest' 'truncate -s 300 manifest' 'truncate -s 1000 state' \
        'printf x | dd of=state bs=1 seek=2000 conv=notrunc status=none' 'cp -p state ram' 'rm state; ln -s /etc/passwd state' \
        'head -c 4096 /dev/urandom | dd of=ram bs=4096 seek=5000 conv=notrunc status=none'; do
        t=$(one_template)
        (cd "$t" && eval "$how")
        bj -v -- sh -c 'exit 5'
        want_code 5
        want_err 'template of this guest was removed'
        made
        echo "  after: $how"
    done
    bj -v -- true
    found
}

# fixtures: qemu-10
test_another_qemu_has_its_own() {
    own_cache
    local other; other=$(fixture qemu-10)/qemu
    bj -v -- true
    made
    want_no_line 'qemu: .*\(10\.0' err
    bj -v --qemu "$other" -- true
    want_code 0
    want_line 'qemu: .*\(10\.0' err
    made
    [ "$(templates | wc -l)" = 2 ]
    bj -v -- true
    want_code 0
    found
    bj -v --qemu "$other" -- sh -c 'exit 4'
    want_code 4
    found
}

test_removed_while_in_use() {
    own_cache
    bj -- true
    (cd ws && exec "$BELLJAR" run -- sh -c 'echo ready >ready; while [ ! -e go ]; do sleep 0.2; done; ls /usr/bin | wc -l; exit 6' >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
    until_true 120 test -e ws/ready || fail 'the guest did not come up'
    "$BELLJAR" template prune --all >pruned
    want_line '^1 removed' pruned
    [ -z "$(templates)" ]
    touch ws/go
    code=0; wait $pid || code=$?
    want_code 6
}

test_written_to_while_in_use() {
    own_cache
    bj -- true
    (cd ws && exec "$BELLJAR" run -- sh -c 'echo ready >ready; while [ ! -e go ]; do sleep 0.2; done' >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
    until_true 120 test -e ws/ready || fail 'the guest did not come up'
    # Past the end of what is used, so that the guest itself survives.
    printf x | dd of="$(one_template)/ram" bs=1 seek=$((1000 * 1048576)) conv=notrunc status=none
    touch ws/go
    code=0; wait $pid || code=$?
    want_code 125
    want_err 'template was written to'
}

test_two_makers() {
    own_cache
    local i pids=()
    for i in 1 2 3; do
        (cd ws && exec "$BELLJAR" run -v -- sh -c "exit 1$i" >"$dir/out$i" 2>"$dir/err$i" </dev/null) & pids+=($!)
    done
    for i in 1 2 3; do
        code=0; wait "${pids[$((i - 1))]}" || code=$?
        want_code "1$i"
    done
    [ "$(cat err1 err2 err3 | grep -c 'template: made')" = 1 ] || fail 'it was made more than once'
    [ "$(cat err1 err2 err3 | grep -c 'template: found')" = 2 ] || fail 'the others did not use it'
}

test_killed_while_making() {
    own_cache
    local i
    for i in 1 2 3; do
        (cd ws && exec "$BELLJAR" run -v -- true >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
        until_true 60 eval 'templates | grep -q making' || fail 'nothing is being made'
        sleep "0.$((i * 3))"
        kill -KILL $pid
        wait $pid 2>/dev/null || :
        until_true 5 no_survivors || fail "left running: $(survivors)"
    done
    bj -v -- true
    want_code 0
    case $(templates) in *making*) fail "something is left: $(templates)" ;; esac
}

test_interrupted_while_making() {
    own_cache
    (cd ws && exec "$BELLJAR" run -v -- true >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
    until_true 60 eval 'templates | grep -q making' || fail 'nothing is being made'
    kill -TERM $pid
    wait $pid || :
    # Not a moment later either.
    no_survivors || fail "left running: $(survivors)"
    [ -z "$(templates)" ] || fail "something is left: $(templates)"
}

test_a_cache_that_cannot_be_written() {
    own_cache
    echo >cache/templates
    bj -v -- sh -c 'exit 9'
    want_code 9
    want_err 'templates cannot be kept'
    rm cache/templates
    # Read-only: what is there is used, what is not boots. Mounting takes rights that not everybody has.
    bj -- true
    if unshare --mount true 2>/dev/null; then
        code=0
        unshare --mount sh -c 'mount --bind "$1/cache" "$1/cache" && mount -o remount,bind,ro "$1/cache" && cd "$1/ws" && "$2" run -v -- sh -c "exit 8"' - "$dir" "$BELLJAR" >out 2>err </dev/null || code=$?
        want_code 8
        found
        want_no_line 'of no use' err
        code=0
        unshare --mount sh -c 'mount --bind "$1/cache" "$1/cache" && mount -o remount,bind,ro "$1/cache" && cd "$1/ws" && "$2" run -v -m 512M -- sh -c "exit 8"' - "$dir" "$BELLJAR" >out 2>err </dev/null || code=$?
        want_code 8
        want_err 'templates cannot be kept'
    else
        skip_part 'a cache that is mounted read-only: no rights to mount'
    fi
}

test_no_space() {
    unshare --mount true 2>/dev/null || skip 'no rights to mount'
    own_cache
    code=0
    # shellcheck disable=SC2034 # want_code reads it
    unshare --mount sh -c 'mount -t tmpfs -o size=150M tmpfs "$1/cache" && cd "$1/ws" && exec "$2" run -v -- sh -c "exit 8"' - "$dir" "$BELLJAR" >out 2>err </dev/null || code=$?
    want_code 8
    want_err 'not enough room'
}

test_listed_made_and_pruned() {
    own_cache
    "$BELLJAR" template list >out
    want_line 'no templates yet'
    (cd ws && "$BELLJAR" template make -v 2>"$dir/err")
    made
    "$BELLJAR" template list >out
    want_line 'with a root directory'
    (cd ws && "$BELLJAR" template make -v 2>"$dir/err")
    found
    bj -v -- true
    found
    "$BELLJAR" template prune >out
    want_line '^0 removed'
    "$BELLJAR" template prune --limit 1M >out
    want_line '^1 removed'
    [ -z "$(templates)" ]
}

# copies COUNT JOBS: a suite of so many tests, each in a copy of its own: none boots, none is like another, none sees what another did.
copies() {
    local i
    mkdir ws/t
    printf '[[suites]]\nname = "s"\ntests = "t/*"\n' >ws/belljar.toml
    cat >ws/t/1 <<'SH'
#!/bin/sh
set -eu
for mark in /marks /dev/shm/mark; do
    if [ -e "$mark" ]; then echo "another was here: $mark"; exit 1; fi
    echo mine >"$mark"
done
cat /etc/machine-id
hostname
od -An -tx1 -N16 /dev/urandom
cat /sys/class/net/e*/address
date +%s
SH
    chmod +x ws/t/1
    for i in $(seq 2 "$1"); do ln ws/t/1 "ws/t/$i"; done
    bj -- true # the template
    want_code 0
    date +%s >begun
    code=0
    # shellcheck disable=SC2034 # want_code reads it
    (cd ws && exec "$BELLJAR" test -v "-j$2" --run-dir "$dir/logs" >"$dir/out" 2>"$dir/err" </dev/null) || code=$?
    tail -n 5 err
    want_code 0
    [ "$(find logs/attempts -name output.log | wc -l)" = "$1" ] || fail 'not each has its output'
    python3 - "$1" "$(cat begun)" "$(date +%s)" logs/attempts/*/try-1/output.log <<'PY' || fail 'copies have something in common'
import sys
count, begun, ended = map(int, sys.argv[1:4])
seen = [open(f).read().split("\n") for f in sys.argv[4:]]
assert len(seen) == count, len(seen)
for index, name in enumerate(["machine id", "host name", "random numbers", "hardware address"]):
    values = [lines[index].strip() for lines in seen]
    assert len(set(values)) == count and all(values), (name, sorted(values))
for lines in seen:
    assert begun <= int(lines[4]) <= ended, lines
PY
    [ "$(templates | wc -l)" = 1 ] || fail "more than one guest has booted: $(templates)"
    if grep -rl 'Linux version' logs/attempts --include=console.log; then fail 'a guest booted'; fi
}

test_a_hundred_copies() { own_cache; copies 100 "$(nproc)"; }

# Guests that differ by disks: the same names from the boot on and plugged in, and what is written stays in one guest.
# looks NAMES OPTION...: a booted guest, one that is plugged and one that is copied show these disks, and their serial numbers.
looks() {
    local names=$1 how; shift
    for how in --no-template '' ''; do
        # shellcheck disable=SC2086 # an option, or none
        bj -v $how "$@" -- sh -c 'for n in /sys/block/*; do case ${n##*/} in vd*|sd*|nvme*) printf "%s %s " "${n##*/}" "$(cat $n/size)";; esac; done; echo
            for n in vda vdb sda nvme0n1; do [ ! -b /dev/$n ] || { echo mine | dd of=/dev/$n conv=fsync 2>/dev/null; head -c 5 /dev/$n; }; done | sort -u'
        want_code 0
        want_line "^$names \$"
        [ "$how" = --no-template ] || no_boot
    done
}

test_disks_and_cards_are_plugged_in() {
    own_cache
    bj -v -- true
    made
    looks 'vda 131072 vdb 65536' --disk size=64M,serial=d0 --disk size=32M
    found
    bj -v --disk size=64M,serial=d0 --disk size=32M -- sh -c 'cat /sys/block/vda/serial; head -c 5 /dev/vda | od -An -tx1'
    want_out 'd0 00 00 00 00 00'
    # A guest's kernel looks at several SCSI disks at the same time, and names them as they come.
    looks '(sda 131072 sdb 65536|sda 65536 sdb 131072)' --disk size=64M,bus=scsi --disk size=32M,bus=scsi
    looks 'nvme0n1 131072' --disk size=64M,bus=nvme,serial=n0
    bj -v --nic none -- ls /sys/class/net
    no_boot
    want_no_line eth0
    [ "$(templates | wc -l)" = 4 ] || fail "$(templates)"
    # What is told later is no other guest.
    for option in '-w none' '--workspace-mode ro' '--workspace-mode cow' '--nic user' "--out $dir/results"; do
        # shellcheck disable=SC2086 # an option and its value
        bj -v $option -- sh -c 'exit 7'
        want_code 7
        no_boot
    done
    PATH=$PATH:/opt/venv/bin TZ=Nowhere/AtAll LANG=xx_YY bj -v -- sh -c 'echo "$PATH $TZ $LANG"'
    no_boot
    want_line ':/opt/venv/bin:/run/belljar/bin Nowhere/AtAll xx_YY$'
    [ "$(templates | wc -l)" = 4 ] || fail "$(templates)"
    "$BELLJAR" template list >out
    want_line 'with 2 disks more \(made of '
}

# fixtures: debian-bookworm
test_disks_and_cards_of_an_image() {
    local before names
    before=$(sha256sum <"$(fixture debian-bookworm)")
    image() { bj -v --image "$(fixture debian-bookworm)" --login root:belljar "$@"; }
    image -- sh -c 'ls /sys/class/net'
    want_code 0
    names=$(cat out)
    image --disk size=64M,serial=d0 --disk size=32M -- sh -c 'readlink -f /dev/disk/by-id/virtio-d0; lsblk -dno NAME,SIZE | grep ^vd; mkfs.ext4 -q /dev/vdc; mount /dev/vdc /mnt; ls /mnt'
    no_boot
    want_line '^/dev/vdb$'
    want_line '^vdb +64M$'
    want_line '^vdc +32M$'
    want_line '^lost.found$'
    image --disk size=64M,bus=scsi,serial=s0 -- sh -c 'readlink -f /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_s0'
    no_boot
    want_out /dev/sda
    image --disk size=64M,bus=nvme,serial=n0 -- sh -c 'readlink -f /dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_n0; ls /sys/class/net'
    no_boot
    # shellcheck disable=SC2086 # a line for each
    want_out /dev/nvme0n1 $names
    image --nic none -- sh -c 'ls /sys/class/net'
    no_boot
    want_out lo
    image --nic user -- sh -c 'for i in $(seq 60); do ip route | grep -q ^default && break; sleep 1; done; ip route | grep ^default; ls /sys/class/net'
    no_boot
    want_line '^default via 10.0.2.2'
    for name in $names; do want_line "^$name\$"; done
    [ "$(sha256sum <"$(fixture debian-bookworm)")" = "$before" ] || fail 'the image has changed'
}
