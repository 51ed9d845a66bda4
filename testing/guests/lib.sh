# shellcheck shell=bash
# What the cases share. A case runs in an empty directory of its own; any command that fails there ends it.

dir=$PWD
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
nonce=belljar-case-$$-$RANDOM
# Everything that Belljar starts inherits this, so that what outlives it can be told from other people's machines.
export BELLJAR_TEST_CASE=$nonce
export TMPDIR=$dir/tmp XDG_RUNTIME_DIR=$dir/runtime BELLJAR_STATE_DIR=$dir/state
# QEMU gets no more of the environment than it needs, but for this.
export BELLJAR_QEMU_ENV=BELLJAR_TEST_CASE
unset BELLJAR_LOGIN BELLJAR_ACCEL

fail() { echo "FAILED: $*"; exit 1; }
# What cannot be tried here is no pass: the runner counts it, and says why. skip ends the case, skip_part goes on with the rest.
skip() { echo "$*" >"$dir/skipped"; exit 77; }
skip_part() { echo "a part of it: $*" >>"$dir/skipped"; }

# run_case FUNCTION: the case, and what must hold after each.
run_case() {
    set -euo pipefail
    mkdir -p tmp runtime ws
    chmod 700 runtime
    trap 'echo "FAILED at line $LINENO: $BASH_COMMAND"' ERR
    set -E
    "$1"
    want_nothing_left
}

fixture() { "$top/testing/fixture" --path "$1"; }

# suite_on FIXTURE: ws/belljar.toml with a suite "s" of the tests ws/t/*.sh on a guest "h" of that Debian image. More of the suite's keys, and other tables, come from
# standard input.
suite_on() {
    mkdir -p ws/t
    cat - >keys
    cat - keys >ws/belljar.toml <<TOML
[guests.h]
image = "$(fixture "$1")"
login = { user = "root", password = "belljar" }
[[suites]]
name = "s"
tests = "t/*.sh"
guests = ["h"]
TOML
}

# bj ARGUMENT...: `belljar run`, with the workspace ws, standard input from the file stdin if there is one, standard output
# to the file out, standard error to the file err, and the exit code in $code.
bj() {
    local input=/dev/null
    if [ -e stdin ]; then input=stdin; fi
    code=0
    echo "+ belljar run $*"
    (cd ws && exec "$BELLJAR" run "$@") <"$input" >out 2>err || code=$?
    echo "  exit code $code, $(stat -c %s out) bytes on stdout, on stderr:"
    tail -n 25 err | cut -c1-300 | sed 's/^/  | /'
}

# bjt ARGUMENT...: `belljar test` there, with nothing on standard input; its output and exit code as those of bj.
# shellcheck disable=SC2120 # most want none
bjt() {
    code=0
    (cd ws && exec "$BELLJAR" test "$@") >out 2>err </dev/null || code=$?
    echo "+ belljar test $*: exit code $code"
    tail -n 40 err out | cut -c1-300 | sed 's/^/  | /'
}

want_code() { [ "$code" = "$1" ] || fail "the exit code is $code, not $1; stdout ends: $(tail -c 300 out)"; }
# Standard output is exactly these lines.
want_out() { diff <(printf '%s\n' "$@") out || fail 'standard output differs from what is wanted (<)'; }
# Standard output, or a named file, has a line that matches.
want_line() { grep -qE -e "$1" "${2:-out}" || fail "no line of ${2:-out} matches: $1; it ends: $(tail -c 400 "${2:-out}")"; }
want_no_line() { if grep -aE -e "$1" "${2:-out}"; then fail "a line of ${2:-out} matches: $1"; fi; }
want_err() { grep -qiE -e "$1" err || fail "standard error does not say: $1"; }

# The workspace as it is before a run: what was there is treated otherwise than what a guest makes.
fill_workspace() {
    rm -rf ws; mkdir -p ws/old/dir
    cp "$top/testing/guests/share-probe.py" ws/probe.py
    echo x | tee ws/old/dir/f ws/old/file ws/old/h1 >/dev/null
    ln ws/old/h1 ws/old/h2
}

# as_the_manual_says COLUMN OPTION...: each row of the manual's table of shares is tried, and what the column says is what is seen. The probe prints
# "name: ok" or how it failed.
as_the_manual_says() {
    local column=$1; shift
    fill_workspace
    bj "$@" -- python3 probe.py /mnt/hostos/t
    want_code 0
    # | what (`probe`) | rw over 9p | rw over FUSE | rw over virtiofs | cow |
    sed -n '/<!-- shares -->/,/<!-- \/shares -->/p' "$top/docs/manual.md" | grep '^| .*(`' |
        awk -F'|' -v c="$column" '{ match($2, /`[a-z_0-9]+`\)/); n = substr($2, RSTART + 1, RLENGTH - 3); gsub(/^ +| +$/, "", $c); gsub(/`/, "", $c); print n ": " $c }' >said
    [ "$(wc -l <said)" -ge 15 ] || fail "the manual has hardly any rows: $(cat said)"
    # What stands in no row is to work.
    awk -F': ' 'NR == FNR { said[$1] = $0; next } $1 in said { print said[$1]; delete said[$1]; next } { print $1 ": ok" } END { for (n in said) print "not tried: " n }' said out >wanted
    diff wanted out || fail "the manual says otherwise (<) than what is seen (>) with $*"
    rm -rf ws
    mkdir ws
}

# want_mode_kept MODE: of a guest that printed "written" if it could write to ws/file, which had "before" in it.
want_mode_kept() {
    case $1 in
        rw) want_line '^written$'; [ "$(cat ws/file)" = $'before\nmore' ] || fail 'the host does not see it' ;;
        ro) want_no_line '^written$'; [ "$(cat ws/file)" = before ] || fail 'the host sees it' ;;
        cow) want_line '^written$'; [ "$(cat ws/file)" = before ] || fail 'the host sees it' ;;
    esac
}

# until_true SECONDS COMMAND...: try until it holds.
until_true() {
    local until=$((SECONDS + $1)); shift
    while ! "$@"; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.05
    done
}

# Processes that Belljar started here and that are still there: same session, or the same variable in their environment.
survivors() {
    local p pid
    for p in /proc/[0-9]*; do
        pid=${p#/proc/}
        case $(readlink "$p/exe" 2>/dev/null) in *qemu-system* | "$(readlink -f "$BELLJAR")"*) ;; *) continue ;; esac
        if grep -qzxF "BELLJAR_TEST_CASE=$nonce" "$p/environ" 2>/dev/null || [ "$(ps -o sid= -p "$pid" | xargs)" = "$(ps -o sid= -p $$ | xargs)" ]; then
            ps -o pid=,ppid=,stat=,args= -p "$pid" | cut -c1-200
        fi
    done
}
no_survivors() { [ -z "$(survivors)" ]; }

want_nothing_left() {
    until_true 5 no_survivors || fail "processes outlive the run: $(survivors)"
    local left
    left=$(find tmp runtime -mindepth 1)
    [ -z "$left" ] || fail "temporary files are left: $left"
    left=$(find ws ! -type d ! -type f ! -type l -o -perm /6000 -o ! -uid "$(id -u)")
    [ -z "$left" ] || fail "the workspace has files that are not plain files of the user: $left"
}

# The belljar that this case started in the background.
belljar_pid() {
    local p
    for p in /proc/[0-9]*; do
        if [ "$(readlink "$p/exe")" = "$(readlink -f "$BELLJAR")" ] && grep -qzxF "BELLJAR_TEST_CASE=$nonce" "$p/environ" &&
            ! grep -qz __exec "$p/cmdline"; then echo "${p#/proc/}"; fi
    done 2>/dev/null | sort -n | head -n 1
}

# Has Belljar find the fixture's firmware, as a user without root's rights does who unpacked it somewhere.
with_ovmf() {
    export XDG_CONFIG_HOME=$dir/config
    mkdir -p "$dir/config/qemu/firmware"
    local description parts
    parts=$(fixture ovmf)
    for description in "$parts"/usr/share/qemu/firmware/*.json; do
        sed "s|\"/usr/share/|\"$parts/usr/share/|" "$description" >"$dir/config/qemu/firmware/${description##*/}"
    done
}
