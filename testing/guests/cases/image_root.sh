# shellcheck shell=bash disable=SC2016,SC2154,SC2034 # what is expanded in the guest, and what lib.sh knows
# Container images as the roots of machines.
# shellcheck source=testing/guests/cases/containers.sh
. "$here/cases/containers.sh"

# An archive of a root with all kinds of files in it: root.tar.
make_root() {
    local busybox
    busybox=$(command -v busybox) || skip 'no busybox for an image'
    rm -rf image
    mkdir -p image/bin image/etc image/srv
    cp "$busybox" image/bin/busybox
    image/bin/busybox --list | grep -vx busybox | while read -r name; do ln -sf busybox "image/bin/$name"; done
    echo 'root:x:0:0:root:/root:/bin/sh' >image/etc/passwd
    echo 'bob:x:1000:1000::/:/bin/sh' >>image/etc/passwd
    printf 'root:x:0:\nbob:x:1000:\n' >image/etc/group
    echo secret >image/etc/shadow
    tar -C image --numeric-owner --owner=0 --group=0 -cf root.tar .
    rm -rf more
    mkdir -p more/srv
    echo data >more/srv/one; ln more/srv/one more/srv/two; ln -s /srv/one more/srv/link; mkfifo more/srv/pipe
    chmod 4750 more/srv/one
    tar -C more --numeric-owner --owner=1000 --group=50 -rf root.tar srv
}

# An OCI layout of root.tar and of a layer over it: `layout DIR`.
layout() {
    local upper lower config manifest
    mkdir -p "$1/blobs/sha256" over/etc
    echo x >over/etc/.wh.shadow; [ -e over/etc/new ] || echo new >over/etc/new
    tar -C over --numeric-owner --owner=0 --group=0 -cf upper.tar etc
    put() { local sum; sum=$(sha256sum <"$1" | cut -d' ' -f1); cp "$1" "$2/blobs/sha256/$sum"; echo "$sum"; }
    gzip -kf root.tar
    lower=$(put root.tar.gz "$1"); upper=$(put upper.tar "$1")
    printf '{"architecture":"amd64","os":"linux","config":{"Env":["FROM=image"],"User":"bob","WorkingDir":"/srv"},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' \
        "$(sha256sum <root.tar | cut -d' ' -f1)" "$upper" >config.json
    config=$(put config.json "$1")
    printf '{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":1},"layers":[{"mediaType":"x","digest":"sha256:%s","size":1},{"mediaType":"x","digest":"sha256:%s","size":1}]}' "$config" "$lower" "$upper" >manifest.json
    manifest=$(put manifest.json "$1")
    printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":1}]}' "$manifest" >"$1/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$1/oci-layout"
}

# Nothing of an engine is needed, and no right on the host.
test_on_disk() {
    # Some of it is removed below, and other cases run at the same time.
    export BELLJAR_CACHE_DIR=$dir/cache
    make_root
    bj --rootfs "container:$PWD/root.tar" -- sh -c 'cd /srv; stat -c "%n %a %u %g %h %F" one two link pipe; readlink link; stat -c %a /etc/shadow; id -u; : >/srv/new && rm one && echo written'
    want_code 0
    want_out 'one 4750 1000 50 2 regular file' 'two 4750 1000 50 2 regular file' 'link 777 1000 50 1 symbolic link' 'pipe 644 1000 50 1 fifo' /srv/one 644 0 written
    layout box
    bj -w none --rootfs "container:$PWD/box" -- sh -c 'id -u; pwd; echo "$FROM $HOME"; ls /etc'
    want_code 0; want_out 1000 /srv 'image /' group new passwd
    bj -u root --rootfs "container:$PWD/box" -- sh -c 'id -u; pwd; grep -c " / overlay" /proc/mounts'
    want_code 0; want_out 0 /mnt/hostos 1
    tar -C box -cf box.tar .
    bj -w none --rootfs "container:oci-archive:$PWD/box.tar" -v -- cat /etc/new
    want_code 0; want_out new; want_err 'made by an earlier run'
    # Another content is another guest.
    echo newer >over/etc/new
    layout box
    bj --rootfs "container:$PWD/box" -v -- cat /etc/new
    want_code 0; want_out newer; want_err 'made now'
    printf x >>"$(find box/blobs -size +100k | head -n 1)"
    rm -f "$BELLJAR_CACHE_DIR"/belljar-root-*
    bj --rootfs "container:$PWD/box" -- true
    want_code 125; want_err 'is not what the image says: its digest is'
}

test_of_engine() {
    want_engine
    "$engine" import --change 'ENV FROM=image' image.tar belljar-case:root >/dev/null
    bj --rootfs container:belljar-case:root --workspace-mode ro -- sh -c 'echo $FROM; id -u; dmesg | grep -c "Linux version"'
    want_code 0; want_out image 0 1
    echo two >image/etc/two; tar -C image -cf image.tar .
    "$engine" import image.tar belljar-case:root >/dev/null
    bj --rootfs container:belljar-case:root -- cat /etc/two
    want_code 0; want_out two
    bj --rootfs container:belljar-case:none -- true
    want_code 125; want_err 'has no image belljar-case:none; fetch it'
    "$engine" rmi --force belljar-case:root >/dev/null
}

# The engine imports what is on disk, once.
test_on_disk_as_container() {
    want_engine
    make_root
    layout box
    bj -w none --container "$PWD/box" -- sh -c 'id -u; pwd; echo "$FROM"; ls /etc; stat -c "%n %a %u %g %h" /srv/one; readlink /srv/link'
    want_code 0
    want_line '^1000$'; want_line '^/srv$'; want_line '^image$'; want_line '^new$'; want_no_line shadow
    want_line '^/srv/one 4750 1000 50 2$'; want_line '^/srv/one$'
    before=$("$engine" images --quiet belljar-image | wc -l)
    bj --container "oci:$PWD/box" -u root -- id -u
    want_code 0; want_out 0
    [ "$("$engine" images --quiet belljar-image | wc -l)" = "$before" ] || fail 'it was imported once more'
    bj --container "$PWD/root.tar" --workspace-mode ro -- sh -c 'id -u; cat /etc/shadow'
    want_code 0; want_out 0 secret
    bj --container "$PWD/ws" -- true
    want_code 125; want_err 'no OCI layout'
    "$engine" images --filter "label=belljar.cache=$BELLJAR_CACHE_DIR" --quiet | sort -u | xargs "$engine" rmi --force >/dev/null
    want_no_containers
}

# The same tests in a container, in that container's image as a machine, and in a stock image: the same verdicts, in one run and one report.
# fixtures: debian-trixie
test_mixed() {
    want_engine
    mkdir -p ws/t
    cat >ws/belljar.toml <<TOML
[guests.box]
container = "belljar-case:1"
[guests.box-machine]
rootfs = "container:belljar-case:1"
[guests.archive]
rootfs = "container:./image.tar"
[guests.stock]
image = "$(fixture debian-trixie)"
[[suites]]
name = "s"
tests = "t/*"
guests = ["box", "box-machine", "archive", "stock"]
setup = "setup"
setup-once = true
TOML
    cp image.tar ws/
    printf '#!/bin/sh\necho made >/made\n' >ws/setup
    printf '#!/bin/sh\n[ ! -e /mine ] && echo x >/mine && cat /made\n' >ws/t/own
    printf '#!/bin/sh\necho left >"$BELLJAR_OUT/left"; [ "$(id -u)" = 0 ] && [ "$PWD" = /mnt/hostos ]\n' >ws/t/out
    printf '#!/bin/sh\nexit 3\n' >ws/t/fails
    printf '#!/bin/sh\nkill -SEGV $$\n' >ws/t/dies
    printf '#!/bin/sh\n# belljar: needs = "machine"\n[ -d /proc/1/ns ] && dmesg | grep -q "Linux version"\n' >ws/t/machine
    printf '#!/bin/sh\n# belljar: disks = [{ size = "16MiB", serial = "more" }]\ngrep -qs more /sys/block/*/serial\n' >ws/t/disk
    chmod +x ws/setup ws/t/*
    code=0
    (cd ws && "$BELLJAR" test -j 2 --junit ../junit.xml) >out 2>err || code=$?
    cat out
    want_code 100
    want_line 'Summary .* 24 tests: 14 passed, 8 failed, 2 skipped'
    for guest in box box-machine archive stock; do
        want_line "FAIL .*s/fails@$guest:"
        want_line "FAIL .*s/dies@$guest:.*SIGSEGV"
        grep -q "own@$guest" junit.xml || fail "the report has no $guest"
    done
    want_line 'SKIP .*s/machine@box: skipped: it needs a machine'
    want_line 'SKIP .*s/disk@box: skipped: it wants disks'
    want_no_containers
}

# An init of the image's own, with the agent beside it.
test_own_init() {
    make_root
    mkdir -p image/sbin
    ln -s ../bin/busybox image/sbin/init
    printf '::sysinit:/bin/sh -c "echo up >/run/up; hostname of-image; ls /lib/modules >/run/had; modprobe dummy 2>>/run/had; ls /sys/class/net >>/run/had"\nttyS0::respawn:/bin/getty 0 ttyS0\n' >image/etc/inittab
    tar -C image --numeric-owner --owner=0 --group=0 -cf own.tar .
    line='cat /proc/1/comm /run/up; hostname; ls -d /lib/modules/$(uname -r); for at in proc sys dev run tmp; do grep -c " /$at " /proc/mounts; done; true'
    bj --rootfs "container:$PWD/own.tar" --access initrd -v -- sh -c "$line"
    want_code 0; want_line '^init$'; want_line '^up$'; want_line '^of-image'; want_line '^/lib/modules/'
    want_err 'access: beside the image.s init' 'waits for somebody to log in'
    # Its modules were there from the start, from a disk that changes no other's name, and can be written over.
    bj --rootfs "container:$PWD/own.tar" --access initrd --disk size=16M -v -- sh -c 'cat /run/had; uname -r; cat /sys/block/vdb/size; grep -c " /run/.belljar" /proc/mounts; : >/lib/modules/$(uname -r)/mine && echo written'
    want_code 0; want_line '^[0-9]*\.[0-9]*\.[0-9]*-'; want_line '^dummy0$'; want_line '^32768$'; want_line '^0$'; want_line '^written$'
    want_err 'disk of modules: .* as a file system .made by an earlier run'
    # A copy of the template has it, too, and what a test does to it is seen.
    bj --rootfs "container:$PWD/own.tar" --access initrd -v -- sh -c 'cat /run/up; kill -USR2 1; sleep 30'
    want_code 121; want_line '^up$'; want_err 'powered off'
    bj --rootfs "container:$PWD/own.tar" -- cat /proc/1/comm
    want_code 0; want_no_line '^init$'
    rm image/sbin/init image/bin/init
    tar -C image -cf none.tar .
    bj --rootfs "container:$PWD/none.tar" --access initrd -- true
    want_code 125; want_err 'has no init of its own'
    # One that cannot run is told at once.
    printf '#!/no/such/interpreter\n' >image/sbin/broken; chmod +x image/sbin/broken
    tar -C image -cf own.tar .
    bj --rootfs "container:$PWD/own.tar" --access initrd --append init=/sbin/broken -- true
    want_code 121; want_err 'execute /sbin/broken.*its interpreter /no/such/interpreter is missing in the guest'
}

# fixtures: systemd-root
test_systemd() {
    image=container:$(fixture systemd-root)
    printf '[Unit]\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c "echo served >/run/served"\n[Install]\nWantedBy=multi-user.target\n' >ws/case.service
    bj --rootfs "$image" --access initrd -v -- sh -c 'cat /proc/1/comm; systemctl is-system-running; systemctl --failed --no-legend; cat /etc/machine-id; systemd-run --quiet --wait --pipe id -u; cp case.service /etc/systemd/system && systemctl --quiet enable --now case.service && cat /run/served'
    want_code 0; want_line '^systemd$'; want_line '^running$'; want_line '^0$'; want_line '^served$'
    first=$(grep -xE '[0-9a-f]{32}' out)
    bj --rootfs "$image" --access initrd -v -- sh -c 'systemctl is-system-running; cat /etc/machine-id; systemctl is-enabled case.service; journalctl --boot --no-pager | grep -c "Reached target multi-user"'
    want_line '^running$'; want_line '^not-found$'; want_line '^1$'; want_err 'it was started with its template'
    [ "$(grep -xE '[0-9a-f]{32}' out)" != "$first" ] || fail 'two copies are the same machine'
}

# A directory, as whoever runs Belljar; and all of it without any right.
test_directory() {
    make_root
    # What tar would make of it.
    rm -rf dir; mkdir dir; tar -C dir -xpf root.tar
    mknod dir/srv/null c 1 3 2>/dev/null || skip_part 'devices cannot be made here'
    truncate -s 40M dir/srv/hole; echo end >>dir/srv/hole
    setfattr -n user.told -v yes dir/srv/one 2>/dev/null || skip_part 'no setfattr, or no attributes here'
    line='cd /srv; stat -c "%n %a %h %F" one two link pipe hole; readlink link; tail -c 4 hole; stat -c "%u %g" /bin/busybox'
    bj --rootfs "container:$PWD/dir" -v -- sh -c "$line"
    want_code 0
    want_line '^one 4750 2 regular file$'; want_line '^pipe 644 1 fifo$'; want_line '^/srv/one$'; want_line '^end$'; want_line '^0 0$'
    want_err 'made now'
    chmod 700 dir/srv/one
    bj --rootfs "container:$PWD/dir" -v -- stat -c %a /srv/two
    want_code 0; want_out 700; want_err 'made now'
    [ "$(id -u)" = 0 ] || return 0
    command -v setpriv >/dev/null || { skip_part 'no setpriv to be another user'; return 0; }
    layout box
    # Where nobody may write and read: a directory of its own, with all of it.
    home=$(mktemp -d -p /tmp); trap 'rm -rf -- "$home"' EXIT
    chmod 755 "$home"; mkdir "$home/ws" "$home/tmp"
    cp -r box "$home/box"; cp "$BELLJAR" "$home/belljar"
    mkdir "$home/dir"; tar -C "$home/dir" -xpf root.tar
    chown -hR 65534:65534 "$home"
    as_nobody() {
        code=0
        (cd "$home/ws" && exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$PATH" HOME="$home" TMPDIR="$home/tmp" "$home/belljar" run "$@") >out 2>err </dev/null || code=$?
        echo "+ as nobody: $*, code $code"; tail -n 25 err | cut -c1-300
    }
    as_nobody -v -w none --rootfs "container:../box" -- sh -c 'id -u; stat -c "%n %a %u %g %h" /srv/one'
    want_code 0; want_out 1000 '/srv/one 4750 1000 50 2'
    as_nobody -v --rootfs "container:../dir" -- sh -c 'id -u; stat -c "%u %g" /bin/busybox /srv/one; touch here'
    want_code 0; want_out 0 '0 0' '0 0'; want_err 'your own files are root.s'
    [ "$(stat -c %u "$home/ws/here")" = 65534 ] || fail 'the workspace is not written to as nobody'
    chown 0 "$home/dir/etc/shadow"; chmod 600 "$home/dir/etc/shadow"
    as_nobody --rootfs "container:../dir" -- true
    want_code 125; want_err 'shadow.*Permission denied.*podman unshare tar'
    as_nobody -w none --rootfs "container:../box" --access initrd -- sh -c 'id -u; cat /proc/1/comm'
    want_code 0; want_out 1000 init
}

# Roots of odd shapes: links in the places that a guest uses, and hardly anything there.
test_odd_roots() {
    make_root
    mkdir -p image/usr image/var
    mv image/bin image/usr/bin; mv image/etc image/usr/etc
    ln -s usr/bin image/bin; ln -s usr/etc image/etc; ln -s usr/lib image/lib
    ln -s var/mnt image/mnt; ln -s /nowhere/proc image/proc; ln -s var/dev image/dev; ln -s ../../tmp image/tmp; ln -s var/run image/run; echo file >image/sys
    tar -C image --numeric-owner --owner=0 --group=0 -cf odd.tar .
    bj --rootfs "container:$PWD/odd.tar" -- sh -c 'pwd; touch here; for at in proc dev sys run tmp; do [ -d /$at ] && [ ! -L /$at ] && echo $at; done; for at in mnt etc lib; do readlink /$at; done; ls -d /lib/modules/*; grep -c bob /etc/passwd'
    want_code 0
    want_line '^/var/mnt/hostos$'; want_line '^var/mnt$'; want_line '^usr/etc$'; want_line '^usr/lib$'; want_line '^/lib/modules/'; want_line '^1$'
    for at in proc dev sys run tmp; do want_line "^$at$"; done
    [ -e ws/here ] || fail 'the workspace is not there'
    bj --rootfs "container:$PWD/odd.tar" --user bob -- id -u
    want_code 0; want_out 1000
    # A program, and nothing else.
    rm -rf bare; mkdir -p bare/bin; cp "$(command -v busybox)" bare/bin/busybox
    tar -C bare -cf bare.tar .
    bj --rootfs "container:$PWD/bare.tar" -- /bin/busybox sh -c 'id -u; [ -d /tmp ] && [ -w /dev/null ] && echo fine'
    want_code 0; want_out 0 fine
}
