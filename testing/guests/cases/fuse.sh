# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# Shares over FUSE: the same as over 9p in each mode, and never a pass on a share that is gone.

test_fuse_does_what_the_manual_says() {
    as_the_manual_says 4 --share fuse --workspace-mode rw
    as_the_manual_says 6 --share fuse --workspace-mode cow
}

# In an image, booted and copied.
# fixtures: debian-bookworm
test_fuse_in_an_image() {
    local how mode
    echo before >ws/file
    for how in --no-template ''; do
        for mode in rw ro cow; do
            [ -z "$how" ] || [ $mode = rw ] || continue
            # shellcheck disable=SC2086 # none is no word
            bj -v $how --image "$(fixture debian-bookworm)" --login root:belljar --share fuse --workspace-mode $mode -- sh -c '
                cat file; echo more >>file && echo written; echo left >"$BELLJAR_OUT/left"
                grep -c "fuse.belljar" /proc/mounts; grep " /mnt/hostos 9p\| /run/belljar/out 9p" /proc/mounts; sync; true'
            want_code 0
            want_err 'share: fuse'
            want_line '^2$'
            want_line '^before$'
            [ "$(cat state/runs/*/out/left)" = left ] || fail 'what it left is not there'
            want_mode_kept "$mode"
            echo before >ws/file
            rm -rf state/runs
        done
    done
    want_err 'template: found'
}

# Whoever kills what serves a share gets no pass, and does not hang.
test_fuse_that_is_killed_is_no_pass() {
    local mode pid
    echo there >ws/file
    for mode in rw ro cow; do
        bj --share fuse --workspace-mode $mode -- sh -c 'pkill -9 belljar-fuse; test ! -e /mnt/hostos/file; true'
        [ "$code" = 121 ] || [ "$code" = 125 ] || fail "the exit code is $code"
    done
    # Only that of the workspace, which nothing is written to.
    bj --share fuse --workspace-mode ro -- sh -c 'pkill -9 -n belljar-fuse; test ! -e /mnt/hostos/file'
    [ "$code" = 121 ] || [ "$code" = 125 ] || fail "the exit code is $code"
    # The server on the host.
    (
        until_true 120 test -e ws.out/ready
        for pid in $(pgrep -f -- "--share reading"); do
            if grep -qz "BELLJAR_TEST_CASE=$nonce" "/proc/$pid/environ"; then kill -9 "$pid"; fi
        done
    ) &
    mkdir -p ws.out
    bj --share fuse --workspace-mode ro --out "$dir/ws.out" -- sh -c 'ls >/dev/null; : >"$BELLJAR_OUT/ready"; sleep 60; true'
    wait
    want_code 125
    want_err 'server of the workspace ended'
}

# What the guest makes on the host are plain files of the user, and no link of the host's leads a guest out of its share.
test_fuse_stays_in_its_directory() {
    mkdir -p ws/d
    echo secret >secret
    ln -s ../../secret ws/d/link
    ln -s "$dir/secret" ws/d/absolute
    bj --share fuse --workspace-mode rw -- sh -c 'cat d/link d/absolute; true'
    want_code 0
    [ ! -s out ] || fail "a link leads to $(cat out)"
    bj --share fuse --workspace-mode rw -- sh -ec 'echo x >s; ! chmod 4755 s; ! mknod n c 1 3; mkfifo p; chown nobody s; ln -s /etc/passwd l; mkdir -m 2755 g'
    want_code 0
    rm ws/p
    [ -z "$(find ws -perm /6000 -o -type b -o -type c)" ] || fail "$(find ws -ls)"
    [ -z "$(find ws ! -user "$(id -un)")" ] || fail "$(find ws -ls)"
    # What is hidden is hidden here too.
    mkdir ws/.hidden && echo x >ws/.hidden/x
    bj --share fuse --workspace-mode ro --hide "$dir/ws/.hidden" -- sh -c 'ls -A .hidden'
    want_code 0
    [ ! -s out ] || fail "it sees $(cat out)"
    bj --share fuse --max-output 1M -- sh -c 'cd "$BELLJAR_OUT"; dd if=/dev/zero of=x bs=1M count=50; sleep 20; true'
    want_code 125
    want_err max-output
    bj --share fuse --max-output 64M -- sh -c 'cd "$BELLJAR_OUT"; fallocate -l 100G x; sleep 20; true'
    want_code 125
    want_err 'max-output|has only'
}

# Of more files than may be open none is taken for missing.
test_fuse_with_more_files_than_may_be_open() {
    local d mode n
    for d in {1..60}; do
        mkdir -p "ws/d$d/below"
        printf '%s\n' {1..50} | (cd "ws/d$d/below" && while read -r n; do echo "$d $n" >"$n"; done)
    done
    for mode in cow rw; do
        (ulimit -n 512 && bj --share fuse --workspace-mode $mode -- sh -ec '
            find . -type f | wc -l
            find . -type f -exec cat {} + | sort -u | wc -l
            cat d1/below/1 d60/below/50
            mv d2 e2; mv d3/below/7 d3/below/8; rm d4/below/9
            find . -type f -exec cat {} + | sort -u | wc -l
            cat e2/below/50 d3/below/8 d1/below/2; ! cat d4/below/9'
            want_code 0
            want_out 3000 3000 '1 1' '60 50' 2998 '2 50' '3 7' '1 2')
    done
    if [ ! -e ws/e2/below/50 ] || [ -e ws/d2 ]; then fail "the host has $(ls ws)"; fi
}

# A relay that a test leaves standing goes on for the next one, and one that it ends is told as what it is.
test_fuse_a_relay_that_a_test_stops() {
    mkdir ws/t
    printf '#!/bin/sh\npkill -STOP belljar-fuse; exit 0\n' >ws/t/a
    printf '#!/bin/sh\ntest -s t/a\n' | tee ws/t/b >ws/t/d
    printf '#!/bin/sh\npkill -KILL belljar-fuse; exit 0\n' >ws/t/c
    chmod +x ws/t/*
    printf '[guests.g]\nshare = "fuse"\n[[suites]]\nname = "s"\ntests = "t/*"\nisolation = "suite"\ntimeout = "100s"\nworkspace-mode = "ro"\n' >ws/belljar.toml
    if (cd ws && "$BELLJAR" test -v) >out 2>err; then fail 'it passed'; fi
    cat out err
    for test in a b d; do want_line "PASS .* s/$test@g"; done
    want_line '4 tests: 3 passed, 1 could not be judged'
    want_line 'what serves it has ended|server of the workspace ended|closed the port'
}

# A kernel without 9p gets its shares over FUSE in the same boot, and it is said what it lacks.
# fixtures: busybox-initrd
test_auto_takes_fuse_where_there_is_no_9p() {
    local files release
    files=$(fixture busybox-initrd) release=$(uname_of "$(fixture busybox-initrd)/vmlinuz")
    [ -d "/lib/modules/$release" ] || skip "no modules of $release here"
    mkdir -p modules/lib/modules
    cp -a "/lib/modules/$release" modules/lib/modules/
    rm -rf "modules/lib/modules/$release/kernel/fs/9p" "modules/lib/modules/$release/kernel/net/9p"
    depmod -b modules "$release"
    echo hi >ws/f
    bj -v --kernel "$files/vmlinuz" --initrd "$files/initrd" --modules "$dir/modules/lib/modules/$release" --access init -- sh -c 'cat f; echo y >g'
    want_code 0
    want_out hi
    want_err 'share: fuse .*has no 9p'
    [ "$(cat ws/g)" = y ] || fail 'the host does not see it'
    rm -rf modules
}

# The release that a kernel image says it is (the kernel's Documentation/arch/x86/boot.rst: kernel_version).
uname_of() { file -bL "$1" | sed -n 's/.*version \([^ ]*\).*/\1/p'; }
