#!/bin/sh
# dm-integrity finds what was written to another place, and what was there.
# belljar: requires = ["integritysetup"]
# belljar: guards = { allow = [{ guard = "io-error", match = "dev dm-0", reason = "what nobody has written yet has no checksum, and udev reads it" }] }
. "$(dirname "$0")/../lib.sh"
integritysetup format --batch-mode --no-wipe "$(disk data0)" 2>/dev/null || integritysetup format --batch-mode "$(disk data0)"
integritysetup open "$(disk data0)" whole
dd if=/dev/urandom of=/dev/mapper/whole bs=1M count=64 oflag=direct 2>/dev/null
lab data0 misplace write by=4KiB at=40MiB+16MiB
dd if=/dev/urandom of=/dev/mapper/whole bs=1M count=64 oflag=direct 2>/dev/null
lab data0 heal
sync
echo 3 >/proc/sys/vm/drop_caches
refused dd if=/dev/mapper/whole of=/dev/null bs=4k count=16384 iflag=direct
