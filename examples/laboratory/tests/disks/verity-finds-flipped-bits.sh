#!/bin/sh
# dm-verity takes no bit from the disk that is not as it was sealed; once the cable is well, all can be read.
# belljar: requires = ["veritysetup"]
. "$(dirname "$0")/../lib.sh"
head -c 32M /dev/urandom | dd of="$(disk data0)" bs=1M 2>/dev/null
root=$(veritysetup format "$(disk data0)" "$(disk data1)" --data-blocks 8192 | sed -n 's/^Root hash:[[:space:]]*//p')
veritysetup open "$(disk data0)" sealed "$(disk data1)" "$root"
before=$(dd if=/dev/mapper/sealed bs=1M count=32 2>/dev/null | sha256sum)
echo 3 >/proc/sys/vm/drop_caches
lab data0 flip read at=16MiB+4KiB
refused dd if=/dev/mapper/sealed of=/dev/null bs=4k skip=4096 count=1
lab data0 heal
echo 3 >/proc/sys/vm/drop_caches
same "$(dd if=/dev/mapper/sealed bs=1M count=32 2>/dev/null | sha256sum)" "$before" 'what is sealed'
