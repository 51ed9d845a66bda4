# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# Shares over virtiofs: the same as over 9p in each mode, with whichever virtiofsd there is, and never a pass on a share that is gone.

need_virtiofsd() {
    local path
    for path in "$(command -v virtiofsd)" /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd /usr/lib/virtiofsd; do
        [ ! -x "$path" ] || return 0
    done
    skip 'there is no virtiofsd here'
}

test_virtiofs_does_what_the_manual_says() {
    need_virtiofsd
    as_the_manual_says 5 --share virtiofs --workspace-mode rw
    as_the_manual_says 6 --share virtiofs --workspace-mode cow
}

# In an image, which boots each time; by a shell alone too.
# fixtures: debian-bookworm
test_virtiofs_in_an_image() {
    need_virtiofsd
    local mode
    for mode in rw ro cow; do
        echo before >ws/file
        bj -v --image "$(fixture debian-bookworm)" --login root:belljar --share virtiofs --workspace-mode $mode -- sh -c '
            cat file; echo more >>file && echo written; echo left >"$BELLJAR_OUT/left"; grep -c " virtiofs " /proc/mounts; true'
        want_code 0
        want_err 'share: virtiofs'
        want_err 'template: none .*shared with virtiofsd'
        want_line '^2$'
        want_line '^before$'
        [ "$(cat state/runs/*/out/left)" = left ] || fail 'what it left is not there'
        want_mode_kept "$mode"
        rm -rf state/runs
    done
}

# What the guest makes on the host are plain files of the user, no link leads out, and what is read cannot be written to whatever the guest mounts.
test_virtiofs_stays_in_its_directory() {
    need_virtiofsd
    mkdir -p ws/d
    echo secret >secret
    ln -s ../../secret ws/d/link
    ln -s "$dir/secret" ws/d/absolute
    bj --share virtiofs --workspace-mode rw -- sh -c 'cat d/link d/absolute; echo x >s; chmod 4755 s; mknod n c 1 3; mkfifo p; chown nobody s; ln -s /etc/passwd l; mkdir -m 2755 g; su nobody -s /bin/sh -c "echo y" >u; true'
    want_code 0
    [ ! -s out ] || fail "a link leads to $(cat out)"
    rm ws/p
    [ -z "$(find ws -perm /6000 -o -type b -o -type c)" ] || fail "$(find ws -ls)"
    [ -z "$(find ws ! -user "$(id -un)")" ] || fail "$(find ws -ls)"
    [ "$(cat ws/u)" = y ] || fail "$(find ws -ls)"
    mkdir ws/.hidden && echo x >ws/.hidden/x
    bj --share virtiofs --workspace-mode ro --hide "$dir/ws/.hidden" -- sh -c 'ls -A .hidden; cd /; umount /mnt/hostos; mkdir /tmp/again; mount -t virtiofs hostos /tmp/again && echo mounted
        cd /tmp/again; for c in "touch new" "rm s" "mv s t" "chmod 600 s" "ln s t" "truncate -s 0 s" "mkdir m" "touch s"; do $c 2>/dev/null && echo "did $c"; done; true'
    want_line '^mounted$'
    want_no_line '^did |^x$'
    [ "$(cat ws/s)" = x ] || fail "$(find ws -ls)"
    bj --share virtiofs --max-output 1M -- sh -c 'cd "$BELLJAR_OUT"; dd if=/dev/zero of=x bs=1M count=50; sleep 20; true'
    want_code 125
    want_err max-output
}

# A server that ends, and a Belljar that is killed.
test_virtiofs_that_is_killed_is_no_pass() {
    need_virtiofsd
    local pid
    mkdir -p ws.out
    (
        until_true 120 test -e ws.out/ready
        for pid in $(pgrep virtiofsd); do
            if grep -qz "BELLJAR_TEST_CASE=$nonce" "/proc/$pid/environ"; then kill -9 "$pid"; fi
        done
    ) &
    bj --share virtiofs --workspace-mode ro --out "$dir/ws.out" -- sh -c 'ls >/dev/null; : >"$BELLJAR_OUT/ready"; sleep 60; true'
    wait
    want_code 125
    want_err '\(virtiofsd\) ended'
    rm ws.out/ready
    (
        until_true 120 test -e ws.out/ready
        kill -9 "$(belljar_pid)"
    ) &
    bj --share virtiofs --out "$dir/ws.out" -- sh -c ': >"$BELLJAR_OUT/ready"; sleep 60' || true
    wait
    # shellcheck disable=SC2317 # until_true calls it
    ours() { local pid; for pid in $(pgrep virtiofsd); do ! grep -qz "BELLJAR_TEST_CASE=$nonce" "/proc/$pid/environ" || return 1; done; }
    until_true 5 ours || fail 'a virtiofsd outlives the run'
}
