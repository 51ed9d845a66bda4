#!/bin/sh
# What is written with O_DSYNC is there after a power cut of the disk; what is written without is lost in the worst case.
. "$(dirname "$0")/../lib.sh"
device=$(disk data0)
head -c 64k /dev/zero | tr '\0' k | dd of="$device" bs=4k oflag=direct,dsync 2>/dev/null
head -c 64k /dev/zero | tr '\0' l | dd of="$device" bs=4k seek=16 oflag=direct 2>/dev/null
lab data0 cut strict
refused dd if="$device" of=/dev/null bs=4k count=1 iflag=direct
lab data0 on
same "$(dd if="$device" bs=64k count=1 iflag=direct 2>/dev/null | tr -s k)" k 'what was synchronous'
same "$(dd if="$device" bs=64k skip=1 count=1 iflag=direct 2>/dev/null | tr -d '\0')" '' 'what was not'
