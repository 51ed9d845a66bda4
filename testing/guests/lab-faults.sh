#!/bin/sh
# Each fault of a lab disk, and what the guest sees of it: lab-faults.sh DISK SERIAL
#
# The disk is written to and read past the guest's cache, in blocks of 4096 bytes, so what is read is what the disk gives.
set -u
disk=$1 name=$2
# A system without udev has the drivers of USB disks when somebody loads them.
if [ ! -b "$disk" ]; then for module in xhci_pci usb_storage sd_mod; do modprobe -q $module; done; fi
at=0; while [ ! -b "$disk" ] && [ $at -lt 60 ]; do at=$((at + 1)); sleep 0.5; done
[ -b "$disk" ] || { echo "not ok - there is no disk $disk: $(ls /dev | tr '\n' ' ')"; exit 1; }
ctl() { belljar-ctl disk "$name" "$@"; }
quiet() { "$@" >/dev/null 2>&1; }
failed=0
ok() { echo "ok - $1"; }
bad() { echo "not ok - $1"; failed=1; }
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: $2 and not $3"; fi; }
# put AT FILE, get AT: one block of 4096 bytes, past the guest's cache.
put() { dd if="$2" of="$disk" bs=4096 seek="$1" count=1 oflag=direct conv=notrunc 2>/dev/null; }
get() { dd if="$disk" bs=4096 skip="$1" count=1 iflag=direct 2>/dev/null; }
sum() { cksum | cut -d' ' -f1; }
cd /tmp || exit 1
dd if=/dev/urandom of=a bs=4096 count=1 2>/dev/null
dd if=/dev/urandom of=b bs=4096 count=1 2>/dev/null
a=$(sum <a) b=$(sum <b) zero=$(dd if=/dev/zero bs=4096 count=1 2>/dev/null | sum)

put 0 a && is 'what is written is read' "$(get 0 | sum)" "$a"

quiet ctl error write times=50; if put 1 b; then bad 'a write error'; else ok 'a write error'; fi
quiet ctl heal; put 1 b && is 'healed, it is written' "$(get 1 | sum)" "$b"
quiet ctl error read at=16s+8s; if [ "$(get 2 | wc -c)" = 4096 ]; then bad 'a read error at a place'; else ok 'a read error at a place'; fi
is 'elsewhere it is read' "$(get 1 | sum)" "$b"
quiet ctl heal
quiet ctl error write errno=ENOSPC times=50; if put 1 a; then bad 'no space'; else ok 'no space'; fi
quiet ctl heal

quiet ctl lose write times=1; put 1 a; is 'a lost write' "$(get 1 | sum)" "$b"
quiet ctl heal
put 1 b; quiet ctl tear keep=512 times=1; put 1 a
is 'a torn write' "$(get 1 | sum)" "$( (head -c 512 a; tail -c 3584 b) | sum)"
quiet ctl heal
put 3 b; put 4 b; quiet ctl misplace by=8s times=1; put 3 a
is 'a misplaced write is not where it belongs' "$(get 3 | sum)" "$b"
is 'and is elsewhere' "$(get 4 | sum)" "$a"
quiet ctl heal
# Not `times=1`: udev reads what was written to as well, and what befalls it befalls nobody else.
put 1 a; quiet ctl flip; [ "$(get 1 | sum)" != "$a" ] && ok 'a flipped bit' || bad 'a flipped bit'
quiet ctl heal
is 'the next time it is right' "$(get 1 | sum)" "$a"
quiet ctl heal
quiet ctl rot 8s+8s; [ "$(get 1 | sum)" != "$a" ] && ok 'bit rot' || bad 'bit rot'
is 'it stays' "$(get 1 | cmp -l - a | wc -l)" 8

put 1 a; quiet ctl damage 8s+1s; if [ "$(get 1 | wc -c)" = 4096 ]; then bad 'a medium error'; else ok 'a medium error'; fi
put 1 a; is 'that a write heals' "$(get 1 | sum)" "$a"

quiet ctl delay read by=700ms
t0=$(date +%s%N); get 1 >/dev/null; t1=$(date +%s%N)
[ $(((t1 - t0) / 1000000)) -ge 700 ] && ok 'a delay' || bad "a delay: $(((t1 - t0) / 1000000)) ms"
quiet ctl heal
quiet ctl limit requests=4
t0=$(date +%s%N); for i in 1 2 3 4 5 6; do get 1 >/dev/null; done; t1=$(date +%s%N)
[ $(((t1 - t0) / 1000000)) -ge 1200 ] && ok 'a rate' || bad "a rate: $(((t1 - t0) / 1000000)) ms"
quiet ctl limit none

ctl hang write >hang; put 1 b & writer=$!
sleep 1; if kill -0 "$writer" 2>/dev/null; then ok 'a write hangs'; else bad 'a write hangs'; fi
quiet ctl heal "$(cut -d' ' -f2 hang)"; wait "$writer"; is 'and goes on' "$(get 1 | sum)" "$b"

quiet ctl capacity 64KiB
n=0; while [ $n -lt 40 ] && put $((100 + n)) a; do n=$((n + 1)); done
if [ $n -lt 20 ]; then ok "a thin disk is full"; else bad "a thin disk is full: after $n"; fi
quiet ctl capacity none; put 140 a && is 'and has room again' "$(get 140 | sum)" "$a"

quiet ctl mark before; put 1 a; blockdev --flushbufs "$disk"
dd if=a of="$disk" bs=4096 seek=5 conv=notrunc,fsync 2>/dev/null
ctl counts before >counts
[ "$(sed -n 's/^flushes //p' counts)" -ge 1 ] && ok 'fsync flushes the disk' || bad "fsync flushes the disk: $(cat counts)"
quiet ctl mark lie; quiet ctl lose flush times=1; dd if=b of="$disk" bs=4096 seek=5 conv=notrunc,fsync 2>/dev/null && ok 'a flush that lies' || bad 'a flush that lies'
is 'a fault befell it' "$(ctl counts lie | sed -n 's/^faults //p')" 1
quiet ctl heal
quiet ctl error flush times=50; if dd if=b of="$disk" bs=4096 seek=5 conv=notrunc,fsync 2>/dev/null; then bad 'a flush that fails'; else ok 'a flush that fails'; fi
quiet ctl heal
put 6 a; quiet ctl mark trim; if blkdiscard -o 24576 -l 4096 "$disk" 2>/dev/null; then
    is 'a discard reaches it' "$(ctl counts trim | sed -n 's/^discards //p')" 1
    is 'and leaves zeros' "$(get 6 | sum)" "$zero"
else
    echo "skip - a discard: the guest cannot"
fi
exit $failed
