#!/bin/sh
# A kernel module: loaded with a parameter it does what the parameter says, it cannot be unloaded while
# it is in use, and leaves nothing behind when it goes.
. "$(dirname "$0")/../lib.sh"

refused grep -w ^dummy /proc/modules
modprobe dummy numdummies=3
grep -w ^dummy /proc/modules
same "$(ls -d /sys/class/net/dummy* | wc -l)" 3 'interfaces that the module made'

modprobe loop
losetup --find "$(mktemp)"
refused modprobe -r loop

modprobe -r dummy
refused grep -w ^dummy /proc/modules
same "$(find /sys/class/net/ -name 'dummy*' | wc -l)" 0 'interfaces that are left'
