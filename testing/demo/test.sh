#!/bin/sh
# A test as a user of Belljar writes it: it spoils a disk, says what it found, and leaves a file for the host.
set -eu
PATH=$PATH:/usr/sbin:/sbin

say() { echo "ok - $1"; }

# shellcheck disable=SC1091
echo "# $(. /etc/os-release && echo "$PRETTY_NAME"), kernel $(uname -r), $(nproc) processor(s)"

disk=
for serial in /sys/block/*/serial; do
    [ "$(cat "$serial")" = spare ] && disk=/dev/$(basename "$(dirname "$serial")")
done
[ -n "$disk" ] || { echo 'not ok - there is no disk with the serial "spare"'; exit 1; }
say "found the spare disk: $disk"

mkfs.ext4 -q "$disk"
mkdir -p /tmp/mounted
mount -t ext4 "$disk" /tmp/mounted
say "made and mounted a file system"

dd if=/dev/urandom of=/tmp/mounted/data bs=1M count=8 2>/dev/null
before=$(sha256sum </tmp/mounted/data)
umount /tmp/mounted
e2fsck -fp "$disk" >/dev/null
mount -t ext4 "$disk" /tmp/mounted
[ "$(sha256sum </tmp/mounted/data)" = "$before" ]
say "its data survived an unmount and a check"

df /tmp/mounted >"$BELLJAR_OUT/df.txt"
umount /tmp/mounted
say "left df.txt for the host"
