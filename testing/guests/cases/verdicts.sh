# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# What is a pass, and what is none: results that lie where nobody may overlook them, and output that ends late.

# unit NAME HEADER: a test whose text is on standard input.
unit() {
    mkdir -p ws/t
    { printf '#!/bin/bash\n# belljar: %s\n' "$2"; cat; } >"ws/t/$1"
    chmod 755 "ws/t/$1"
}

# suite GUEST KEYS: runs all units; the verdicts go to the file verdicts, a line each.
suite() {
    printf '[guests.g]\n%s\n[[suites]]\nname = "s"\ntests = ["t/*"]\nguests = ["g"]\ntimeout = "2m"\n' "$1" >ws/belljar.toml
    code=0
    (cd ws && exec "$BELLJAR" test -v --run-dir "$dir/run" >"$dir/out" 2>"$dir/err" </dev/null) || code=$?
    tail -n 60 out | cut -c1-300 | sed 's/^/  | /'
    "$BELLJAR" report "$dir/run" --format json | sed -n 's/.*"kind":"unit-ended","unit":"s\/\([^"]*\)@g","verdict":"\([^"]*\)".*/\1 \2/p' | sort >verdicts
}

want_verdicts() { diff <(printf '%s\n' "$@" | sort) verdicts || fail 'the verdicts are not these (<)'; }

well='<testsuite><testcase name="well"/></testsuite>'
bad='<testsuite><testcase name="hidden"><failure/></testcase></testsuite>'

units() {
    unit old 'format = "junit"' <<<"echo '$well' >\$BELLJAR_OUT/w.xml; echo '$bad' >r.xml; touch -d '1 hour ago' r.xml"
    unit link 'format = "junit"' <<<"echo '$well' >\$BELLJAR_OUT/w.xml; mkdir run1; echo '$bad' >run1/r.txt; ln -s run1/r.txt latest.xml"
    unit outlink 'format = "junit"' <<<"cd \$BELLJAR_OUT; echo '$well' >w.xml; mkdir run1; echo '$bad' >run1/r.txt; ln -s run1/r.txt latest.xml"
    unit clock 'format = "junit"' <<<"echo '$well' >\$BELLJAR_OUT/w.xml; echo '$bad' >stale.xml; touch -r stale.xml r; date -s @1000000000"
    unit mounted 'format = "junit"' <<<"echo '$well' >\$BELLJAR_OUT/w.xml; mkdir d; echo '$bad' >d/r.xml; mount -t tmpfs none d"
    unit programs 'format = "junit"' <<<"echo '$well' >\$BELLJAR_OUT/w.xml; echo '$bad' >r.xml
for p in find cp touch; do mount --bind /bin/true \$(command -v \$p); done"
    unit many 'format = "junit"' <<<"cd \$BELLJAR_OUT; for n in \$(seq 1001); do echo '$well' >\$n.xml; done; echo '$bad' >z.xml"
    unit pattern 'junit = ["none.xml"]' <<<'exit 0'
    unit good 'format = "junit"' <<<"mkdir d; echo '$well' >d/r.xml"
    unit skip-tap 'format = "tap"' <<<'echo no such device; exit 77'
    unit skip-kselftest 'format = "kselftest"' <<<'echo SKIP: needs root; exit 4'
    unit late 'format = "tap"' <<<'exec > >(sleep 2; while read -r line; do sleep 0.2; echo "$line"; done); echo 1..4; for n in 1 2 3 4; do echo ok $n; done'
    unit late-bad 'format = "tap"' <<<'exec > >(sleep 2; cat; echo not ok 2); echo 1..2; echo ok 1'
    unit daemon 'format = "tap"' <<<'sleep 1000 & echo 1..1; echo ok 1'
    unit flood 'format = "tap"' <<<'(while echo more; do sleep 0.5; done) & echo 1..1; echo ok 1'
    echo "$bad" >ws/stale.xml
}

expected=('clock fail' 'daemon pass' 'flood fail' 'good pass' 'late pass' 'late-bad fail' 'link fail' 'many fail' 'mounted fail'
    'old fail' 'outlink fail' 'pattern fail' 'programs fail' 'skip-kselftest skip' 'skip-tap skip')

test_of_the_hosts_userland() {
    units
    suite ''
    want_code 100
    want_verdicts "${expected[@]}"
    want_line 'left behind with its output open said nothing for 5 s'
    want_line 'its output was cut off'
    want_line 'no file matches `none.xml`'
}

# fixtures: debian-bookworm
test_of_a_stock_image() {
    export GUEST_PASSWORD=belljar
    units
    suite "image = \"$(fixture debian-bookworm)\"
login = { user = \"root\", password-env = \"GUEST_PASSWORD\" }"
    want_code 100
    want_verdicts "${expected[@]}"
}

# The file system of the run's directory is filled by the command, to the last byte.
test_a_pass_that_its_log_cannot_record() {
    mkdir small
    code=0
    # shellcheck disable=SC2034 # want_code reads it
    unshare --user --map-root-user --mount sh -c '
        mount -t tmpfs -o size=2m tmpfs "$1/small" && cd "$1/ws" || exit 99
        code=0
        # The last line of the log has no room where it begins at the end of a page. The command is in the log, so that its length decides
        # where that is; the rest of the log is not always of the same length.
        pad=0
        for n in 1 2 3 4 5 6 7 8 9 10; do
            "$BELLJAR" run --max-output 1GiB --run-dir "$1/small/run" -- sh -c "dd if=/dev/zero of=\$BELLJAR_OUT/z bs=4k 2>/dev/null; : $(printf "%0${pad}d" 0)" || code=$?
            log=$1/small/run/events.jsonl
            if grep -q "\"kind\":\"run-ended\",\"verdict\":\"pass\"" "$log"; then whole=0; else whole=125; fi
            [ $code = $whole ] || { echo "exit code $code, and the log says $whole"; exit 1; }
            [ $code = 0 ] || break
            last=$(tail -n 1 "$log" | wc -c) size=$(wc -c <"$log")
            pad=$((pad + (8192 - last / 2 - (size - last) % 4096) % 4096))
            rm -rf "$1/small/run"
        done
        exit $code' sh "$dir" >out 2>err || code=$?
    want_code 125
    # The console's log or the run's own, whichever came first.
    want_err 'No space left on device'
}

# The memory of a kernel that has panicked is kept, whole, for a program that reads it; not more than is asked for.
test_memory_of_a_panic() {
    bj -v --panic-dump 512M -- sh -c 'echo c >/proc/sysrq-trigger; sleep 60'
    want_code 121
    want_err 'memory, for crash\(8\): .*/memory.kdump'
    kept=$(ls state/runs/*/memory.kdump) || fail 'there is none'
    # QEMU'"'"'s flattened form of the format (its dump/dump.c), in which the kernel is named.
    [ "$(head -c 12 "$kept")" = makedumpfile ] && grep -qa KDUMP "$kept" && grep -qa "$(uname -m)" "$kept" || fail 'it is something else'
    bj --panic-dump 1M -- sh -c 'echo c >/proc/sysrq-trigger; sleep 60'
    want_code 121
    want_err 'memory is not kept: it is more than 1 MiB, which is its limit'
}
