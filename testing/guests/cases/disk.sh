# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# Shares on a disk: copied into the guest, and what was changed copied back.

# What the three modes leave: MODE, then `belljar run`'s other options.
in_mode() {
    local mode=$1; shift
    rm -rf ws state/runs; mkdir -p ws/d ws/empty
    echo before | tee ws/file ws/gone >/dev/null
    printf '#!/bin/sh\necho it runs\n' >ws/run; chmod 755 ws/run
    ln -s file ws/link; ln ws/file ws/hard; touch -d '2001-02-03 04:05:06.789' ws/d/old
    truncate -s 300G ws/sparse
    bj -v "$@" --share disk --workspace-mode "$mode" -- sh -c '
        ./run; cat link; stat -c "%y" d/old; [ hard -ef file ] && echo one file; stat -c %b sparse
        { echo more >>file; } 2>/dev/null && { rm gone; mkdir d/new; echo new >d/new/file; ln -s /etc/passwd d/passwd; truncate -s 900G holes; echo data >>holes; chmod 700 run; echo written; }
        echo left >"$BELLJAR_OUT/left"; mkfifo "$BELLJAR_OUT/fifo"; cp /bin/true "$BELLJAR_OUT/suid"; chmod 4755 "$BELLJAR_OUT/suid"
        grep -c "hostos 9p\|fuse.belljar" /proc/mounts; exit 3'
    want_code 3
    want_err "share: disk .*is in the guest"
    want_line '^it runs$'; want_line '^before$'; want_line '^2001-02-03 04:05:06.789'; want_line '^one file$'; want_line '^0$'
    local out; out=$(echo state/runs/*/out)
    [ "$(cat "$out/left")" = left ] || fail 'what it left is not there'
    [ -p "$out/fifo" ] || fail 'the FIFO is not there'
    [ -z "$(find "$out" ws -perm /6000)" ] || fail 'something has a set-uid bit'
    rm -f "$out/fifo"
    if [ "$mode" = rw ]; then
        want_line '^written$'
        [ "$(cat ws/file)" = $'before\nmore' ] || fail 'the host does not see it'
        [ ! -e ws/gone ] && [ "$(cat ws/d/new/file)" = new ] && [ -L ws/d/passwd ] || fail "$(find ws -ls)"
        [ "$(stat -c %a ws/run)" = 700 ] && [ "$(stat -c %b ws/holes)" -lt 100 ] && [ "$(tail -c 5 ws/holes)" = data ] || fail "$(find ws -ls)"
    else
        if [ "$mode" = ro ]; then want_no_line '^written$'; else want_line '^written$'; fi
        [ "$(cat ws/file)" = before ] && [ -e ws/gone ] && [ ! -e ws/d/new ] || fail "$(find ws -ls)"
    fi
}

# Each mode, further disks, and what a guest may not leave or has no room for.
test_disk_does_what_the_manual_says() {
    local mode
    for mode in rw ro cow; do in_mode $mode; done
    bj --share disk --disk size=1M,serial=data -- sh -c 'for b in /sys/block/vd*; do echo "${b##*/} $(cat $b/serial)"; done'
    want_code 0
    want_line 'vda *data'; want_line 'vdb *belljar-share'
    bj --share disk --max-output 1M -- sh -c 'head -c 3000000 /dev/urandom >"$BELLJAR_OUT/x"'
    want_code 125
    want_err max-output
    mkdir ws/large && head -c 200M /dev/zero >ws/large/zeros && head -c 120M /dev/urandom >ws/large/noise
    bj --share disk --memory 384M -- true
    want_code 125
    want_err 'has no room for it'
    rm -rf ws/large
    # A guest that dies takes what it wrote with it, and has not passed.
    bj --share disk -- sh -c 'echo x >"$BELLJAR_OUT/x"; echo c >/proc/sysrq-trigger; sleep 60; true'
    want_code 121
    # After a timeout it is there.
    rm -rf state/runs
    bj --share disk --timeout 5s -- sh -c 'echo x >"$BELLJAR_OUT/x"; sleep 600'
    want_code 124
    [ "$(cat state/runs/*/out/x)" = x ] || fail 'what it wrote before its time was over is not there'
}

# What times do not tell, and what is not there because something is over it.
test_disk_takes_nothing_for_removed_that_is_hidden() {
    mkdir -p ws/build; echo kept >ws/build/a; echo before >ws/mapped
    bj --share disk -- python3 -c 'import mmap; f = open("mapped", "r+b"); m = mmap.mmap(f.fileno(), 0); v = m[0]; m[0] = ord("B")'
    want_code 0
    [ "$(cat ws/mapped)" = Before ] || fail 'a store to mapped memory did not come back'
    bj --share disk -- sh -c 'mount -t tmpfs none build; echo x >new'
    want_code 125
    want_err 'left something mounted in a directory that is shared on a disk'
    [ "$(cat ws/build/a)" = kept ] && [ ! -e ws/new ] || fail "$(find ws -ls)"
}

# In an image, booted and copied.
# fixtures: debian-bookworm
test_disk_in_an_image() {
    local how
    for how in --no-template ''; do
        # shellcheck disable=SC2086 # none is no word
        in_mode rw $how --image "$(fixture debian-bookworm)" --login root:belljar
    done
    in_mode cow --image "$(fixture debian-bookworm)" --login root:belljar
    want_err 'template: found'
}
