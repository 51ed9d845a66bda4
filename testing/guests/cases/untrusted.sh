# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Guests that try to get at more of the host than they were given.

# A home directory of its own, with secrets, that the user has.
home() {
    export HOME=$dir/home
    mkdir -p home/.ssh home/.config/gh home/.cargo home/plain home/more
    for file in .ssh/id .config/gh/hosts.yml .netrc .cargo/credentials.toml plain/file more/file; do echo "secret of $file" >"home/$file"; done
}

test_unmounting_shows_nothing_of_the_host() {
    export BELLJAR_LOGIN=root:hunter2 CI_TOKEN=hunter3
    echo hunter4 >tmp/others
    bj -- sh -c 'umount -l /proc /sys /dev /run /tmp 2>/dev/null; cd /
        for d in proc sys dev run tmp var/tmp; do umount -l /$d 2>/dev/null; umount -l /$d 2>/dev/null; done
        cat /proc/[0-9]*/environ /tmp/*/* 2>/dev/null | tr "\0" "\n"; ls -A /proc | grep -c "^[0-9]" ; ls -A /var/tmp; exit 5'
    want_code 5
    want_no_line 'hunter|^[1-9]'
    rm tmp/others
}

test_secrets_are_hidden() {
    home
    # Outside of the temporary directory, which is hidden as a whole.
    local place=$top/target/case-$$
    mkdir -p "$place" && cp -r home "$place/home"
    export HOME=$place/home
    ln -s .ssh/id "$HOME/link"
    # shellcheck disable=SC2088 # Belljar expands it
    bj --hide '~/more' -- sh -c 'cat "$1/plain/file"; cat "$1"/.ssh/id "$1"/link "$1"/.config/gh/hosts.yml "$1"/.netrc "$1"/.cargo/credentials.toml "$1"/more/file; ls -A "$1/.ssh" "$1/more"' sh "$HOME"
    rm -rf "$place"
    want_line '^secret of plain/file'
    want_no_line 'secret of (\.|more)|^id$'
}

# What hides things from a guest runs with its user's rights. A mount that this user cannot even reach needs no hiding, and does not keep anything else from it.
test_a_mount_out_of_reach_hides_nothing_less() {
    [ "$(id -u)" = 0 ] || skip 'only root can become somebody else'
    command -v setpriv >/dev/null || skip 'there is no setpriv'
    local place=/opt/belljar-case-$$ code=0
    mkdir -p "$place"/{closed/proc,home/.ssh,ws,cache,state}
    mount -t proc none "$place/closed/proc" || { rm -rf "$place"; skip 'no rights to mount'; }
    echo 'secret key' >"$place/home/.ssh/id"
    cp "$BELLJAR" "$place/belljar"
    chown -R 1234:1234 "$place"/{home,ws,cache,state}
    chmod 700 "$place/closed"
    (cd "$place/ws" && exec setpriv --reuid 1234 --regid 1234 --clear-groups env HOME="$place/home" TMPDIR=/tmp BELLJAR_CACHE_DIR="$place/cache" \
        BELLJAR_STATE_DIR="$place/state" "$place/belljar" run -- sh -c 'echo up; cat "$1/.ssh/id"; ls "$2"' sh "$place/home" "$place/closed") >out 2>err </dev/null || code=$?
    umount "$place/closed/proc" && rm -rf "$place"
    want_line '^up$'
    want_no_line 'secret key'
    ! grep 'nothing can be hidden' err || fail 'nothing was hidden, for a mount that nobody in the guest reaches'
    [ "$code" != 0 ] || fail 'the closed directory was listed'
}

test_a_workspace_that_is_hidden_is_shared_all_the_same() {
    export HOME=$dir/home
    mkdir -p home/.ssh/work
    echo seen >home/.ssh/work/file
    code=0
    (cd home/.ssh/work && exec "$BELLJAR" run -- cat file) >out 2>err </dev/null || code=$?
    want_code 0
    want_out seen
}

test_a_writable_home_directory_is_refused() {
    export HOME=$dir/ws BELLJAR_STATE_DIR=$dir/ws/.local/state
    bj -- true
    want_code 125
    want_err 'lies in .*which the guest may write to'
    want_err 'workspace-mode'
    bj --workspace-mode cow -- sh -c 'ls -A .local/state; touch .local/x; exit 7'
    want_code 7
    want_no_line .
    find ws/.local -name x | grep . && fail 'the copy-on-write workspace was written to'
    rm -rf ws/.local
}

# As in the manual's examples for CI.
test_a_run_directory_in_the_workspace() {
    bj --run-dir reports/run --out results -- sh -c 'echo r >"$BELLJAR_OUT/r"; ls -A reports/run; exit 0'
    want_code 0
    [ -s ws/reports/run/events.jsonl ] || fail 'the record is not where it was asked for'
    [ -e ws/reports/run/console.log ] || fail 'the console is not where it was asked for'
    [ -s ws/results/r ] || fail 'the result is not there'
    [ "$(stat -c %a ws/reports/run)" = 700 ] || fail 'others can look into the run'
}

test_a_run_directory_that_the_guest_moves() {
    mkdir elsewhere
    for trick in 'mv reports x; ln -s "$1" reports' 'mv reports/run y; ln -s "$1" reports/run' 'echo "{}" >reports/run/events.jsonl'; do
        rm -rf ws/* state
        bj --run-dir reports/run -- sh -c "$trick" sh "$dir/elsewhere"
        want_code 125
        want_err 'it is in .*state/runs'
        [ -z "$(ls -A elsewhere)" ] || fail 'a link was followed'
        [ "$(find state/runs -name events.jsonl -size +1k | wc -l)" = 1 ] || fail 'the record is lost'
    done
}

test_a_report_that_the_guest_redirects() {
    mkdir -p elsewhere ws/t
    echo old >elsewhere/junit.xml
    cat >ws/belljar.toml <<'X'
[[suites]]
name = "s"
tests = "t/*"
workspace-mode = "rw"
X
    printf '#!/bin/sh\nrm -rf reports; ln -s %s reports\n' "$dir/elsewhere" >ws/t/a
    chmod +x ws/t/a
    code=0
    # shellcheck disable=SC2034 # want_code reads it
    (cd ws && exec "$BELLJAR" test --run-dir run --junit reports/junit.xml) >out 2>err </dev/null || code=$?
    want_code 125
    want_err 'cannot write the report .*symbolic link'
    [ "$(cat elsewhere/junit.xml)" = old ] || fail 'a link was followed'
    [ -s ws/run/events.jsonl ] || fail 'the record was not delivered'
}

test_output_has_a_limit() {
    bj --max-output 50M -- sh -c 'dd if=/dev/zero of="$BELLJAR_OUT/z" bs=1M'
    want_code 125
    want_err 'max-output.*50 MiB'
    local size
    size=$(du -sm state/runs | cut -f1)
    # The limit, and what is written while somebody else has the processor.
    if [ "$size" -lt 48 ] || [ "$size" -ge 120 ]; then fail "$size MiB were left"; fi
    rm -rf state
    bj --max-output 50M -- sh -c 'head -c 60M /dev/zero >"$BELLJAR_OUT/z"; exit 0'
    want_code 125
    bj --max-output 50M -- sh -c 'head -c 40M /dev/zero >"$BELLJAR_OUT/z"; exit 0'
    want_code 0
}

test_disks_have_a_limit() {
    bj --disk size=1G,serial=d --max-disk 50M -- sh -c 'dd if=/dev/urandom of=/dev/vda bs=1M oflag=direct'
    want_code 125
    want_err 'max-disk.*50 MiB'
}
