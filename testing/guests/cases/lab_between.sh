# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2034,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# What a test leaves of lab disks to the next one: nothing in a copy, and in a shared guest nothing that the next one would fail for.

# What a test has ordered ends with it, also what hangs for that.
test_in_a_shared_guest() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*.sh"
isolation = "suite"
disks = [{ size = "64MiB", serial = "data0", lab = true }]
TOML
    printf '#!/bin/sh\nset -e\nbelljar-ctl disk data0 hang read\nbelljar-ctl disk data0 limit bytes=1KiB\nbelljar-ctl link down\ndd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct >/dev/null 2>&1 & sleep 1\n' >ws/t/a.sh
    printf '#!/bin/sh\ndd if=/dev/vda of=/dev/null bs=1M count=1 iflag=direct\n' >ws/t/b.sh
    chmod +x ws/t/*
    bjt -v -j1
    want_code 0
    want_line '2 passed'
    want_line 'left lab disks otherwise than they were, which was ended: data0 \(1 fault, a limit\)'
    want_line 'cable plugged out; it was plugged in'
}

# A disk that one test leaves mounted, swapped to, or in a mapped device is not the next test's, nor are its errors; what a set-up mounted stays.
test_left_in_use() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*.sh"
setup = "setup.sh"
isolation = "suite"
disks = [
    { size = "64MiB", serial = "data0", lab = true },
    { size = "64MiB", serial = "data1", lab = true, bus = "scsi" },
    { size = "64MiB", serial = "kept", lab = true },
    { size = "64MiB", serial = "plain" },
]
TOML
    cat >ws/setup.sh <<'SH'
#!/bin/sh
set -e
mkfs.ext4 -q /dev/vdb && mkdir -p /mnt/kept && mount /dev/vdb /mnt/kept
SH
    # Its errors come for as long as it is mounted.
    cat >ws/t/1-mounted.sh <<'SH'
#!/bin/sh
set -e
mkfs.ext4 -q /dev/vda && mkdir -p /mnt/x && mount -o errors=continue /dev/vda /mnt/x
echo x >/mnt/x/f && sync /mnt/x/f
belljar-ctl disk data0 error write
echo y >/mnt/x/g; sync /mnt/x/g || echo failed
SH
    printf '#!/bin/sh\nset -e\n[ -e /mnt/kept/lost+found ] && ! grep /dev/vda /proc/mounts\nmkfs.ext4 -q -F /dev/vda\nmkswap /dev/sda && swapon /dev/sda\n' >ws/t/2-swap.sh
    printf '#!/bin/sh\nset -e\nmodprobe dm_mod 2>/dev/null || :\ndmsetup create held --table "0 1024 linear $(cat /sys/block/vda/dev) 0"\n' >ws/t/3-mapped.sh
    printf '#!/bin/sh\nset -e\nunshare -m sh -c "mkfs.ext4 -q -F /dev/vda && mount /dev/vda /srv && touch /srv/x"\n' >ws/t/4-elsewhere.sh
    printf '#!/bin/sh\nset -e\nmkfs.ext4 -q /dev/vdc && mkdir -p /mnt/y && mount /dev/vdc /mnt/y\nmkdir -p /mnt/z && mount --bind /mnt/kept /mnt/z\n' >ws/t/5-plain.sh
    printf '#!/bin/sh\n[ -e /mnt/kept/lost+found ] && [ -e /mnt/y/lost+found ]\n' >ws/t/6-last.sh
    chmod +x ws/setup.sh ws/t/*
    bjt -v -j1
    want_code 0
    want_line '6 passed'
    want_line 'has left lab disks in use: data0 \(vda: mounted at /mnt/x\)'
    want_line 'has left lab disks in use: data1 \(sda: swap\)'
    want_line 'has left lab disks in use: data0 \(vda: part of dm-0 \(held\)\)'
    [ "$(grep -c 'a new guest is taken' out)" = 3 ] || fail 'not three guests were given up'
}

# The same through loop devices, of which a disk knows nothing: of the disk itself, and of a file on it.
# fixtures: debian-bookworm
test_left_behind_a_loop() {
    suite_on debian-bookworm <<'TOML'
setup = "setup.sh"
isolation = "suite"
disks = [{ size = "64MiB", serial = "data0", lab = true }, { size = "64MiB", serial = "kept", lab = true }]
TOML
    local disk=/dev/disk/by-id/virtio-data0
    printf '#!/bin/sh\nset -e\nmkfs.ext4 -q /dev/disk/by-id/virtio-kept\nmkdir -p /mnt/kept\nmount /dev/disk/by-id/virtio-kept /mnt/kept\n' >ws/setup.sh
    printf '#!/bin/sh\nset -e\nmodprobe loop\nmkdir -p /media/x\nmkfs.ext4 -qF %s\nlosetup /dev/loop0 %s\nmount /dev/loop0 /media/x\n' "$disk" "$disk" >ws/t/1-mounted.sh
    printf '#!/bin/sh\nset -e\nmodprobe loop\nmkdir -p /mnt/q\nmkfs.ext4 -qF %s\nmount %s /mnt/q\numount /mnt/q\nmkswap %s\nlosetup /dev/loop3 %s\nswapon /dev/loop3\n' "$disk" "$disk" "$disk" "$disk" >ws/t/2-swap.sh
    printf '#!/bin/sh\nset -e\n! grep loop /proc/swaps\nmodprobe loop\ntruncate -s 1M /mnt/kept/file\nlosetup /dev/loop5 /mnt/kept/file\n' >ws/t/3-file.sh
    # One of the system's own files is nobody's lab disk; nor is one that is taken away.
    printf '#!/bin/sh\nset -e\nmodprobe loop\ntruncate -s 1M /root/file\nlosetup /dev/loop1 /root/file\nlosetup /dev/loop2 %s\nlosetup -d /dev/loop2\n' "$disk" >ws/t/4-others.sh
    printf '#!/bin/sh\n[ -e /root/file ]\n' >ws/t/5-last.sh
    chmod +x ws/setup.sh ws/t/*
    bjt -v -j1
    want_code 0
    want_line '5 passed'
    want_line 'has left lab disks in use: data0 \(vd.: behind loop0, mounted at /media/x through loop0\)'
    want_line 'has left lab disks in use: data0 \(vd.: behind loop3, swap through loop3\)'
    want_line 'has left lab disks in use: kept \(vd.: a file behind loop5\)'
    [ "$(grep -c 'a new guest is taken' out)" = 3 ] || fail 'not three guests were given up'
}

# A disk that the set-up has mounted and a test makes fail: what is mounted does not come back when the fault ends. One that only reads what was done keeps its guest.
test_set_up_that_is_broken() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*.sh"
setup = "setup.sh"
isolation = "suite"
disks = [{ size = "64MiB", serial = "data0", lab = true }, { size = "64MiB", serial = "free", lab = true }]
TOML
    printf '#!/bin/sh\nset -e\nmkfs.ext4 -q /dev/vda && mkdir -p /mnt/d && mount /dev/vda /mnt/d\n' >ws/setup.sh
    printf '#!/bin/sh\nbelljar-ctl disk data0 error write; echo x >/mnt/d/x; sync; exit 0\n' >ws/t/1-error.sh
    printf '#!/bin/sh\nset -e\necho y >/mnt/d/y; sync /mnt/d/y; touch /here\nbelljar-ctl disk data0 counts\nbelljar-ctl disk free error; ! dd if=/dev/vdb of=/dev/null bs=4k count=1\n' >ws/t/2-other.sh
    printf '#!/bin/sh\nset -e\n[ -e /here ]; echo z >/mnt/d/z; sync /mnt/d/z; belljar-ctl disk data0 cut; belljar-ctl disk data0 on\n' >ws/t/3-cut.sh
    printf '#!/bin/sh\nset -e\n! [ -e /here ]; echo z >/mnt/d/z; sync /mnt/d/z\n' >ws/t/4-last.sh
    chmod +x ws/setup.sh ws/t/*
    bjt -v -j1
    want_code 0
    want_line '4 passed'
    [ "$(grep -c 'a new guest is taken.*made lab disks fail that were in use before it.*: data0 (vda: mounted at /mnt/d)' out)" = 2 ] || fail 'not two guests were given up'
}

# A disk that a test has the kernel take away, or refuse to write to, is there for the next one, which has a new guest. One that came back is as it was.
test_left_without_a_disk() {
    mkdir -p ws/t
    cat >ws/belljar.toml <<'TOML'
[[suites]]
name = "s"
tests = "t/*.sh"
isolation = "suite"
disks = [{ size = "64MiB", serial = "data0", lab = true }, { size = "64MiB", serial = "plain" }, { size = "64MiB", serial = "fixed", lab = true, read-only = true }]
TOML
    cat >ws/t/1-read-only.sh <<'SH'
#!/bin/sh
blockdev --setro /dev/vda
SH
    cat >ws/t/2-unbound.sh <<'SH'
#!/bin/sh
set -e
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct
basename "$(readlink -f /sys/block/vda/device)" >/sys/bus/virtio/drivers/virtio_blk/unbind
SH
    cat >ws/t/3-back.sh <<'SH'
#!/bin/sh
set -e
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct
disk=$(basename "$(readlink -f /sys/block/vda/device)")
echo "$disk" >/sys/bus/virtio/drivers/virtio_blk/unbind
echo "$disk" >/sys/bus/virtio/drivers/virtio_blk/bind
blockdev --setro /dev/vdb
SH
    printf '#!/bin/sh\ntouch /here\n' >ws/t/4-next.sh
    printf '#!/bin/sh\n[ -e /here ]\n' >ws/t/5-last.sh
    chmod +x ws/t/*
    bjt -v -j1
    want_code 0
    want_line '5 passed'
    want_line 'left lab disks otherwise than they were: data0 \(vda is read-only now\)'
    want_line 'left lab disks otherwise than they were: data0 \(vda is not there any more\)'
    [ "$(grep -c 'a new guest is taken' out)" = 2 ] || fail 'not two guests were given up'
}

# Each test has the disk as the set-up left it, and its own faults.
# fixtures: debian-bookworm
test_each_copy_has_its_own() {
    suite_on debian-bookworm <<'TOML'
setup = "setup.sh"
setup-once = true
disks = [{ size = "64MiB", serial = "data0", lab = true }, { file = "image", serial = "data1", lab = true }]
TOML
    head -c 1M /dev/zero | tr '\0' x >ws/image
    sha256sum ws/image >sum
    cat >ws/setup.sh <<'SH'
#!/bin/sh
set -e
mkfs.ext4 -q -b 4096 /dev/disk/by-id/virtio-data0
mount /dev/disk/by-id/virtio-data0 /srv
echo of the set-up >/srv/word
umount /srv
SH
    local name
    for name in a b c; do
        cat >"ws/t/$name.sh" <<'SH'
#!/bin/sh
set -ex
mount /dev/disk/by-id/virtio-data0 /srv
grep -qx 'of the set-up' /srv/word
[ ! -e /srv/mine ]
[ "$(dd if=/dev/disk/by-id/virtio-data1 bs=4096 count=1 iflag=direct | tr -d x | wc -c)" = 0 ]
echo >/srv/mine
sync
umount /srv
[ "$(belljar-ctl disk data0 counts | sed -n 's/^faults //p')" = 0 ]
belljar-ctl disk data0 error read
if dd if=/dev/disk/by-id/virtio-data0 bs=4096 count=1 iflag=direct of=/dev/null; then exit 1; fi
dd if=/dev/zero of=/dev/disk/by-id/virtio-data1 bs=4096 count=1 oflag=direct
SH
    done
    chmod +x ws/*.sh ws/t/*
    bjt -v -j1
    want_code 0
    want_line '3 passed'
    want_line 'set-up `'
    sha256sum --quiet -c sum || fail 'an image has changed'
    bjt -v -j2
    want_code 0
    want_no_line 'set-up `'
    want_nothing_left
}
