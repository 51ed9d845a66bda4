#!/bin/sh
# Btrfs over two disks: when one of them is overwritten, files are still read right, and a scrub
# mends the bad copies from the good ones.
# belljar: requires = ["mkfs.btrfs"]
# belljar: disks = [{ size = "256MiB", serial = "left" }, { size = "256MiB", serial = "right" }]
# belljar: guards = { allow = [{ guard = "io-error", match = "BTRFS error", reason = "the test overwrites one copy" }] }
. "$(dirname "$0")/../lib.sh"

left=$(disk left) right=$(disk right) at=$(mktemp -d)
modprobe btrfs # before, so that it hears of both disks also where there is no udev
mkfs.btrfs -q -m raid1 -d raid1 "$left" "$right"
mount "$left" "$at"
head -c 16M /dev/urandom >"$at/data"
before=$(checksum "$at/data")
umount "$at"

# All but the superblocks, which are at 64 KiB and at 64 MiB.
dd if=/dev/zero of="$right" bs=1M seek=1 count=63 conv=fsync
dd if=/dev/zero of="$right" bs=1M seek=65 conv=fsync || : # until the end of the disk

btrfs device scan
mount "$left" "$at"
same "$(checksum "$at/data")" "$before" 'a file with one bad copy'
btrfs scrub start -B "$at" || : # its exit code says that there were errors
btrfs device stats --reset "$at"
btrfs scrub start -B "$at" || fail 'the first scrub left errors behind'
btrfs device stats --check "$at"
