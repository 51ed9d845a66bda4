#!/bin/sh
# The last of its suite, since they run in the order of their names: the kernel found no fault with itself
# in all that the tests before have done to this guest.
. "$(dirname "$0")/../lib.sh"

log=$BELLJAR_OUT/dmesg.txt # kept on the host, with the results
dmesg >"$log"
grep -q 'Linux version' "$log" || echo '(the beginning of the log is gone)'
if grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|soft lockup|hung_task|EXT4-fs error|I/O error' "$log"; then
    fail 'the kernel reports a fault'
fi
