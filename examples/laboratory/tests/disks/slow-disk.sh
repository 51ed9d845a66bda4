#!/bin/sh
# A disk with a bandwidth: as much time passes as its bytes take.
. "$(dirname "$0")/../lib.sh"
lab data0 limit bytes=4MiB
begun=$(date +%s)
dd if=/dev/zero of="$(disk data0)" bs=1M count=20 oflag=direct 2>/dev/null
took=$(($(date +%s) - begun))
[ $took -ge 4 ] || fail "20 MiB took $took s at 4 MiB a second"
lab data0 limit none
lab data0 delay read by=2s times=1
begun=$(date +%s)
dd if="$(disk data0)" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null
[ $(($(date +%s) - begun)) -ge 1 ] || fail 'the read was not put off'
