#!/bin/sh
# dm-multipath: one of two paths to a disk is pulled in the middle of the work, and comes back; then the other.
# belljar: requires = ["dmsetup"]
. "$(dirname "$0")/../lib.sh"
paths() { lsblk -dno SERIAL | grep -cx m0; }
both() { [ "$(paths)" = 2 ]; }
within 60 both
# shellcheck disable=SC2046 # two words
set -- $(lsblk -dno MAJ:MIN,SERIAL | sed -n 's/ *m0$//p')
dmsetup create both --table "0 $(lsblk -dbno SIZE,SERIAL | sed -n 's/ *m0$//p' | head -n 1 | awk '{print $1/512}') multipath 0 0 2 1 round-robin 0 1 1 $1 1 round-robin 0 1 1 $2 1"
mkfs.ext4 -q /dev/mapper/both
mount /dev/mapper/both /srv
(while :; do dd if=/dev/zero of=/srv/load bs=64k count=16 conv=fsync 2>/dev/null; done) & load=$!
# QEMU's first path is that of the first controller, which need not be the guest's first disk.
belljar-ctl unplug disk m0 path=0
failed() { dmsetup status both | grep -q ' F '; }
within 60 failed
echo alive >/srv/alive
sync /srv/alive
belljar-ctl plug disk m0 path=0
within 60 both
kill $load
uncache
same "$(cat /srv/alive)" alive 'what was written over the path that was left'
