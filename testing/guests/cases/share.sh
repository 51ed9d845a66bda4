# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# What a command sees of the host's files: whose they are, and what can be done to them.

# The manual has a table of what works in which mode.
test_what_the_manual_says_of_shares() {
    as_the_manual_says 3 --share 9p --workspace-mode rw
    as_the_manual_says 6 --share 9p --workspace-mode cow
}

# A descriptor of a file that another took the place of reaches the new file: what QEMU's 9p does cannot be undone, but is said.
test_replaced_file_that_is_open_is_told_of() {
    bj --share 9p -- sh -c 'echo old >log; exec 3>>log; echo new >next; mv next log; sleep 2; echo more >&3'
    want_code 0
    want_err 'log.*(replaced|removed)'
    rm -rf ws/*
    bj --share 9p --workspace-mode cow -- sh -c 'echo old >log; exec 3>>log; echo new >next; mv next log; sleep 2; echo more >&3'
    want_code 0
    if grep -q 'replaced\|removed' err; then fail 'a warning where nothing can be lost'; fi
    # Nor is there over FUSE.
    rm -rf ws/*
    bj --share fuse -- sh -c 'echo old >log; exec 3>>log; echo new >next; mv next log; sleep 2; echo more >&3; truncate -s 0 /proc/self/fd/3'
    want_code 0
    if grep -q 'replaced\|removed' err; then fail 'a warning where nothing can be lost'; fi
    [ "$(cat ws/log)" = new ] || fail "the new file has $(cat ws/log)"
}

test_another_user_has_its_streams_and_a_workspace() {
    mkdir -p ws/tests/deep
    echo before >ws/tests/deep/file
    chmod 600 ws/tests/deep/file
    echo typed >stdin
    bj --workspace-mode cow --user nobody -- sh -ec '
        echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin
        echo more >>tests/deep/file; cat tests/deep/file; echo new >tests/deep/new; mv tests/deep tests/moved; rm -r tests/moved
        echo made >made; stat -c "%U %G" . made
        echo left >"$BELLJAR_OUT/left"; mkdir "$BELLJAR_OUT/dir"'
    want_code 0
    want_out out typed before more 'nobody nogroup' 'nobody nogroup'
    want_line '^err$' err
    [ "$(cat ws/tests/deep/file)" = before ] && [ "$(ls ws)" = tests ] || fail 'the host sees what became of the workspace'
    [ "$(cat state/runs/*/out/left)" = left ] || fail 'what it left is not there'
    [ "$(stat -c %a state/runs/*)" = 700 ] || fail "the host's other users reach the output directory"
    # Numbers, groups, and a user that is not there.
    bj --user 4321:5 -- sh -c 'id -u; id -g; echo o >/dev/stdout; echo x >"$BELLJAR_OUT/x"; echo "$HOME"'
    want_code 0
    want_out 4321 5 o /
    bj --user nobody:no-such-group -- true
    want_code 126
    want_err no-such-group
    # A terminal, too.
    rm stdin
    code=0
    (cd ws && script -qec "'$BELLJAR' run -t --user nobody -- sh -c 'echo by-name >/dev/stdout; echo tty >/dev/tty'" /dev/null) >out 2>&1 </dev/null || code=$?
    want_line by-name
    want_line '^tty'
    rm -rf ws/*
}

# fixtures: debian-bookworm
test_another_user_in_an_image() {
    mkdir -p ws/tests
    echo before >ws/tests/file
    bj --image "$(fixture debian-bookworm)" --login root:belljar --workspace-mode cow --user nobody -- sh -ec '
        echo out >/dev/stdout; echo more >>tests/file; cat tests/file; echo new >new; echo left >"$BELLJAR_OUT/left"'
    want_code 0
    want_out out before more
    [ "$(cat state/runs/*/out/left)" = left ]
}

test_renames_in_a_copied_workspace() {
    mkdir -p ws/a/b ws/full ws/empty
    echo x >ws/a/b/c
    echo x >ws/full/x
    bj --workspace-mode cow -- sh -ec 'mv a z; cat z/b/c; mv -T z empty; cat empty/b/c; chmod 700 full; mv full other; ls other; mv /usr/share/doc /usr/share/moved; ls -d /usr/share/moved'
    want_code 0
    want_out x x x /usr/share/moved
    [ "$(ls ws)" = $'a\nempty\nfull' ] || fail 'the host sees it'
}

# A root without a kernel: modprobe finds the modules of the kernel in use, and nothing is written into the directory.
# fixtures: minbase
test_modules_for_a_root_without_a_kernel() {
    local root release
    root=$(fixture minbase)
    find "$root" -xdev | sort >before
    bj --rootfs "$root" -- sh -ec 'release=$(uname -r); echo "$release"; test -e /lib/modules/$release/modules.dep; modprobe dummy; grep -w dummy /proc/modules
        echo "# mine" >>/lib/modules/$release/modules.alias
        nft add table inet t; nft add chain inet t c "{ type filter hook input priority 0; }"; nft add rule inet t c ct state new counter; nft list ruleset'
    want_code 0
    want_line '^dummy '
    want_line 'ct state new counter'
    read -r release <out
    # Those that are given, with a copy of the guest's template as well.
    cp -a "/lib/modules/$release" modules
    : >modules/given
    bj --rootfs "$root" --kernel "/boot/vmlinuz-$release" --modules "$dir/modules" -- sh -ec 'ls /lib/modules/$(uname -r)/given; modprobe dummy'
    want_code 0
    want_line given
    bj -v --rootfs "$root" -- sh -ec 'cd /lib/modules/$(uname -r); ! ls given; modprobe dummy'
    want_code 0
    find "$root" -xdev | sort >after
    diff before after || fail 'something was written into the root directory'
    rm -rf modules
}

# Whoever runs Belljar and whoever runs git, git works in the workspace.
test_git_in_somebody_elses_workspace() {
    command -v git >/dev/null || fail 'the host has no git to be shared'
    local mode user as=()
    if [ "$(id -u)" = 0 ]; then
        as=(setpriv --reuid 1234 --regid 1234 --clear-groups)
        chmod 711 "$dir" "$dir/.."
        install -d -m 700 -o 1234 -g 1234 mine
    else
        mkdir mine
    fi
    mine() { "${as[@]}" env HOME="$dir/mine" BELLJAR_CACHE_DIR="$dir/mine/cache" BELLJAR_STATE_DIR="$dir/mine/state" TMPDIR="$dir/mine" "$@"; }
    mine sh -ec 'cd "$HOME"; mkdir ws; cd ws; git init -q .; echo x >file; chmod -R a+rX .'
    for mode in rw ro cow; do
        for user in root nobody; do
            code=0
            # shellcheck disable=SC2016,SC2034 # for that shell; want_code reads it
            mine sh -ec 'cd "$HOME/ws"; exec "$BELLJAR" run --workspace-mode "$0" --user "$1" -- git status --short' "$mode" "$user" >out 2>err || code=$?
            tail -n 3 err
            want_code 0
            want_out '?? file'
        done
    done
    rm -rf mine
}
