#!/bin/sh
# A disk that does not answer for a minute: who waits for it waits, nobody else does, and nothing is lost.
. "$(dirname "$0")/../lib.sh"
mkfs.ext4 -q "$(disk data0)"
mount "$(disk data0)" /srv
fault=$(lab data0 hang | cut -d' ' -f2)
(echo precious >/srv/file; sync /srv/file; touch /tmp/done) & waits=$!
sleep 60
[ ! -e /tmp/done ] || fail 'a write ended that nobody answered'
dd if=/dev/zero of="$(disk data1)" bs=4k count=1 oflag=direct 2>/dev/null
lab data0 heal "$fault"
wait $waits
uncache
same "$(cat /srv/file)" precious 'the file'
