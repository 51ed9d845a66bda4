# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Suites whose set-up is kept with the guest.

suite() {
    code=0
    (cd ws && exec "$BELLJAR" test -v "$@" >"$dir/out" 2>"$dir/err" </dev/null) || code=$?
    # What a suite says goes to standard error; what it says of a run to both.
    cat err >>out
}
# How many set-up scripts ran in the last run.
set_ups() { grep -c 'set-up `' out || :; }

project() {
    mkdir -p ws/t ws/data
    echo "$1" >ws/belljar.toml
    cat >>ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*.sh"
setup = "set up.sh"
setup-once = true
setup-inputs = "data/*"
TOML
    # On the disk, in memory, and a process.
    cat >"ws/set up.sh" <<'SH'
#!/bin/sh
set -e
ls -R . >/var/seen
cat data/word >/var/word
echo memory >/dev/shm/word
cat /etc/machine-id >/var/id
hostname >/var/name
echo scratch >scratch
cd /
sleep 1000 >/dev/null 2>&1 &
echo $! >/var/pid
SH
    echo one >ws/data/word
    echo >ws/other
    local name
    for name in a b c; do
        cat >"ws/t/$name.sh" <<'SH'
#!/bin/sh
set -ex
cat /var/word /dev/shm/word
kill -0 "$(cat /var/pid)"
if grep -e other -e belljar.toml /var/seen; then exit 1; fi
[ -e other ]
[ ! -e scratch ]
[ "$(cat /etc/machine-id)" != "$(cat /var/id)" ]
[ "$(hostname)" != "$(cat /var/name)" ]
grep -qx "$(cat data/word)" /var/word
# For the next guest to find, if it were the same.
[ ! -e /var/was-here ]
echo >/var/was-here
journalctl -n 1 --no-pager | grep .
SH
    done
    chmod +x ws/*.sh ws/t/*
}

# fixtures: debian-bookworm
test_a_set_up_is_kept() {
    project "[guests.debian]
image = \"$(fixture debian-bookworm)\"
login = { user = \"root\", password = \"belljar\" }"
    suite -j2
    want_code 0
    [ "$(set_ups)" = 1 ] || fail "the set-up ran $(set_ups) times"
    want_line 'set-up: made'
    want_line '3 passed'
    suite -j2
    want_code 0
    [ "$(set_ups)" = 0 ] || fail 'the set-up ran again'
    want_line 'set-up: found'
    "$BELLJAR" template list >kept
    want_line 'with the set-up of s' kept
    # What it was made of has changed.
    echo two >ws/data/word
    suite
    want_code 0
    [ "$(set_ups)" = 1 ] || fail "the set-up ran $(set_ups) times after a change"
    suite --no-template t/a.sh
    # Then it sees the whole workspace, which its test notices.
    want_code 100
    [ "$(set_ups)" = 1 ]
    want_no_line 'set-up: made'
}

# fixtures: debian-bookworm
test_a_set_up_that_fails_is_not_kept() {
    project "[guests.debian]
image = \"$(fixture debian-bookworm)\"
login = { user = \"root\", password = \"belljar\" }"
    printf '#!/bin/sh\necho begun\nls other\n' >"ws/set up.sh"
    suite
    want_code 125
    want_line '3 could not be judged'
    want_line 'no more of the workspace than itself'
    want_line 'No such file'
    suite t/a.sh
    want_line 'set-up: made'
    # A process that keeps the workspace busy cannot be frozen: the set-up runs in each guest, and says why.
    project "$(sed '/suites/,$d' ws/belljar.toml)"
    sed -i 's/^cd .$//' "ws/set up.sh"
    sed -i -e '/machine-id/d' -e '/hostname/d' -e '/grep -e other/d' -e '/^\[ -e other/d' -e '/-e scratch/d' ws/t/*.sh
    suite
    want_code 0
    want_line 'cannot be kept with its set-up.*held by sleep'
    [ "$(set_ups)" = 4 ] || fail "the set-up ran $(set_ups) times"
}
