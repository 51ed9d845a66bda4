#!/bin/sh
# O_DIRECT goes round the page cache and not round the disk's own; O_DSYNC goes round both.
. "$(dirname "$0")/../lib.sh"
lab data0 mark direct
dd if=/dev/zero of="$(disk data0)" bs=4k count=8 oflag=direct conv=notrunc 2>/dev/null
same "$(count data0 writes direct) $(count data0 flushes direct)" '8 0' 'writes and flushes of direct writes'
lab data0 mark dsync
dd if=/dev/zero of="$(disk data0)" bs=4k count=8 oflag=direct,dsync conv=notrunc 2>/dev/null
same "$(count data0 writes dsync)" 8 'synchronous writes'
[ $(($(count data0 flushes dsync) + $(count data0 fua dsync))) -ge 8 ] || fail 'synchronous writes are not durable'
