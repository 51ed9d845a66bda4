#!/bin/sh
# What the guest sees of each disk that has a serial number: a line each. lab-kinds.sh COUNT waits until there are so many.
set -u
for module in sd_mod nvme ahci xhci_pci usb_storage; do modprobe -q $module; done
serial_of() {
    if [ -e "$1/device/vpd_pg80" ]; then tail -c +5 "$1/device/vpd_pg80" | tr -d '\0 '; else cat "$1/serial" "$1/device/serial" "$1/device/../../../../serial" 2>/dev/null | head -n 1 | tr -d ' '; fi
}
# One of two names of an NVMe disk stands for a path to it, and is hidden.
disks() { for disk in /sys/block/vd* /sys/block/sd* /sys/block/nvme*; do if [ -e "$disk/queue" ] && [ "$(cat "$disk/hidden" 2>/dev/null)" != 1 ] && [ -n "$(serial_of "$disk")" ]; then echo "$disk"; fi; done; }
at=0
while [ "$(disks | wc -l)" -lt "$1" ] && [ $at -lt 300 ]; do at=$((at + 1)); sleep 0.2; done
for disk in $(disks); do
    name=${disk##*/} queue=$disk/queue
    discards=yes; [ "$(cat "$queue/discard_max_bytes")" != 0 ] || discards=no
    ln -sf "/dev/$name" "/tmp/$(serial_of "$disk")"
    echo "$(serial_of "$disk"): sectors $(cat "$queue/logical_block_size")/$(cat "$queue/physical_block_size") ro $(cat "$disk/ro")" \
        "rotational $(cat "$queue/rotational") cache $(cat "$queue/write_cache" | tr ' ' -) discards $discards/$(cat "$queue/discard_granularity")" \
        "removable $(cat "$disk/removable") wwid $(cat "$disk/device/wwid" 2>/dev/null | tr -d ' ')"
done
