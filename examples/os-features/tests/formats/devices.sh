#!/bin/sh
# JUnit: a file in $BELLJAR_OUT, as pytest and others write it, gives a result for each case in it. This one
# is about the devices that every program relies on.
# belljar: format = "junit"
# belljar: junit = ["devices.xml"]
. "$(dirname "$0")/../lib.sh"

cases='' failures=0 tests=0
# check NAME COMMAND...: a case.
check() {
    name=$1
    shift
    tests=$((tests + 1))
    if "$@"; then result=''
    else
        failures=$((failures + 1))
        result="<failure message=\"$name: no\"/>"
    fi
    cases="$cases  <testcase classname=\"devices\" name=\"$name\">$result</testcase>
"
}

check 'null swallows everything' sh -c 'head -c 1M /dev/zero >/dev/null && [ "$(wc -c </dev/null)" = 0 ]'
check 'zero gives zeros' sh -c '[ "$(head -c 4096 /dev/zero | tr -d "\0" | wc -c)" = 0 ]'
check 'full is full' sh -c '! echo >/dev/full'
check 'random never repeats' sh -c '[ "$(head -c 16 /dev/random | od -tx1)" != "$(head -c 16 /dev/random | od -tx1)" ]'

cat >"$BELLJAR_OUT/devices.xml" <<END
<?xml version="1.0" encoding="UTF-8"?>
<testsuite name="devices" tests="$tests" failures="$failures">
$cases</testsuite>
END
[ "$failures" = 0 ]
