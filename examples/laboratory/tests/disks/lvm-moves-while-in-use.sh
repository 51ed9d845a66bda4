#!/bin/sh
# A logical volume is moved to another disk under load, and the disk that it was on dies then.
# belljar: requires = ["pvmove"]
. "$(dirname "$0")/../lib.sh"
pvcreate -q "$(disk data0)" "$(disk data1)"
vgcreate -q group "$(disk data0)" "$(disk data1)"
lvcreate -q -y -n volume -L 64M group "$(disk data0)"
mkfs.ext4 -q /dev/group/volume
mount /dev/group/volume /srv
head -c 8M /dev/urandom >/srv/file
before=$(checksum /srv/file)
(while :; do dd if=/dev/zero of=/srv/load bs=64k count=16 conv=fsync 2>/dev/null; done) & load=$!
pvmove -q "$(disk data0)" "$(disk data1)"
kill $load
vgreduce -q group "$(disk data0)"
lab data0 error
uncache
same "$(checksum /srv/file)" "$before" 'the file on the other disk'
echo more >/srv/more
sync /srv/more
