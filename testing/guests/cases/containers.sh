# shellcheck shell=bash disable=SC2016,SC2154,SC2034 # what is expanded in the container, and what lib.sh knows
# Containers of the engine that this machine has.

# An engine that works, with the image belljar-case:1 (a busybox), or the reason why not.
want_engine() {
    local found busybox
    found=$("$BELLJAR" doctor 2>&1 | sed -n 's/^ok *engine *//p' | head -n 1) || :
    [ -n "$found" ] || skip "no container engine works here: $("$BELLJAR" doctor 2>&1 | grep -A1 'engine ' | tr -s ' \n' ' ' | cut -c1-200)"
    engine=${found%% *}
    echo "the engine is $found"
    busybox=$(command -v busybox) || skip 'no busybox for an image'
    mkdir -p image/bin image/etc
    cp "$busybox" image/bin/busybox
    image/bin/busybox --list | grep -vx busybox | while read -r name; do ln -sf busybox "image/bin/$name"; done
    echo 'root:x:0:0:root:/root:/bin/sh' >image/etc/passwd
    echo 'bob:x:1000:1000::/:/bin/sh' >>image/etc/passwd
    tar -C image -cf image.tar .
    # Cases that run at once share it: whose name has moved on is removed with what was made of it.
    local made
    mkdir -p "$HOME/.cache/belljar"
    made=$(cat "$busybox" image/etc/passwd | sha256sum | cut -c1-16)
    (
        flock 9
        [ "$("$engine" image inspect --format '{{index .Config.Labels "case"}}' belljar-case:1 2>/dev/null)" = "$made" ] ||
            "$engine" import --change "LABEL case=$made" image.tar belljar-case:1 >/dev/null
    ) 9>"$HOME/.cache/belljar/containers.lock"
}

# Nothing of this case is left, once the engine has had a moment.
want_no_containers() {
    for _ in $(seq 50); do
        [ -n "$("$engine" ps --all --quiet --filter label=belljar.owner)" ] || return 0
        sleep 0.1
    done
    fail "containers are left: $("$engine" ps --all --filter label=belljar.owner)"
}

test_commands() {
    want_engine
    printf 'a\nb\n' >stdin
    bj --container belljar-case:1 -v -- sh -c 'cat; id -u; pwd; echo "error" >&2; exit 7'
    want_code 7; want_out a b 0 /mnt/hostos; want_err '^error$'
    bj --container belljar-case:1 -u bob -- sh -c 'id -u; echo $HOME'
    want_code 0; want_out 1000 /
    bj --container belljar-case:1 -- sh -c 'kill -SEGV $$'
    want_code 139; want_err SIGSEGV
    bj --container belljar-case:1 -- /no/such/program
    want_code 127
    bj --container belljar-case:1 --timeout 1s -- sleep 1000
    want_code 124
    bj --container belljar-case:1 -m 64M -- sh -c 'dd if=/dev/zero of=/dev/null bs=256M count=1'
    if grep -q 'cannot limit memory' err; then skip_part 'the engine cannot limit memory'; else want_code 137; fi
    bj --container belljar-case:1 -- sh -c 'ip -o link | grep -cv LOOPBACK'
    want_out 0
    head -c 50000000 /dev/zero >stdin
    bj --container belljar-case:1 -- sh -c 'tee /dev/stderr | wc -c' 2>/dev/null
    want_line '^50000000$'
    want_no_containers
}

test_files() {
    want_engine
    echo before >ws/file
    bj --container belljar-case:1 --workspace-mode cow -- sh -c 'echo after >file; touch new; cat file'
    want_code 0; want_out after
    bj --container belljar-case:1 --workspace-mode ro -- sh -c 'echo after >file'
    want_code 1
    if [ "$(cat ws/file)" != before ] || [ -e ws/new ]; then fail 'the workspace was written to'; fi
    # What a container leaves are plain files of the user.
    bj --container belljar-case:1 -o "$dir/left" -- sh -c 'echo x >own; chown 1000 own; chmod 6755 own; ln -s /etc/shadow "$BELLJAR_OUT/link"; cp /bin/busybox "$BELLJAR_OUT/b"; chmod 4755 "$BELLJAR_OUT/b"'
    want_code 0
    [ "$(stat -c '%u %a' ws/own)" = "$(id -u) 755" ] || fail "a file of the container's: $(stat -c '%u %a' ws/own)"
    [ "$(stat -c '%u %a' left/b)" = "$(id -u) 755" ] || fail "a file of the container's: $(stat -c '%u %a' left/b)"
    [ -L left/link ] || fail 'a link is not what it was'
    bj --container belljar-case:1 --max-output 5M -- sh -c 'dd if=/dev/zero of=$BELLJAR_OUT/x bs=1M count=200; sleep 100'
    want_code 125; want_err max-output
    mkdir -p home/.ssh; echo secret >home/.ssh/id; echo plain >home/f
    code=0
    (cd home && HOME=$dir/home "$BELLJAR" run --engine "$engine" --container belljar-case:1 --workspace-mode ro -- sh -c 'cat f; cat .ssh/id') >out 2>err || code=$?
    want_code 1; want_out plain
    want_no_containers
}

test_suite() {
    want_engine
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[guests.box]
container = "belljar-case:1"
memory = "64MiB"
[[suites]]
name = "s"
tests = "t/*"
guests = ["box"]
setup = "setup"
setup-once = true
TOML
    printf '#!/bin/sh\necho made >/made\n' >ws/setup
    for number in $(seq 20); do printf '#!/bin/sh\n[ ! -e /mine ] && echo x >/mine && cat /made\n' >"ws/t/own$number"; done
    printf '#!/bin/sh\n# belljar: needs = "machine"\nexit 1\n' >ws/t/machine
    printf '#!/bin/sh\nexit 3\n' >ws/t/fails
    chmod +x ws/setup ws/t/*
    code=0
    (cd ws && "$BELLJAR" test -j 4) >out 2>err || code=$?
    cat out
    want_code 100
    want_line 'Summary .* 22 tests: 20 passed, 1 failed, 1 skipped'
    want_line 'SKIP .*s/machine@box: skipped: it needs a machine'
    want_no_containers
    "$engine" rmi --force "$("$engine" images --quiet --filter "label=belljar.cache=$BELLJAR_CACHE_DIR" | head -n 1)" >/dev/null
}

test_killed() {
    want_engine
    mark=belljar-killed-$nonce
    for moment in 0.05 0.15 0.3 0.6; do
        (cd ws && exec "$BELLJAR" run --container belljar-case:1 -- sh -c ": $mark; sleep 1000 & sleep 1000") >out 2>err &
        sleep "$moment"
        kill -9 $!
        wait $! 2>/dev/null || :
        # It may not have come as far as its agent, which then finds nobody.
        for _ in $(seq 100); do
            [ -n "$("$engine" ps --quiet --filter label=belljar.pid=$!)" ] || break
            sleep 0.1
        done
        [ -z "$("$engine" ps --quiet --filter label=belljar.pid=$!)" ] || fail "a container outlived its belljar, killed after $moment s"
        if pgrep -f "$mark" >/dev/null; then fail "processes outlived their belljar, killed after $moment s"; fi
    done
    # Also between a container's making and its start, after which podman would not know it any more.
    for number in $(seq 20); do
        (cd ws && exec "$BELLJAR" run --container belljar-case:1 -- sh -c ": $mark; sleep 1000") >out 2>err &
        sleep "0.$((number + 10))"
        kill -9 $!
        wait $! 2>/dev/null || :
    done
    # What never began is found at the next start.
    bj --container belljar-case:1 -- true
    want_code 0
    want_no_containers
    for _ in $(seq 50); do [ -n "$(strays)" ] || break; sleep 0.1; done
    [ -z "$(strays)" ] || fail "processes of containers are left, of these: $(strays | xargs)"
}

# Those who watch containers of a Belljar that is gone, whether podman knows these or not: the numbers of the latter.
strays() {
    { pgrep -fa 'conmon .* -n belljar-[0-9]+-[0-9]+-' || :; } | sed -n 's/.* -n belljar-\([0-9]*\)-.*/\1/p' |
        while read -r pid; do [ -e "/proc/$pid" ] || echo "$pid"; done
}

test_odd_images() {
    want_engine
    mkdir image/mnt; ln -s /etc image/mnt/hostos
    tar -C image -cf image.tar . && "$engine" import image.tar belljar-case:linked >/dev/null
    bj --container belljar-case:linked -- true
    want_code 125; want_err 'mnt/hostos is a link to /etc'
    [ -z "$(ls -A ws)" ] || fail "the engine made files in the workspace: $(ls -A ws)"
    bj --container belljar-case:linked --mount-at /srv/w -- pwd
    want_code 0; want_out /srv/w
    # Tests are its user's, what sets it up is root's, as a container and as a machine.
    rm image/mnt/hostos; tar -C image -cf image.tar . && "$engine" import --change 'USER bob' image.tar belljar-case:user >/dev/null
    mkdir -p ws/t
    printf '#!/bin/sh\nid -u >/set-up\n' >ws/setup
    printf '#!/bin/sh\necho "$(cat /set-up) $(id -u)"; [ "$(cat /set-up) $(id -u)" = "0 1000" ]\n' >ws/t/who
    chmod +x ws/setup ws/t/who
    {
        printf '[guests.box]\ncontainer = "belljar-case:user"\n[guests.machine]\nrootfs = "container:belljar-case:user"\n'
        printf '[[suites]]\nname = "s"\ntests = ["t/*"]\nguests = ["box", "machine"]\nsetup = "setup"\n'
    } >ws/belljar.toml
    code=0
    (cd ws && "$BELLJAR" test) >out 2>err || code=$?
    cat out
    want_code 0
    want_line 'Summary .* 2 tests: 2 passed'
    rm -r ws/t ws/setup ws/belljar.toml image/etc/passwd; mkfifo image/etc/passwd
    tar -C image -cf image.tar . && "$engine" import image.tar belljar-case:pipe >/dev/null
    begin=$SECONDS
    bj --container belljar-case:pipe -- true
    want_code 125; want_err 'stands still at a named pipe of the image'
    [ $((SECONDS - begin)) -lt 60 ] || fail "it took $((SECONDS - begin)) s"
    want_no_containers
    "$engine" rmi belljar-case:linked belljar-case:pipe belljar-case:user >/dev/null
}

# The engine of an ordinary user, who is one in the mount namespace of this case only.
test_rootless() {
    want_engine
    [ "${engine##*/}" = podman ] || skip 'only podman is tried without root'
    [ "$(id -u)" = 0 ] || skip 'all other cases are of an ordinary user then'
    command -v newuidmap >/dev/null || skip 'no newuidmap for the subordinate user IDs of podman (package uidmap)'
    local id=64123 user
    # A short path (podman 4.3 of an ordinary user waits in vain for its sockets in a long one) in which nothing above is closed to others.
    user=$(mktemp -d /var/tmp/bj.XXXXXX)
    # shellcheck disable=SC2064 # it is this directory
    trap "rm -rf '$user'" EXIT
    mkdir -p "$user/runtime" "$user/ws"
    cp "$BELLJAR" "$user/belljar"; cp image.tar "$user/"
    { cat /etc/passwd; echo "belljar-case:x:$id:$id::$user:/bin/sh"; } >passwd
    echo "belljar-case:2000000:65536" >subids
    chown -R "$id:$id" "$user"
    cat >"$user/script" <<'SH'
set -eu
cd ~/ws
trap 'podman system migrate' EXIT
podman import ~/image.tar belljar-case:1 >/dev/null 2>&1
run() { code=0; ~/belljar run --container belljar-case:1 "$@" >>~/out 2>>~/err </dev/null || code=$?; echo "code $code" >>~/out; }
echo before >file
run -- sh -c 'id -u; cat file; echo new >made; chown 1000 made; exit 3'
run --workspace-mode cow -- sh -c 'echo after >file; cat file'
run --workspace-mode ro -- sh -c 'echo after >file'
run -u bob -- sh -c "id -u"
run -o ~/left -- sh -c "echo result >\$BELLJAR_OUT/result"
run --timeout 2s -- sleep 1000
run -- sh -c 'kill -9 $$'
~/belljar run --container belljar-case:1 -- sh -c 'echo up; sleep 1000' >killed 2>&1 &
for _ in $(seq 300); do grep -q up killed && break; sleep 0.1; done
cat killed >>~/err
kill -9 $!
for _ in $(seq 100); do [ -n "$(podman ps --quiet)" ] || break; sleep 0.1; done
echo "left: $(podman ps --all --quiet)" >>~/out
cat file >>~/out
stat -c %u made ~/left/result >>~/out
SH
    code=0
    unshare --mount sh -c 'mount --make-rprivate / && mount --bind passwd /etc/passwd && mount --bind subids /etc/subuid && mount --bind subids /etc/subgid && shift &&
        exec setpriv --reuid "$0" --regid "$0" --clear-groups env -i HOME="$1" USER=belljar-case XDG_RUNTIME_DIR="$1/runtime" PATH="$PATH" sh "$1/script"' "$id" - "$user" >said 2>&1 || code=$?
    cat said "$user/out" "$user/err"
    want_code 0
    cp "$user/out" out
    want_out 0 before 'code 3' after 'code 0' 'code 1' 1000 'code 0' 'code 0' 'code 124' 'code 137' 'left: ' before "$id" "$id"
}

# An image of a Debian with systemd, belljar-case:systemd.
want_systemd_image() {
    "$engine" image inspect belljar-case:systemd >/dev/null 2>&1 && return 0
    command -v mmdebstrap >/dev/null || skip 'no mmdebstrap for an image with systemd'
    [ "$(id -u)" = 0 ] || skip 'mmdebstrap makes the image as root'
    mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus bookworm systemd.tar >mmdebstrap.log 2>&1 ||
        skip "mmdebstrap cannot make an image with systemd here: $(tail -n 1 mmdebstrap.log)"
    "$engine" import systemd.tar belljar-case:systemd >/dev/null
    rm systemd.tar
}

test_systemd() {
    want_engine
    want_systemd_image
    bj --container belljar-case:systemd --systemd -v -- sh -c 'cat /proc/1/comm; systemctl is-system-running; systemd-run --quiet --wait touch /made && ls /made; exit 3'
    ! grep -q 'no control groups' err || skip "$(grep -m 1 'no control groups' err)"
    want_code 3; want_out systemd running /made; want_err 'booted: running'
    bj --container belljar-case:1 --systemd -- true
    want_code 77; want_err 'the image has no systemd'
    bj --container belljar-case:systemd --systemd -- sh -c 'systemctl poweroff; exit 0'
    want_code 121; want_err 'the guest powered off while running'
    for signal in KILL STOP; do
        begin=$SECONDS
        bj --container belljar-case:systemd --systemd -- sh -c "kill -$signal -1; sleep 1000"
        want_code 121; want_err 'the agent was'
        [ $((SECONDS - begin)) -lt 15 ] || fail "it took $((SECONDS - begin)) s"
    done
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[guests.plain]
container = "belljar-case:systemd"
[guests.booted]
container = "belljar-case:systemd"
systemd = true
[[suites]]
name = "s"
tests = "t/*"
guests = ["plain", "booted"]
setup = "setup"
setup-once = true
[[suites]]
name = "shared"
tests = "t/*"
guests = ["booted"]
setup = "setup"
isolation = "suite"
TOML
    printf '#!/bin/sh\nset -e\nprintf "[Service]\\nExecStart=/bin/sleep 1000\\n[Install]\\nWantedBy=multi-user.target\\n" >/etc/systemd/system/mine.service\nsystemctl enable mine\n[ ! -d /run/systemd/system ] || systemctl start mine\n' >ws/setup
    printf '#!/bin/sh\n# belljar: needs = "systemd"\nsystemctl is-active mine && systemctl restart mine && systemctl is-active mine\n' >ws/t/unit
    printf '#!/bin/sh\n[ -e /etc/systemd/system/mine.service ]\n' >ws/t/file
    chmod +x ws/setup ws/t/*
    code=0
    (cd ws && "$BELLJAR" test -j 2) >out 2>err || code=$?
    cat out
    want_code 0
    want_line 'Summary .* 6 tests: 5 passed, 1 skipped'
    want_line 'SKIP .*s/unit@plain: skipped: it needs systemd'
    want_no_line 'the set-up cannot be kept'
    # What a test leaves of systemd is no other test's, and no process of the system's own is taken for it.
    rm ws/t/*
    cat >ws/belljar.toml <<'TOML'
[guests.booted]
container = "belljar-case:systemd"
systemd = true
[[suites]]
name = "shared"
tests = "t/*"
guests = ["booted"]
isolation = "suite"
TOML
    printf '#!/bin/sh\n# belljar: guards = { unit = "ignore" }\nsystemctl restart systemd-journald dbus\nsystemd-run --quiet --unit left sleep 1000; systemd-run --quiet --unit bad false; setsid sleep 1000 >/dev/null 2>&1 &\ntouch /mine\n' >ws/t/1
    printf '#!/bin/sh\nset -e\n[ -e /mine ]; [ "$(systemctl is-system-running)" = running ]; systemctl is-active systemd-journald dbus; ! systemctl is-active left\n' >ws/t/2
    printf '#!/bin/sh\nsystemctl isolate rescue.target\n' >ws/t/3
    printf '#!/bin/sh\n[ ! -e /mine ] && touch /mine && systemctl reboot\n' >ws/t/4
    printf '#!/bin/sh\n[ ! -e /mine ]\n' >ws/t/5
    chmod +x ws/t/*
    code=0
    (cd ws && "$BELLJAR" test) >out 2>err || code=$?
    cat out
    want_code 100
    want_line 'Summary .* 5 tests: 4 passed, 1 crashed'
    want_line 'note shared/2@booted: .* which were stopped: left.service, bad.service \(failed\)'
    if grep -E 'killed: .*(journal|dbus|getty|logind)' out; then fail "a process of the system's was killed"; fi
    want_line 'note shared/3@booted: the command leaves behind the system in the state maintenance'
    want_line 'CRASH .*shared/4@booted: the guest rebooted unasked'
    mark=belljar-systemd-$nonce
    for moment in 0.3 0.6 1.2 2.4; do
        (cd ws && exec "$BELLJAR" run --container belljar-case:systemd --systemd -- sh -c ": $mark; setsid sleep 1000 & sleep 1000") >out 2>err &
        sleep "$moment"
        kill -9 $!
        wait $! 2>/dev/null || :
    done
    # A container whose agent does not see that its Belljar is gone is ended at a later start.
    (cd ws && exec "$BELLJAR" run --container belljar-case:systemd --systemd -- sh -c ": $mark; kill -STOP \$PPID; sleep 1000") >out 2>err &
    sleep 2.5
    kill -9 $!
    wait $! 2>/dev/null || :
    sleep 10
    bj --container belljar-case:1 -- true
    want_code 0
    want_no_containers
    ! pgrep -f "$mark" >/dev/null || fail 'processes outlived their belljar'
    # One for each of the guests. The engine may still be at the end of a container.
    remove_kept || { sleep 2; remove_kept; }
}

remove_kept() { "$engine" images --quiet --filter "label=belljar.cache=$BELLJAR_CACHE_DIR" | xargs --no-run-if-empty "$engine" rmi --force >/dev/null; }
