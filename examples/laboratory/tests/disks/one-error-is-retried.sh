#!/bin/sh
# A single read error of a RAID's disk is read from the other, and told to nobody.
# belljar: requires = ["mdadm"]
. "$(dirname "$0")/../lib.sh"
mdadm --create /dev/md0 --run --assume-clean --level=1 --raid-devices=2 --size=32M "$(disk data0)" "$(disk data1)"
dd if=/dev/urandom of=/dev/md0 bs=1M count=32 oflag=direct 2>/dev/null
lab data0 mark before
lab data1 mark before
lab data0 error read after=3 times=1
lab data1 error read after=3 times=1
dd if=/dev/md0 of=/dev/null bs=64k count=512 iflag=direct 2>/dev/null || fail 'a program saw the error'
[ $(($(count data0 errors before) + $(count data1 errors before))) -ge 1 ] || fail 'no disk had an error'
