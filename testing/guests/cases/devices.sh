# shellcheck shell=bash
# shellcheck disable=SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Devices that a guest has where they are asked for.

# A watchdog that is not fed: a verdict of its own in a copy of a template, a restart where that was prepared, nothing where it is fed or stopped.
test_watchdog() {
    bj --watchdog i6300esb -- sh -c 'modprobe i6300esb heartbeat=2 && exec 3>/dev/watchdog && echo armed && sleep 60; echo on'
    want_code 121
    want_out armed
    want_err "the guest's watchdog bit"
    cat >ws/bites.sh <<'END'
set -e
modprobe i6300esb heartbeat=2
case ${BELLJAR_REBOOT_MARK-} in
"") belljar-ctl reboot-prepare bitten; exec 3>/dev/watchdog; sleep 60; exit 1 ;;
esac
exec 3>/dev/watchdog
for i in 1 2 3 4 5 6; do sleep 1; echo >&3; done
printf V >&3; exec 3>&-; sleep 4
echo "$BELLJAR_REBOOT_MARK $BELLJAR_REBOOT_COUNT"
END
    bj -v --watchdog i6300esb -- sh ./bites.sh
    want_code 0
    want_out 'bitten 1'
    want_err "control: machine: reboot-prepare bitten \(the guest's watchdog bit\)"
}

test_watchdogs_of_pcs() {
    bj --watchdog ib700 -- sh -c 'modprobe ib700wdt timeout=2 && exec 3>/dev/watchdog && sleep 60'
    want_code 121
    want_err "the guest's watchdog bit"
    bj --watchdog itco --machine q35 -- sh -c 'modprobe -a lpc_ich i2c_i801; modprobe iTCO_wdt heartbeat=4 && exec 3>/dev/watchdog && sleep 60'
    want_code 121
    want_err "the guest's watchdog bit"
    bj --watchdog itco -- true
    want_code 125
    want_err 'is part of the machine type q35'
}

# Memory that is taken from the guest, which boots each time: a copy would give away its template's.
test_balloon() {
    cat >ws/balloon.sh <<'END'
set -e
modprobe virtio_balloon
kept() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
before=$(kept)
belljar-ctl balloon 300M
echo "taken $(((before - $(kept)) / 1024))"
belljar-ctl balloon full
[ "$(kept)" = "$before" ] && echo back
END
    bj -v --balloon -- sh ./balloon.sh
    want_code 0
    want_out 'memory 314572800' 'taken 724' 'memory 1073741824' back
    want_err 'template: none'
    # Without its driver the guest does nothing.
    bj --balloon -- sh -c 'belljar-ctl balloon 300M'
    want_code 1
    want_err 'the guest does nothing'
}

# What a program draws is in the picture; of a copy of a template.
test_screenshot() {
    cat >ws/draw.sh <<'END'
set -e
modprobe bochs
for i in 1 2 3 4 5; do [ -e /dev/fb0 ] || sleep 1; done
head -c 4096000 /dev/zero | tr '\0' '\377' >/dev/fb0
sleep 1
belljar-ctl screenshot white
END
    bj -v --display std -- sh ./draw.sh
    want_code 0
    want_out 'screenshots/white.png'
    local run
    run=$(sed -n 's/^belljar: logs: //p' err)
    python3 - "$run/screenshots/white.png" <<'END'
import sys, zlib, struct
png = open(sys.argv[1], 'rb').read()
width, height = struct.unpack('>II', png[16:24])
at, data = 8, b''
while at < len(png):
    length, kind = struct.unpack('>I4s', png[at:at + 8])
    if kind == b'IDAT': data += png[at + 8:at + 8 + length]
    at += 12 + length
rows = zlib.decompress(data)
row = rows[100 * (1 + width * 3) + 1:101 * (1 + width * 3)]
assert (width, height) == (1280, 800) and row == b'\xff' * len(row), (width, height, row[:30])
END
    bj -- belljar-ctl screenshot none
    want_code 1
    want_err 'a machine without a graphics card'
}

test_sound_and_processors() {
    bj --sound hda --no-rng --cpus 4 --cpu-topology sockets=2,cores=2 -- sh -c 'modprobe snd-hda-intel; sleep 1; cat /proc/asound/cards; lscpu; ls /sys/bus/virtio/drivers/virtio_rng'
    want_code 0
    want_line 'HDA-Intel'
    want_line '^Socket\(s\): +2'
    want_line '^Core\(s\) per socket: +2'
    want_no_line '^virtio[0-9]'
    bj --sound virtio -- true
    if [ "$code" != 0 ]; then want_err 'has no device "virtio-sound-pci", which sound asks for'; fi
}

# What is written to further serial ports is kept, over a reset too; nodes are what they are said to be.
test_ports_and_nodes() {
    cat >ws/ports.sh <<'END'
set -e
for port in 2 3; do stty -F /dev/ttyS$port raw; done
echo "one $BELLJAR_REBOOT_COUNT" >/dev/ttyS2
echo "two $BELLJAR_REBOOT_COUNT" >/dev/ttyS3
sleep 1
[ "$BELLJAR_REBOOT_COUNT" = 1 ] || belljar-ctl reset
END
    bj -v --serial-port modem --serial-port gps -- sh ./ports.sh
    want_code 0
    local run
    run=$(sed -n 's/^belljar: logs: //p' err)
    [ "$(cat "$run/serial-modem.log")" = "$(printf 'one 0\none 1')" ] || fail "modem: $(cat "$run/serial-modem.log")"
    [ "$(cat "$run/serial-gps.log")" = "$(printf 'two 0\ntwo 1')" ] || fail "gps: $(cat "$run/serial-gps.log")"
    want_err 'template: made'
    bj -v --cpus 4 --numa cpus=0-1,memory=768M,distances=10:21 --numa cpus=2-3,memory=256M,distances=31:10 -- \
        sh -c 'cd /sys/devices/system/node; for n in node*; do echo "$n $(cat $n/cpulist) $(cat $n/distance)"; done'
    want_code 0
    want_out 'node0 0-1 10 21' 'node1 2-3 31 10'
    want_err 'template: none'
}

# Persistent memory: it begins empty, and keeps what is written over a reset.
test_pmem() {
    cat >ws/pmem.sh <<'END'
set -e
modprobe -a nfit nd_pmem; mkdir -p /tmp/p
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/pmem0 ] || sleep 1; done
if [ "$BELLJAR_REBOOT_COUNT" = 0 ]; then
    [ "$(tr -d '\0' </dev/pmem0 | wc -c)" = 0 ] && echo empty
    mkfs.ext4 -q /dev/pmem0; mount /dev/pmem0 /tmp/p; echo kept >/tmp/p/f; sync; umount /tmp/p
    belljar-ctl power-cut
fi
mount /dev/pmem0 /tmp/p; cat /tmp/p/f; blockdev --getsize64 /dev/pmem0
END
    bj -v --pmem 64M -- sh ./pmem.sh
    want_code 0
    want_out empty kept 67108864
    want_err 'template: none'
}

# What a test leaves of its devices in a guest that others share: a watchdog that runs, memory that was taken.
test_devices_in_shared_guests() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<'END'
[guests.host]
watchdog = "i6300esb"
balloon = true
[[suites]]
name = "s"
tests = "t/*.sh"
guests = ["host"]
isolation = "suite"
END
    printf '#!/bin/sh\nset -e\nmodprobe virtio_balloon; sleep 1\ngrep MemTotal /proc/meminfo >/tmp/whole\nbelljar-ctl balloon 250M\n' >ws/t/1.sh
    printf '#!/bin/sh\n[ "$(grep MemTotal /proc/meminfo)" = "$(cat /tmp/whole)" ]\nbelljar-ctl balloon full\n' >ws/t/2.sh
    printf '#!/bin/sh\nmodprobe i6300esb heartbeat=6; exec 3>/dev/watchdog; exit 0\n' >ws/t/3.sh
    printf '#!/bin/sh\nsleep 12; exit 0\n' >ws/t/4.sh
    chmod +x ws/t/*.sh
    (cd ws && "$BELLJAR" test >../out 2>../err) || { cat out err; fail "a test did not pass"; }
    grep -q 'which was given back' out err || fail "nothing was given back"
    grep -q 'watchdog0, a watchdog that runs' out err || fail "the watchdog was not seen"
}

# Memory comes where the guest's kernel takes it, and a balloon knows of it.
test_memory_beside_pmem() {
    cat >ws/plug.sh <<'END'
set -e
kept() { sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
modprobe virtio_balloon
before=$(kept)
belljar-ctl plug memory 128M
sleep 1
for block in /sys/devices/system/memory/memory*; do [ "$(cat $block/state)" = online ] || echo online >$block/state; done
more=$(kept)
belljar-ctl balloon 300M
belljar-ctl balloon full
[ "$(kept)" = "$more" ] && echo "more $(((more - before) / 1024))"
END
    bj --balloon --pmem 64M --spare-memory 512M -- sh ./plug.sh
    want_code 0
    want_out 'memory 314572800' 'memory 1207959552' 'more 128'
    bj --tpm --pmem 64M -- true
    want_code 125
    want_err 'cannot have pmem'
    bj --cpus 4 --cpu-topology sockets=1,cores=2,threads=2 -- lscpu
    want_code 0
    want_line '^Thread\(s\) per core: +2'
}

# The clock goes faster and slower than the hardware's, which goes on as ever.
test_clock_rate() {
    cat >ws/t.sh <<'TEST'
raw() { python3 -c 'import time; print(time.clock_gettime(time.CLOCK_MONOTONIC_RAW), time.monotonic())'; }
for rate in 1.1 0.9 1; do
    belljar-ctl clock rate=$rate || exit 1
    before=$(raw); sleep 2; after=$(raw)
    echo $rate $before $after | awk '{ off = ($5 - $3) / ($4 - $2) / $1 - 1; print $1, (off * off < 0.00001 ? "as ordered" : "by " ($5 - $3) / ($4 - $2)) }'
done
belljar-ctl clock rate=3 2>/dev/null || echo refused
TEST
    bj -- sh ./t.sh
    want_code 0
    want_out '1.1 as ordered' '0.9 as ordered' '1 as ordered' refused
}

# where GUEST_OPTION...: by which device file the guest has a disk is told on each bus, and what is written there is on that disk.
where() {
    cat >ws/where.sh <<'SH'
if belljar-ctl disk none device; then exit 3; fi
for module in virtio_blk sd_mod nvme ahci xhci_pci usb_storage; do modprobe -q $module; done
within() { at=0; until "$@" >/dev/null 2>&1; do at=$((at + 1)); [ $at -lt 200 ] || { echo "not so: $*"; exit 1; }; sleep 0.2; done; }
for disk in virtio scsi nvme usb sata; do
    within belljar-ctl disk $disk device
    device=$(belljar-ctl disk $disk device)
    belljar-ctl disk $disk mark now >/dev/null
    dd if=/dev/zero of="$device" bs=4096 count=1 oflag=direct 2>/dev/null
    echo "$disk: $device, $(belljar-ctl disk $disk counts now | sed -n 's/^written-bytes //p') bytes"
    for link in /dev/disk/by-id/*; do case $link in *[-_]$disk | *_$disk-0:0) [ "$(readlink -f "$link")" = "$device" ] && echo "$disk has its link" ;; esac; done | sort -u
done
within eval 'belljar-ctl disk both device | grep -c . | grep -qx 2'
belljar-ctl disk both error path=0 >/dev/null
set -- $(belljar-ctl disk both device)
for device in "$@"; do dd if="$device" of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null && echo "path of both is read: $([ "$device" = "$1" ]; echo $?)"; done
belljar-ctl disk own device | sed 's/[a-z]*$/…/; s/^/own: /'
belljar-ctl unplug disk nvme
within eval '! belljar-ctl disk nvme device'
belljar-ctl plug disk nvme
within belljar-ctl disk nvme device
true
SH
    local disk=size=64M,lab
    bj --guard io-error=warn "$@" --disk $disk,serial=virtio,bus=virtio --disk $disk,serial=scsi,bus=scsi --disk $disk,serial=nvme,bus=nvme --disk $disk,serial=usb,bus=usb \
        --disk $disk,serial=sata,bus=sata --disk $disk,serial=both,bus=scsi,paths=2 --disk size=64M,serial=own -- sh ./where.sh
    cat out
    want_code 0
    want_err 'the guest has no disk "none": it is not plugged in, or its driver is not loaded'
    local bus
    for bus in virtio:vd. scsi:sd. nvme:nvme.n1 usb:sd. sata:sd.; do want_line "^${bus%:*}: /dev/${bus#*:}, 4096 bytes$"; done
    want_line '^path of both is read: 1$'
    want_no_line 'is read: 0'
    want_line '^own: /dev/…$'
}
test_where_a_disk_is_without_udev() { where; }
# fixtures: debian-bookworm
test_where_a_disk_is_with_udev() {
    where --image "$(fixture debian-bookworm)" --login root:belljar
    [ "$(grep -c 'has its link' out)" = 5 ] || fail 'not each disk has the link that leads there'
}
