# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Lab disks: Belljar serves them itself, so that a test can make them fail.

# faults BUS DEVICE OPTION...: each fault, seen by the guest. That none was left out is counted.
faults() {
    local bus=$1 device=$2; shift 2
    cp "$top/testing/guests/lab-faults.sh" ws/faults.sh
    bj "$@" --disk "size=256M,serial=data0,lab,bus=$bus" -- sh ./faults.sh "$device" data0
    cat out
    local seen=28 skips=0
    # A disk on USB gets no discards of its guest.
    if [ "$bus" = usb ]; then seen=26 skips=1; fi
    want_no_line '^not ok'
    want_code 0
    [ "$(grep -c '^skip - a discard' out)" = "$skips" ] && [ "$(grep -c '^skip' out)" = "$skips" ] || fail "not $skips faults were skipped"
    [ "$(grep -c '^ok - ' out)" = "$seen" ] || fail "there are not $seen lines of what was seen"
    want_no_line 'QEMU could not write' err
}

test_faults_on_virtio() { faults virtio /dev/vda; }
test_faults_on_scsi() { faults scsi /dev/sda; }
test_faults_on_usb() { faults usb /dev/sda; }
test_faults_on_nvme() { faults nvme /dev/nvme0n1; }

# fixtures: debian-no-virtio
test_faults_on_sata() {
    faults sata /dev/disk/by-id/ata-QEMU_HARDDISK_data0 --image "$(fixture debian-no-virtio)" --login root:belljar
}

# Each kind of disk as the guest sees it, whether it is QEMU's or a lab disk; plugged in, and there from the boot on (SATA).
test_kinds() {
    cp "$top/testing/guests/lab-kinds.sh" ws/kinds.sh
    local wwn=wwn=0x5000c500a1b2c3d4 large=sector-size=4096 emulated=physical-sector-size=4096
    bj -v --disk size=64M,serial=v0 --disk "size=64M,serial=v1,$large,write-cache=false,discard=false,lab" \
        --disk "size=64M,serial=v2,$emulated,discard-granularity=64K,lab" --disk size=64M,serial=v3,read-only,lab --disk size=64M,serial=v4,read-only \
        --disk "size=64M,serial=s1,bus=scsi,$large,$wwn,rotational=false,write-cache=false,discard=false,lab" \
        --disk "size=64M,serial=s2,bus=scsi,$emulated,rotational=true,discard-granularity=64K,removable" \
        --disk size=64M,serial=s3,bus=scsi,read-only,lab --disk "size=64M,serial=n1,bus=nvme,$large,discard-granularity=64K,rotational=false,lab" \
        -- sh -c 'sh ./kinds.sh 9
            cd /tmp
            for disk in v3 v4 s3; do if dd if=/dev/zero of=$disk bs=4096 count=1 oflag=direct 2>why; then echo "$disk was written to"; else sed "s/^/refused: /" why; fi; done | grep -cE "Operation not permitted|Read-only file system"
            for disk in v1 s1 n1; do
                if dd if=/dev/zero of=$disk bs=512 count=1 oflag=direct 2>/dev/null; then echo "$disk takes half a sector"; fi
                echo "sector of $disk" >word; dd if=word of=$disk bs=4096 count=1 oflag=direct conv=sync 2>/dev/null
                dd if=$disk bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d "\\0"
                if [ $disk != n1 ]; then echo "$disk $(belljar-ctl disk $disk counts | grep -E "^(fua|writes)" | tr "\\n" " ")"; fi
            done
            for disk in v0 v1 v2 s1; do if blkdiscard $disk 2>/dev/null; then echo "$disk was discarded"; fi; done'
    want_code 0
    cat out
    want_line '^v0: sectors 512/512 ro 0 rotational 1 cache write-back discards yes/512 removable 0'
    want_line '^v1: sectors 4096/4096 ro 0 rotational 1 cache write-through discards no/0 removable 0'
    want_line '^v2: sectors 512/4096 ro 0 rotational 1 cache write-back discards yes/65536 removable 0'
    want_line '^v3: sectors 512/512 ro 1 '
    want_line '^v4: sectors 512/512 ro 1 '
    want_line '^s1: sectors 4096/4096 ro 0 rotational 0 cache write-through discards no/0 removable 0 wwid naa.5000c500a1b2c3d4$'
    want_line '^s2: sectors 512/4096 ro 0 rotational 1 cache write-back discards yes/65536 removable 1'
    want_line '^s3: sectors 512/512 ro 1 '
    want_line '^n1: sectors 4096/4096 ro 0 rotational 0 cache write-back discards yes/4096 removable 0'
    want_line '^3$'
    want_no_line 'was written to|half a sector'
    local disk
    for disk in v1 s1 n1; do want_line "^sector of $disk$"; done
    # Without a cache each write is to be durable when it is answered.
    for disk in v1 s1; do want_line "^$disk writes 1 fua 1 $"; done
    [ "$(grep 'was discarded' out | tr '\n' ' ')" = 'v0 was discarded v2 was discarded ' ] || fail 'not those are discarded that can be'
    want_err 'template: (plugged|found)'

    bj -v --disk "size=64M,serial=a0,bus=sata,lab" --disk "size=64M,serial=a1,bus=sata,$emulated,$wwn,rotational=false,write-cache=false,discard=false,lab" -- \
        sh ./kinds.sh 2
    want_code 0
    cat out
    want_line '^a0: sectors 512/512 ro 0 rotational 1 cache write-back discards yes/512 removable 0'
    want_line '^a1: sectors 512/4096 ro 0 rotational 0 cache write-through discards no/0 removable 0 wwid naa.5000c500a1b2c3d4$'

    # What does not go together is told, also where the bus follows from the guest.
    bj --disk "size=64M,serial=v0,$wwn" -- true
    want_code 125
    want_err 'the disk v0: wwn = 0x5000c500a1b2c3d4 does not go with a disk on virtio: it has no such name'
    head -c 5000 /dev/zero >ws/odd
    bj --disk "file=odd,$large" -- true
    want_code 125
    want_err 'no whole number of sectors of 4096 bytes'
}

# FUA, where QEMU has it: the kernel is told, and sends such writes (a letter F after the W), which QEMU before 10.1 makes a write and a flush of. Of an NVMe
# disk's QEMU makes nothing, which is told where power is cut.
test_fua() {
    cp "$top/testing/guests/lab-kinds.sh" ws/kinds.sh
    local disk=size=64M,lab name
    bj -v --disk $disk,serial=s1,bus=scsi,fua=true --disk $disk,serial=s0,bus=scsi,fua=false --disk $disk,serial=u1,bus=usb,fua=true \
        --disk $disk,serial=v0,fua=false --disk $disk,serial=n0,bus=nvme -- sh -c 'sh ./kinds.sh 5 >/dev/null; cd /tmp
            mkdir -p t; mount -t tracefs none t; echo 1 >t/events/block/block_rq_issue/enable
            for disk in s1 s0 u1 v0 n0; do
                echo >t/trace
                belljar-ctl disk $disk mark now >/dev/null; dd if=/dev/zero of=$disk bs=4096 count=1 oflag=direct,dsync 2>/dev/null
                wrote=$(sed -n "s/.*block_rq_issue: [0-9,]* \([A-Z]*\) .*/\1/p" t/trace | grep -c WF)
                echo "$disk: FUA $wrote, queue $(cat /sys/block/$(basename $(readlink $disk))/queue/fua), $(belljar-ctl disk $disk counts now | grep -E "^(writes|fua|flushes)" | tr "\n" " ")"
            done
            dmesg | grep -oE "\[sd.\] .* DPO (or|and) FUA" | sed "s/\[sd.\] //" | sort
            # A journal ends with such a write, and no flush after it.
            for disk in s1 n0; do
                mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 $disk; mkdir -p at-$disk; mount $disk at-$disk; sync
                echo precious >at-$disk/f; sync at-$disk/f && belljar-ctl disk $disk cut
            done 2>/dev/null; true'
    cat out
    want_code 0
    for name in s1 u1; do want_line "^$name: FUA 1, queue 1, writes 1 (fua 0 flushes 2|fua 1 flushes 1) $"; done
    for name in s0 v0; do want_line "^$name: FUA 0, queue 0, writes 1 fua 0 flushes 2 $"; done
    want_line '^n0: FUA 1, queue 1, writes 1 fua 0 flushes 1 $'
    [ "$(grep -c 'supports DPO and FUA' out)" = 2 ] || fail 'not two disks say that they have FUA'
    want_err 'control: disk s1: cut .pending 0, lost 0'
    want_err 'control: disk n0: cut .pending [1-9].*QEMU.s NVMe disk forgets'
    bj --disk size=64M,serial=v0,fua=true -- true
    want_code 125
    want_err 'the disk v0: fua = true does not go with a disk on virtio: it has no such writes; leave it out, or take another bus: scsi, usb'
    bj --disk size=64M,serial=n0,bus=nvme,fua=true -- true
    want_code 125
    want_err 'does not make them durable'
}

# Disks on USB, in a guest that boots and in a copy of it.
test_usb() {
    cp "$top/testing/guests/lab-kinds.sh" ws/kinds.sh
    for template in made found; do
        bj -v --disk size=64M,serial=u0,bus=usb,lab --disk size=64M,serial=u1,bus=usb,sector-size=4096,write-cache=false,discard=false,removable \
            --disk size=64M,serial=u2,bus=usb,read-only,lab --disk size=64M,serial=v0 -- sh -c 'sh ./kinds.sh 4
                cd /tmp
                echo "by USB" >word; dd if=word of=u0 bs=4096 count=1 oflag=direct conv=sync 2>/dev/null
                dd if=u0 bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d "\0"
                belljar-ctl disk u0 error read
                if dd if=u0 bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null; then echo "u0 is read"; fi
                ls /sys/bus/pci/devices'
        want_code 0
        cat out
        want_line '^u0: sectors 512/512 ro 0 rotational 1 cache write-back discards no/0 removable 0'
        want_line '^u1: sectors 4096/4096 ro 0 rotational 1 cache write-through discards no/0 removable 1'
        want_line '^u2: sectors 512/512 ro 1 '
        want_line '^v0: '
        want_line '^by USB$'
        want_no_line 'u0 is read'
        want_line '^0000:00:01.4$'
        want_err "template: $template"
    done
}

# Two paths to one disk, of which one is lost and comes back, under device mapper's multipath.
test_paths() {
    command -v dmsetup >/dev/null || skip 'dmsetup is not there'
    cat >ws/paths.sh <<'SH'
set -e
for module in sd_mod dm-multipath dm-round-robin; do modprobe $module; done
at=0; while [ ! -e /sys/block/sdc ] && [ $at -lt 100 ]; do at=$((at + 1)); sleep 0.2; done
for disk in sda sdb sdc; do
    echo "$disk: $(tail -c +5 /sys/block/$disk/device/vpd_pg80 | tr -d '\0 ') $(cat /sys/block/$disk/device/wwid 2>/dev/null) host$(readlink /sys/block/$disk/device | sed 's/.*\///; s/:.*//')"
done
set -- /sys/block/sda /sys/block/sdb
[ "$(cat $1/device/wwid)" = "$(cat $2/device/wwid)" ] || set -- /sys/block/sda /sys/block/sdc
size=$(cat $1/size) a=$(cat $1/dev) b=$(cat $2/dev)
dmsetup create both --table "0 $size multipath 0 0 2 1 round-robin 0 1 1 $a 1 round-robin 0 1 1 $b 1"
dmsetup mknodes
put() { echo "$1" | dd of=/dev/mapper/both bs=4096 count=1 conv=sync oflag=direct 2>/dev/null; }
got() { dd if=/dev/${1##*/} bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\0'; }
put by-both; echo "first $(got $1), second $(got $2)"
echo offline >$1/device/state
put by-the-second; echo "second $(got $2)"
dmsetup status both | grep -q " $a F " && dmsetup status both | grep -q " $b A " && echo 'the first has failed'
echo running >$1/device/state
dmsetup message both 0 reinstate_path $a
echo offline >$2/device/state
put by-the-first; echo "first $(got $1)"
dmsetup status both | grep -q " $b F " && dmsetup status both | grep -q " $a A " && echo 'the second has failed'
echo running >$2/device/state
echo "writes $(belljar-ctl disk mp0 counts | sed -n 's/^writes //p')"
# One path alone fails, hangs, and is slow: which of the two it is in the guest is found out, as its order may be either.
reads() { dd if=/dev/${1##*/} bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null; }
belljar-ctl disk mp0 error path=0 >/dev/null
if reads $1; then good=$1 bad=$2; else good=$2 bad=$1; fi
reads $good && ! reads $bad && echo 'one path alone fails'
dmsetup message both 0 reinstate_path $a; dmsetup message both 0 reinstate_path $b
for _ in 1 2 3 4; do put by-the-good; done; echo "good $(got $good)"
dmsetup status both | grep -q " $(cat $bad/dev) F " && dmsetup status both | grep -q " $(cat $good/dev) A " && echo 'multipath goes by the other'
belljar-ctl disk mp0 heal; dmsetup message both 0 reinstate_path $(cat $bad/dev)
reads $bad && echo 'it is back'
belljar-ctl disk mp0 error path=1 times=20 >/dev/null; reads $bad && ! reads $good && echo 'and so the other'
belljar-ctl disk mp0 heal
belljar-ctl disk mp0 hang read path=0 >/dev/null
reads $bad & hanging=$!
timeout 20 dd if=/dev/${good##*/} bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null && [ -d /proc/$hanging ] && echo 'the other path does not hang'
belljar-ctl disk mp0 heal; wait $hanging && echo 'what hung is read'
belljar-ctl disk mp0 error path=2 || true
belljar-ctl unplug disk mp0 path=0 && reads $good && ! reads $bad && belljar-ctl plug disk mp0 path=0
# The disk itself fails on both.
dmsetup remove both
belljar-ctl disk mp0 error >/dev/null
for path in $1 $2; do if dd if=/dev/${path##*/} bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null; then echo "${path##*/} is read"; fi; done
SH
    local disk=size=64M,bus=scsi
    bj -v --disk $disk,serial=other --disk $disk,serial=mp0,wwn=0x5000c500a1b2c3d4,paths=2,lab -- sh ./paths.sh
    want_code 0
    cat out
    [ "$(grep -cE '^sd[abc]: mp0 naa.5000c500a1b2c3d4 host' out)" = 2 ] || fail 'there are not two paths'
    [ "$(sed -n 's/^sd.: mp0 .* host//p' out | sort -u | wc -l)" = 2 ] || fail 'both are on one controller'
    want_line '^sd.: other '
    want_line '^first by-both, second by-both$'
    want_line '^second by-the-second$'
    want_line '^the first has failed$'
    want_line '^first by-the-first$'
    want_line '^the second has failed$'
    want_line '^writes 3$'
    local said
    for said in 'one path alone fails' 'good by-the-good' 'multipath goes by the other' 'it is back' 'and so the other' 'the other path does not hang' 'what hung is read'; do
        want_line "^$said$"
    done
    want_err 'path=2: the disk has 2 paths, counted from 0'
    want_no_line '^sd[a-z]* is read$'
    want_err 'a disk on several paths cannot be plugged into a machine that runs'
    bj --disk size=64M,bus=scsi,serial=x,paths=9 -- true
    want_code 125
    want_err 'there are 1 to 8'
}

# The medium of a removable disk comes out and goes in again: on SCSI and USB, of a lab disk and of QEMU's own; what the guest holds, by force alone.
test_media() {
    cat >ws/media.sh <<'SH'
for module in sd_mod usb-storage xhci-pci; do modprobe $module 2>/dev/null; done
at=0; while [ "$(ls -d /sys/block/sd? 2>/dev/null | wc -l)" -lt 3 ] && [ $at -lt 100 ]; do at=$((at + 1)); sleep 0.2; done
of() { for disk in /sys/block/sd?; do if cat $disk/device/vpd_pg80 "$(readlink -f $disk/device)"/../../../../serial 2>/dev/null | tr '\0' ' ' | grep -q "$1"; then echo "/dev/${disk##*/}"; fi; done; }
for name in s0 s1 u0; do
    disk=$(of $name); [ -b "$disk" ] || { echo "no $name"; exit 1; }
    echo "written to $name" | dd of=$disk bs=4096 count=1 conv=sync oflag=direct 2>/dev/null
    belljar-ctl disk $name eject || echo "$name: not ejected"
    dd if=$disk bs=4096 count=1 iflag=direct of=/dev/null 2>&1 | sed -n "s/.*: /$name: /p" | head -n 1
    belljar-ctl disk $name insert
    dd if=$disk bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\0'
done
# The kernel holds what is open.
disk=$(of s0)
exec 3<$disk
belljar-ctl disk s0 eject && echo 'not held'
dd if=$disk bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\0' | sed 's/^/held, and still /'
# What hangs is let go of.
belljar-ctl disk s0 hang read >/dev/null
dd if=$disk bs=4096 count=1 iflag=direct of=/dev/null 2>/dev/null & reading=$!
sleep 1
belljar-ctl disk s0 eject force && echo 'by force'
wait $reading || echo 'what hung has failed'
belljar-ctl disk s0 heal
exec 3<&-
belljar-ctl disk s0 insert
dd if=$disk bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\0' | sed 's/^/at last: /'
belljar-ctl disk v0 eject
belljar-ctl disk s0 eject
SH
    local disk=size=64M,removable
    bj -v --guard warning=warn --disk $disk,serial=s0,bus=scsi,lab --disk $disk,serial=s1,bus=scsi --disk $disk,serial=u0,bus=usb,lab --disk size=64M,serial=v0,lab -- sh ./media.sh
    cat out
    want_code 0
    local name
    for name in s0 s1 u0; do
        want_line "^$name: No medium found$"
        want_line "^written to $name$"
    done
    want_no_line 'not ejected|not held'
    want_err 'the guest holds the medium of the disk s0: it is mounted, or open'
    want_line '^held, and still written to s0$'
    want_line '^by force$'
    want_line '^what hung has failed$'
    want_line '^at last: written to s0$'
    want_err 'the medium of the disk v0 cannot be taken out: it is not `removable`'
    want_err 'control: disk s0: eject force'
}

# More orders than are done at once, by the pipe alone: none is lost, and what waits goes by the newest limit. No memory goes by the size of the disk.
test_many_orders_and_a_large_disk() {
    bj --disk size=64M,serial=data0,lab --disk size=8T,serial=large,lab -- sh -ec '
        n=0; while [ $n -lt 2600 ]; do echo "disk data0 heal"; n=$((n + 1)); done >/tmp/orders
        echo "disk data0 error read" >>/tmp/orders
        cat /tmp/orders >$BELLJAR_CTL
        belljar-ctl disk data0 counts >/dev/null
        if dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct; then exit 1; fi
        belljar-ctl disk data0 heal
        belljar-ctl disk data0 limit bytes=1
        dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct & dd=$!
        sleep 1
        belljar-ctl disk data0 limit none
        wait $dd
        blkdiscard /dev/vdb
        dd if=/dev/zero of=/dev/vdb bs=4096 count=1 seek=1000000000 oflag=direct conv=notrunc
        blkdiscard /dev/vdb'
    want_code 0
    want_err 'the command gives more than 1000 orders: the rest is done, and not recorded'
}

# A raw image is served as it is: whoever changes it meanwhile makes an error of the run, also over a power cut, and of the test that ran in a shared guest.
test_image_that_changes() {
    head -c 1M /dev/zero >ws/held.raw
    local order
    for order in : 'belljar-ctl power-cut x'; do
        (until [ -e ws/read ]; do sleep 0.2; done; printf CHG | dd of=ws/held.raw conv=notrunc; touch ws/changed) &
        bj --workspace-mode rw --disk "file=$dir/ws/held.raw,serial=d,lab" -- sh -c "
            [ \$BELLJAR_REBOOT_COUNT = 0 ] || exit 0
            dd if=/dev/vda bs=4k count=1 iflag=direct of=/dev/null; touch read
            until [ -e changed ]; do sleep 0.2; done; $order; exit 0"
        wait
        want_code 125
        want_err 'held.raw of the lab disk d was changed, or replaced, while the guest ran.*not to be believed'
        rm ws/read ws/changed
    done
    bj --workspace-mode rw --disk "file=$dir/ws/held.raw,serial=d,lab" -- sh -c 'dd if=/dev/vda bs=4k count=1 iflag=direct | head -c 3; [ $BELLJAR_REBOOT_COUNT = 1 ] || belljar-ctl reset x'
    want_code 0
}

# As a test of a file system would do it, on an image that nobody prepared: what was synced survives, what a disk loses is noticed.
# fixtures: debian-bookworm
test_in_an_image() {
    bj -v --image "$(fixture debian-bookworm)" --login root:belljar --disk size=256M,serial=data0,lab -- sh -ec '
        belljar-ctl mark begin
        disk=/dev/disk/by-id/virtio-data0
        mkfs.ext4 -q $disk
        mount $disk /srv
        belljar-ctl disk data0 mark made
        echo kept >/srv/f
        sync /srv/f
        [ "$(belljar-ctl disk data0 counts made | sed -n "s/^flushes //p")" -ge 1 ]
        # The journal cannot be written: the file system says so, and goes read-only.
        belljar-ctl disk data0 error write,flush
        echo lost >/srv/g; if sync /srv/g; then exit 1; fi
        if echo more >/srv/h && sync /srv/h; then exit 1; fi
        belljar-ctl disk data0 heal
        umount /srv
        fsck.ext4 -fy $disk || [ $? = 1 ]
        mount $disk /srv
        cat /srv/f
        su nobody -s /bin/sh -c "belljar-ctl disk data0 counts | grep -c ." '
    want_code 0
    [ "$(grep -c . out)" -ge 2 ]
    want_line '^kept$'
    want_line '^10$'
    want_line 'control: disk data0: error write,flush \(fault 1\)' err
    want_line 'mark: begin' err
}

# Whatever kills Belljar, no server stays; a server that is killed is no pass; and a host that is full is no answer of the disk.
test_servers_end_and_are_believed_only_alive() {
    (cd ws && exec "$BELLJAR" run --disk size=64M,serial=data0,lab -- sh -c 'touch up; sleep 600' >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
    until_true 120 test -e ws/up
    survivors | grep -q -e --lab-disk || fail "there is no server: $(survivors)"
    kill -KILL $pid; wait $pid 2>/dev/null || :
    until_true 5 no_survivors || fail "left: $(survivors)"
    rm ws/up
    (cd ws && exec "$BELLJAR" run --disk size=64M,serial=data0,lab -- sh -c 'touch up; sleep 20' >"$dir/out" 2>"$dir/err" </dev/null) & pid=$!
    until_true 120 test -e ws/up
    kill -KILL "$(survivors | sed -n '/--lab-disk/s/^ *\([0-9]*\) .*/\1/p')"
    code=0; wait $pid || code=$?
    want_code 125
    want_err 'the server of the lab disk data0 ended'
    bj --max-disk 16M --disk size=64M,serial=data0,lab -- dd if=/dev/urandom of=/dev/vda bs=1M count=60 oflag=direct
    want_code 125
    want_err 'max-disk'
    want_nothing_left
}

test_hotplug() {
    cat >ws/t.sh <<'TEST'
wait_for() { at=0; until eval "$1"; do at=$((at + 1)); [ $at -lt 100 ] || { echo "never: $1"; exit 9; }; sleep 0.2; done; }
echo kept | dd of=/dev/vda bs=4096 count=1 conv=sync oflag=direct 2>/dev/null
for disk in v0/vda s0/sda n0/nvme0n1; do
    name=${disk%/*} there=/sys/block/${disk#*/}
    wait_for "[ -e $there ]"
    belljar-ctl unplug disk $name || exit 1
    wait_for "[ ! -e $there ]"
    if belljar-ctl unplug disk $name 2>/dev/null; then echo "twice"; fi
    belljar-ctl plug disk $name || exit 1
    wait_for "[ -e $there ]"
    echo "$name is back"
done
dd if=/dev/vda bs=4096 count=1 iflag=direct 2>/dev/null | head -n 1 | tr -d '\0'
[ ! -e /sys/block/sdb ] || echo "the spare disk is there"
belljar-ctl plug disk spare; wait_for "[ -e /sys/block/sdb ]"; echo "the spare disk has come"
belljar-ctl unplug disk v0 surprise; wait_for "[ ! -e /sys/block/vda ]"
belljar-ctl plug disk v0; wait_for "[ -e /sys/block/vda ]"; dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct && echo "it reads again"
belljar-ctl unplug nic; wait_for "[ ! -e /sys/class/net/eth0 ]"
belljar-ctl plug nic; wait_for "[ -e /sys/class/net/eth0 ]"; echo "the card is back"
belljar-ctl plug cpu; wait_for "[ -e /sys/devices/system/cpu/cpu1 ]"; echo 1 >/sys/devices/system/cpu/cpu1/online; echo "processors $(nproc)"
belljar-ctl plug cpu || echo "no more processors"
belljar-ctl unplug cpu || echo "not without KVM"
echo online_movable >/sys/devices/system/memory/auto_online_blocks
total() { sed -n 's/^MemTotal: *\([0-9]*\) .*/\1/p' /proc/meminfo; }
before=$(total)
belljar-ctl plug memory 256M; wait_for "[ $(total) -eq $((before + 262144)) ]"
belljar-ctl unplug memory; wait_for "[ $(total) -eq $before ]"; echo "memory came and went"
before=$(date +%s); belljar-ctl clock +1h; after=$(date +%s); [ $((after - before)) -ge 3600 ] && echo "an hour later"
TEST
    local template
    for template in made found; do
        bj -v --spare-cpus 1 --spare-memory 512M --disk size=64M,serial=v0,lab --disk size=64M,serial=s0,bus=scsi --disk size=64M,serial=n0,bus=nvme \
            --disk size=64M,serial=spare,bus=scsi,unplugged -- bash ./t.sh
        cat out
        want_code 0
        for line in 'v0 is back' 's0 is back' 'n0 is back' kept 'the spare disk has come' 'it reads again' 'the card is back' 'processors 2' \
            'no more processors' 'not without KVM' 'memory came and went' 'an hour later'; do want_line "^$line\$"; done
        want_no_line 'twice|never|the spare disk is there'
        want_line 'control: machine: unplug disk v0 surprise' err
        want_err "template: $template"
    done
}
# fixtures: debian-bookworm
test_hotplug_of_an_image() {
    cat >ws/t.sh <<'TEST'
wait_for() { at=0; until eval "$1"; do at=$((at + 1)); [ $at -lt 200 ] || { echo "never: $1"; exit 9; }; sleep 0.2; done; }
id=/dev/disk/by-id
for disk in virtio-v0 nvme-QEMU_NVMe_Ctrl_n0 usb-QEMU_QEMU_HARDDISK_u0-0:0; do
    wait_for "[ -e $id/$disk ]"
    name=$(echo $disk | sed 's/-0:0//; s/.*[-_]//')
    belljar-ctl unplug disk $name && wait_for "[ ! -e $id/$disk ]"
    belljar-ctl plug disk $name && wait_for "[ -e $id/$disk ]"
    echo "$name is back"
done
count() { lsblk -dno SERIAL | grep -cx m0; }
echo "paths $(count)"
belljar-ctl unplug disk m0 path=1; wait_for '[ $(count) = 1 ]'; echo 'one path'
dd if=$(lsblk -dno PATH,SERIAL | sed -n 's/ *m0$//p') of=/dev/null bs=4096 count=1 iflag=direct && echo 'it reads by the other'
belljar-ctl plug disk m0 path=1; wait_for '[ $(count) = 2 ]'; echo 'two paths'
# A timer of the wall clock is due at once when that jumps; one of the other clock is not.
systemd-run -q --on-calendar="$(date -d '+30 min' '+%Y-%m-%d %H:%M:%S')" --timer-property=AccuracySec=1s touch /run/wall
systemd-run -q --on-active=30min --timer-property=AccuracySec=1s touch /run/monotonic
belljar-ctl clock +1h
wait_for '[ -e /run/wall ]'; [ ! -e /run/monotonic ] && echo 'the timer has seen the clock jump'
belljar-ctl wakeup 2s
echo mem >/sys/power/state
echo 'awake again'
echo written >$BELLJAR_OUT/after
TEST
    bj -v --image "$(fixture debian-bookworm)" --share disk --disk size=64M,serial=v0 --disk size=64M,serial=n0,bus=nvme --disk size=64M,serial=u0,bus=usb \
        --disk size=64M,serial=m0,bus=scsi,paths=2,lab -- bash ./t.sh
    cat out
    want_code 0
    for line in 'v0 is back' 'n0 is back' 'u0 is back' 'paths 2' 'one path' 'it reads by the other' 'two paths' 'the timer has seen the clock jump' \
        'awake again'; do want_line "^$line\$"; done
    want_line 'control: machine: wakeup 2s \(it is woken\)' err
}
test_orders_from_outside() {
    mkdir -p ws/t
    cat >ws/t/a.sh <<'TEST'
#!/bin/sh
# belljar: disks = [{ size = "64MiB", serial = "d0", lab = true }]
# belljar: orders = [{ on = "mark:go", order = "disk d0 error read" }, { at = "+1s", order = "unplug nic" }]
wait_for() { at=0; until eval "$1"; do at=$((at + 1)); [ $at -lt 300 ] || { echo "never: $1"; exit 9; }; sleep 0.2; done; }
dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct || exit 8
belljar-ctl mark go
wait_for '! dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null'
wait_for '[ ! -e /sys/class/net/eth0 ]'
belljar-ctl mark ready
wait_for '! dd if=/dev/zero of=/dev/vda bs=4096 count=1 oflag=direct 2>/dev/null'
TEST
    printf '#!/bin/sh\n# belljar: orders = [{ at = "+1h", order = "nmi" }]\ntrue\n' >ws/t/b.sh
    printf '[[suites]]\nname = "s"\ntests = ["t/*.sh"]\n' >ws/belljar.toml
    chmod +x ws/t/*.sh
    (cd ws && exec "$BELLJAR" test -v -j 1) >out 2>err &
    local run=$! i
    for i in $(seq 600); do grep -q 'mark.*ready' err out && break; sleep 0.2; done
    "$BELLJAR" ctl last/s/a.sh@host disk d0 error write >said || fail 'it was not done'
    grep -qx 'fault 2' said || fail "it says $(cat said)"
    if "$BELLJAR" ctl last/s/c.sh@host nmi 2>said; then fail 'there is no such test'; fi
    grep -q 's/a.sh@host' said || fail "it does not say what there is: $(cat said)"
    wait $run && fail 'a test that did not have what was ordered has passed'
    cat out err >both
    grep -q 'PASS .*s/a.sh@host' both || fail "$(tail -n 30 both)"
    grep -q 'ERROR .*s/b.sh@host' both || fail "$(tail -n 30 both)"
    grep -q '+1h nmi: the test ended before' both || fail 'it does not say why'
    if "$BELLJAR" ctl last nmi 2>said; then fail 'nothing runs any more'; fi
}

# What is in an image of any format, or in a chain of them, is on a lab disk, and the image is not written to.
test_images_of_all_formats() {
    head -c 3M /dev/urandom >ws/whole.raw
    truncate -s 16M ws/whole.raw
    dd if=ws/whole.raw of=ws/whole.raw bs=1M skip=0 seek=9 count=3 conv=notrunc 2>/dev/null
    local format disks=() formats=(qcow2 vmdk vdi vhdx vpc qed parallels)
    for format in "${formats[@]}"; do
        qemu-img convert -O "$format" ws/whole.raw "ws/a.$format"
        disks+=(--disk "file=a.$format,serial=$format,lab")
    done
    # A chain: what is above covers what is below.
    qemu-img create -q -f qcow2 -F vmdk -b a.vmdk ws/middle.qcow2
    qemu-img create -q -f qcow2 -F qcow2 -b middle.qcow2 ws/top.qcow2
    qemu-io -c 'write -q -P 0x5a 1M 64k' ws/middle.qcow2 >/dev/null
    qemu-io -c 'write -q -P 0xa5 2M 64k' ws/top.qcow2 >/dev/null
    qemu-img convert -O raw ws/top.qcow2 chain.raw
    md5sum ws/a.* ws/*.qcow2 >before
    bj -v "${disks[@]}" --disk file=top.qcow2,serial=chain,lab -- sh -c '
        for block in /sys/block/vd*; do
            disk=/dev/${block##*/} name=$(cat $block/serial)
            echo "$name: $(head -c 16777216 $disk | md5sum | cut -d" " -f1)"
            dd if=/dev/zero of=$disk bs=1M count=2 oflag=direct 2>/dev/null
            echo "$name written: $(head -c 16777216 $disk | md5sum | cut -d" " -f1)"
            belljar-ctl disk $name error read >/dev/null
            if dd if=$disk of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null; then echo "$name is read"; fi
        done'
    want_code 0
    cat out
    local sum written
    sum=$(md5sum <ws/whole.raw | cut -d' ' -f1)
    written=$( { head -c 2M /dev/zero; tail -c +2097153 ws/whole.raw; } | md5sum | cut -d' ' -f1)
    for format in "${formats[@]}"; do
        want_line "^$format: $sum$"
        want_line "^$format written: $written$"
    done
    want_line "^chain: $(md5sum <chain.raw | cut -d' ' -f1)$"
    want_no_line 'is read'
    md5sum --check --quiet before || fail 'an image was written to'
    [ "$(grep -c 'a raw copy of .* (made now' err)" = 8 ] || fail 'not each has a copy of its own'

    # Whatever of a chain changes makes another disk of it; what nobody has changed is copied once.
    qemu-img convert -O vmdk chain.raw ws/a.vmdk
    qemu-img convert -O raw ws/top.qcow2 chain.raw
    bj -v --disk file=top.qcow2,serial=chain,lab --disk file=a.vdi,serial=vdi,lab -- sh -c 'for disk in vda vdb; do head -c 16777216 /dev/$disk | md5sum | cut -d" " -f1; done'
    want_code 0
    want_out "$(md5sum <chain.raw | cut -d' ' -f1)" "$sum"
    want_err 'lab disk chain: .*made now'
    want_err 'lab disk vdi: .*made by an earlier run'

    # One that somebody writes to is no image of anything.
    qemu-io -c 'sleep 20000' ws/a.qed >/dev/null 2>&1 & local writer=$!
    sleep 1
    bj --disk file=a.qed,serial=q,lab -- true
    kill "$writer"; wait "$writer" || :
    want_code 125
    want_err 'in use|another process|lock'
}

# The boot disk as a lab disk: it loses what was not flushed, turns read-only, hangs and dies, and the test has its result all the same.
# fixtures: debian-bookworm
test_boot_disk() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<TOML
[guests.debian]
image = "$(fixture debian-bookworm)"
login = { user = "root", password = "belljar" }
boot-lab = true
[guests.host]
[[suites]]
name = "s"
tests = "t/*.sh"
guests = ["debian"]
TOML
    cat >ws/t/power.sh <<'TEST'
#!/bin/sh
set -ex
if [ -z "${BELLJAR_REBOOT_MARK:-}" ]; then
    [ "$(cat /sys/block/vda/serial)" = boot ]
    belljar-ctl disk boot mark begin
    echo synced >/var/tmp/synced; sync /var/tmp/synced /var/tmp
    [ "$(belljar-ctl disk boot counts begin | sed -n 's/^flushes //p')" -ge 1 ]
    echo lost >/var/tmp/lost
    dd if=/dev/urandom of=/var/tmp/direct bs=64k count=16 oflag=direct 2>/dev/null
    hostname >"$BELLJAR_OUT/name"; cp /etc/machine-id "$BELLJAR_OUT/id"
    belljar-ctl power-cut cut
fi
[ "$(cat /var/tmp/synced)" = synced ]
[ ! -s /var/tmp/lost ]
# A copy that has lost what it is called is called so again.
[ "$(hostname)" = "$(cat "$BELLJAR_OUT/name")" ]
cmp /etc/machine-id "$BELLJAR_OUT/id"
TEST
    cat >ws/t/readonly.sh <<'TEST'
#!/bin/sh
set -e
belljar-ctl disk boot error write
echo x >/var/tmp/x; sync || :
at=0; while (echo y >/var/tmp/y) 2>/dev/null; do at=$((at + 1)); [ $at -lt 20 ]; sleep 1; done
dmesg | grep -q 'EXT4-fs error'
echo result >"$BELLJAR_OUT/result"
TEST
    cat >ws/t/dead.sh <<'TEST'
#!/bin/sh
belljar-ctl disk boot error
if /usr/bin/perl -e 0; then exit 1; fi
echo result >"$BELLJAR_OUT/result"
TEST
    # The test's own programs are on the disk, so somebody else has to end this.
    cat >ws/t/hangs.sh <<'TEST'
#!/bin/sh
# belljar: orders = [{ on = "mark:ready", order = "disk boot hang" }, { at = "20s", order = "disk boot heal" }]
belljar-ctl mark ready
while belljar-ctl disk boot counts >/dev/null; do at=$((at + 1)); [ $at -lt 20 ] || break; done
perl -e 'print "perl was read\n"'
TEST
    cat >ws/t/stuck.sh <<'TEST'
#!/bin/sh
# belljar: timeout = "10s"
echo result >"$BELLJAR_OUT/result"
belljar-ctl disk boot hang
find / -xdev -type f -exec cat {} + >/dev/null
TEST
    cat >ws/t/elsewhere.sh <<'TEST'
#!/bin/sh
# belljar: boot-lab = true
# belljar: guests = ["host"]
TEST
    chmod +x ws/t/*.sh
    bjt -v -j1
    want_code 100
    local name
    for name in power readonly dead hangs; do want_line "PASS \[.*s/$name.sh@debian"; done
    want_line 'TIMEOUT \[.*s/stuck.sh@debian'
    want_line 'SKIP .*s/elsewhere.sh@host: skipped: it wants to break the boot disk, and this guest has none'
    want_line 'power-cut cut strict \(boot lost [1-9][0-9]* of '
    [ "$(find state -name result | wc -l)" = 3 ] || fail 'a result was lost'
    bj --boot-lab -- true
    want_code 2
    want_err 'boot-lab says something about --image, which is not given'
}

# A disk with the files of a directory, as they are: a lab disk, and one of QEMU's.
test_directories() {
    command -v mke2fs >/dev/null || [ -x /sbin/mke2fs ] || skip 'mke2fs is not there'
    mkdir -p ws/files/deep/er ws/small
    echo hello >ws/files/plain
    chmod 640 ws/files/plain
    ln ws/files/plain ws/files/deep/hard
    ln -s ../plain ws/files/deep/link
    ln -s /nonexistent ws/files/dangling
    mkfifo ws/files/fifo
    touch -d '2001-02-03 04:05:06 UTC' ws/files/deep/er
    truncate -s 300M ws/files/sparse
    head -c 9M /dev/urandom >ws/files/large
    local at
    for at in $(seq 500); do echo "$at" >"ws/files/deep/er/$at"; done
    touch -d '2001-02-03 04:05:06 UTC' ws/files/deep/er
    local attributes=
    if setfattr -n user.note -v kept ws/files/plain 2>/dev/null; then attributes=yes; fi
    cat >ws/see.sh <<'SH'
set -e
modprobe ext4
mkdir -p /tmp/m
for disk in vda vdb; do
    mount /dev/$disk /tmp/m
    cd /tmp/m
    echo "$disk: $(cat plain) $(stat -c '%a %h %u' plain) $(readlink deep/link) $(readlink dangling) $(stat -c %F fifo) $(stat -c %Y deep/er) $(ls deep/er | wc -l) $(stat -c '%s %b' sparse) $(md5sum <large | cut -d' ' -f1)"
    [ plain -ef deep/hard ] && echo "$disk: hard link"
    getfattr --only-values -n user.note plain 2>/dev/null | sed "s/^/$disk: note /"; echo
    echo written >new
    sync
    cd /
    umount /tmp/m
    echo "$disk: label $(blkid -o value -s LABEL /dev/$disk) size $(cat /sys/block/$disk/size)"
    if command -v e2fsck >/dev/null; then e2fsck -fn /dev/$disk >/dev/null 2>&1 && echo "$disk: sound"; fi
done
mount /dev/vda /tmp/m; belljar-ctl disk data0 error read; if cat /tmp/m/deep/er/* >/dev/null 2>&1; then echo "it is read"; fi
SH
    bj -v --disk directory=files,serial=data0,lab,label=things --disk directory=files,size=200M -- sh ./see.sh
    want_code 0
    cat out
    local disk sum
    sum=$(md5sum <ws/files/large | cut -d' ' -f1)
    for disk in vda vdb; do
        want_line "^$disk: hello 640 2 $(id -u) ../plain /nonexistent fifo 981173106 500 314572800 0 $sum$"
        want_line "^$disk: hard link$"
        [ -z "$attributes" ] || want_line "^$disk: note kept"
        want_line "^$disk: sound$"
    done
    want_line '^vda: label things '
    want_line '^vdb: label  size 409600$'
    want_no_line 'it is read'
    [ ! -e ws/files/new ] || fail 'the directory was written to'
    want_err 'an ext4 file system of 509 files in .*made now'

    # As long as nothing changes it is the same; then it is another.
    bj -v --disk directory=files,serial=data0,lab,label=things -- sh -c 'modprobe ext4; mkdir -p /tmp/m; mount /dev/vda /tmp/m && cat /tmp/m/plain; ls /tmp/m/new'
    want_line '^hello$'
    want_err 'made by an earlier run'
    want_err "cannot access '/tmp/m/new'"
    echo other >ws/files/plain
    bj -v --disk directory=files,serial=data0,lab,label=things -- sh -c 'modprobe ext4; mkdir -p /tmp/m; mount /dev/vda /tmp/m && cat /tmp/m/plain'
    want_line '^other$'

    # What does not go is told.
    bj --disk directory=files,size=4M -- true
    want_code 125
    want_err 'no file system of .* for the disk with .* could be made: mke2fs: .*give it a larger .size.'
    bj --disk directory=nowhere -- true
    want_code 125
    want_err 'no disk can be made of .*nowhere'
    (head -c 400M /dev/zero >ws/small/growing; while [ ! -e enough ]; do echo x >>ws/small/growing; sleep 0.001; done) & local writer=$!
    sleep 0.5
    bj --disk directory=small -- true
    touch enough; wait "$writer"
    rm ws/files/fifo # no guest has made it
    want_code 125
    want_err 'was changed meanwhile'
}
