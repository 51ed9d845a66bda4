#!/bin/sh
# Disk encryption: nothing of what is written can be found on the disk, the wrong passphrase opens
# nothing, and the right one gives the data back.
# belljar: requires = ["cryptsetup", "mkfs.ext4"]
. "$(dirname "$0")/../lib.sh"

device=$(disk data0) at=$(mktemp -d) marker=THIS-MUST-NOT-BE-SEEN
modprobe dm-crypt
# Few rounds, since here nobody guesses at the passphrase.
printf right | cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$device" -
printf right | cryptsetup open "$device" secret --key-file -
mkfs.ext4 -q /dev/mapper/secret 64M
mount /dev/mapper/secret "$at"
echo "$marker" >"$at/file"
umount "$at"
grep -q "$marker" /dev/mapper/secret || fail 'the search does not find what is there'
cryptsetup close secret

refused grep -c -m 1 "$marker" "$device"
printf wrong | refused cryptsetup open "$device" secret --key-file -
printf right | cryptsetup open "$device" secret --key-file -
mount /dev/mapper/secret "$at"
same "$(cat "$at/file")" "$marker" 'the file'
