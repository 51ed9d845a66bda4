#!/bin/sh
# Swap: more data than there is memory is kept, part of it on disk, and none of it is damaged.
# belljar: memory = "384MiB"
# belljar: disks = [{ size = "1GiB", serial = "swap0" }]
# belljar: group = "busy"
# belljar: timeout = "5m"
. "$(dirname "$0")/../lib.sh"

device=$(disk swap0) at=$(mktemp -d)
value() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }

mkswap "$device"
swapon "$device"
same "$(value SwapFree)" "$(value SwapTotal)" 'free swap at the beginning'

# A file in memory, of 64 MiB more than there is.
mib=$(($(value MemAvailable) / 1024 + 64))
mount -t tmpfs -o "size=$((mib + 1))M" memory "$at"
line='to be found again, whatever became of it in the meantime'
yes "$line" | head -c "${mib}M" >"$at/data"
[ $(($(value SwapTotal) - $(value SwapFree))) -gt 32768 ] || fail 'hardly anything was swapped out'
same "$(checksum "$at/data")" "$(yes "$line" | head -c "${mib}M" | sha256sum | cut -d' ' -f1)" 'the data'

rm "$at/data"
swapoff "$device"
