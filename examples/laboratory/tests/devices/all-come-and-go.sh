#!/bin/sh
# Disks of each bus that can, the network card, a processor and memory go out of a machine that runs, and come back.
. "$(dirname "$0")/../lib.sh"
there() { [ -e "$1" ]; }
gone() { [ ! -e "$1" ]; }
for disk in v0:virtio-v0 n0:nvme-QEMU_NVMe_Ctrl_n0 s0:scsi-0QEMU_QEMU_HARDDISK_s0 u0:usb-QEMU_QEMU_HARDDISK_u0-0:0; do
    name=${disk%%:*} link=/dev/disk/by-id/${disk#*:}
    within 60 there "$link"
    belljar-ctl unplug disk "$name"
    within 60 gone "$link"
    belljar-ctl plug disk "$name"
    within 60 there "$link"
done
card() { [ -n "$(find /sys/class/net -mindepth 1 ! -name lo)" ]; }
no_card() { ! card; }
within 60 card
belljar-ctl unplug nic
within 60 no_card
belljar-ctl plug nic
within 60 card
belljar-ctl plug cpu
within 60 there /sys/devices/system/cpu/cpu1
[ "$(cat /sys/devices/system/cpu/cpu1/online)" = 1 ] || echo 1 >/sys/devices/system/cpu/cpu1/online
same "$(nproc)" 2 'processors'
total() { sed -n 's/^MemTotal: *\([0-9]*\) .*/\1/p' /proc/meminfo; }
before=$(total)
grown() { [ "$(total)" -eq $((before + 262144)) ]; }
shrunk() { [ "$(total)" -eq "$before" ]; }
echo online_movable >/sys/devices/system/memory/auto_online_blocks
belljar-ctl plug memory 256M
within 60 grown
belljar-ctl unplug memory
within 60 shrunk
