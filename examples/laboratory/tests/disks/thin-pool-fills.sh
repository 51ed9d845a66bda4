#!/bin/sh
# A thin pool without room: writes fail, what was there stays, and room that is added is used.
# belljar: requires = ["dmsetup"]
. "$(dirname "$0")/../lib.sh"
modprobe dm-thin-pool
dd if=/dev/zero of="$(disk data1)" bs=4k count=1 2>/dev/null
pool() { echo "0 $1 thin-pool $(disk data1) $(disk data0) 128 0 1 error_if_no_space"; }
pool 65536 | dmsetup create pool # 32 MiB
dmsetup message pool 0 'create_thin 0'
echo '0 262144 thin /dev/mapper/pool 0' | dmsetup create thin # 128 MiB
dd if=/dev/urandom of=/dev/mapper/thin bs=1M count=16 oflag=direct 2>/dev/null
before=$(dd if=/dev/mapper/thin bs=1M count=16 iflag=direct 2>/dev/null | sha256sum)
refused dd if=/dev/zero of=/dev/mapper/thin bs=1M count=64 seek=16 oflag=direct
same "$(dd if=/dev/mapper/thin bs=1M count=16 iflag=direct 2>/dev/null | sha256sum)" "$before" 'what was there'
pool 262144 | dmsetup load pool
dmsetup resume pool
dd if=/dev/zero of=/dev/mapper/thin bs=1M count=64 seek=16 oflag=direct 2>/dev/null
