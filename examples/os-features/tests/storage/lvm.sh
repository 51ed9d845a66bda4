#!/bin/sh
# LVM: a volume grows over the end of its disk while it is mounted, and a snapshot keeps what is then
# deleted from the volume.
# belljar: requires = ["lvm", "mkfs.ext4"]
. "$(dirname "$0")/../lib.sh"

at=$(mktemp -d) snapshot=$(mktemp -d)
vgcreate vg "$(disk data0)" "$(disk data1)"
lvcreate --yes -L 256M -n volume vg
mkfs.ext4 -q /dev/vg/volume
mount /dev/vg/volume "$at"
head -c 8M /dev/urandom >"$at/data"
before=$(checksum "$at/data")

lvextend -L 1500M vg/volume
resize2fs /dev/vg/volume
same "$(lvs --noheadings -o seg_count vg/volume | tr -d ' ')" 2 'the pieces of the volume'
[ "$(df --output=size -m "$at" | tail -n 1)" -gt 1300 ] || fail 'the file system did not grow'
same "$(checksum "$at/data")" "$before" 'the data after growing'

lvcreate -s -L 64M -n earlier vg/volume
rm "$at/data"
sync
mount -o ro /dev/vg/earlier "$snapshot"
same "$(checksum "$snapshot/data")" "$before" 'the data in the snapshot'
