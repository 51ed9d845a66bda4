# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Guests with a root shell on the serial line and no way to the agent but what is typed there: the initramfs that had it has given way to another
# root, and no module for 9p or virtio is in that.

# gives_way FILE COMMAND: writes an initramfs that does; the command is run in the root that it gives way to.
gives_way() {
    local root=$dir/initramfs
    rm -rf "$root"; mkdir -p "$root"
    (cd "$root" && gunzip -c "$(fixture busybox-initrd)/initrd" | cpio -idm --quiet --no-absolute-filenames)
    cat >"$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /new
/bin/busybox mount -t tmpfs tmpfs /new
/bin/busybox mkdir -p /new/bin /new/sbin /new/usr/bin /new/usr/sbin /new/proc /new/sys /new/dev /new/run /new/tmp /new/root
/bin/busybox cp /bin/busybox /new/bin/busybox
/bin/busybox cp /start /new/start
/bin/busybox mount -t devtmpfs devtmpfs /new/dev
exec /bin/busybox switch_root -c /dev/console /new /start
END
    cat >"$root/start" <<END
#!/bin/busybox sh
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
$2
cd /root
while :; do setsid cttyhack sh -l; done
END
    chmod 755 "$root/init" "$root/start"
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$1"
    rm -rf "$root"
}

typed() { bj --kernel "$(fixture busybox-initrd)/vmlinuz" --initrd "$dir/initrd" -v --workspace none "$@"; }

# Streams apart, a whole input, a signal, a terminal: what a shell on the console does not give.
# fixtures: busybox-initrd
test_a_root_that_has_taken_the_agent_away() {
    gives_way "$dir/initrd" true
    head -c 300k /dev/urandom >stdin
    typed -- sh -c 'cat; echo err >&2; ls -A /run /tmp /dev/shm >&2; kill -9 $$'
    want_code 137
    cmp stdin out
    want_err 'agent: typed over the console .*the root is another than the initramfs.*base64 -d, gunzip -c and sha256sum'
    want_err '100 % typed'
    want_err 'session: agent on the second serial port'
    want_line '^err$' err
    want_no_line '^\.belljar' err # what was typed is gone
    typed -- sh -c 'exit 7' # a copy has it
    want_code 7
    want_err 'template: found'
    want_no_line 'typed over the console' err
}

# Nowhere may anything run that was not there before: the shell on the console does all.
# fixtures: busybox-initrd
test_what_the_guest_lacks_is_said() {
    gives_way "$dir/initrd" 'for d in run tmp dev/shm var/tmp; do mkdir -p /$d; mount -t tmpfs -o noexec tmpfs /$d; done'
    typed -- sh -c 'echo out; exit 7'
    want_code 7
    want_out out
    want_err 'session: sh on the console .*nor can it be typed over the console: it does not run in '
}

# A stock Debian in which nothing of Belljar's can run: neither from the share with the agent, nor from anywhere that it could be typed to.
agentless() { # FILE
    local root="$1?offset=$((40960 * 512))"
    qemu-img convert -O raw "$(fixture debian-bookworm)" "$1"
    cat >mount.sh <<'WRAPPER'
#!/bin/sh
# What is shared read-only, as the share with the agent is, can be run by nobody.
case " $* " in *trans=virtio*,ro\ *) exec /bin/mount -o noexec "$@" ;; esac
exec /bin/mount "$@"
WRAPPER
    debugfs -R 'cat /root/.profile' "$root" >profile 2>/dev/null
    cat >>profile <<'PROFILE'
if [ ! -e /run/prepared ]; then
    : >/run/prepared
    for d in /run /dev/shm; do mount -o remount,noexec $d; done
    for d in /tmp /var/tmp; do mount -t tmpfs -o noexec tmpfs $d; done
fi
PATH=/root/bin:$PATH
PROFILE
    printf '%s\n' 'mkdir /root/bin' "write $dir/mount.sh /root/bin/mount" 'set_inode_field /root/bin/mount mode 0100755' 'rm /root/.profile' \
        "write $dir/profile /root/.profile" 'set_inode_field /root/.profile mode 0100644' | debugfs -w -f - "$root" >/dev/null 2>&1
    debugfs -R 'cat /root/.profile' "$root" 2>/dev/null | grep -q /root/bin || fail 'the image is not as it is to be'
}

# What belljar-ctl does where a shell on the console does all: a disk that fails, what was asked of it, marks, devices, and a reboot in the middle.
# fixtures: debian-bookworm
test_orders_without_the_agent() {
    agentless "$dir/disk.raw"
    export BELLJAR_CACHE_DIR=$dir/cache
    cat >ws/test.sh <<'TEST'
#!/bin/sh
disk=/dev/disk/by-id/virtio-data0
case ${BELLJAR_REBOOT_MARK-} in
"")
    set -e
    belljar-ctl mark begun
    dd if=/dev/zero of=$disk bs=4k count=4 oflag=direct conv=fsync 2>/dev/null
    [ "$(belljar-ctl disk data0 device)" = "$(readlink -f /dev/disk/by-id/virtio-data0)" ] || exit 4
    belljar-ctl disk data0 mark before
    dd if=/dev/zero of=$disk bs=4k count=4 oflag=direct conv=fsync 2>/dev/null
    belljar-ctl disk data0 counts before | grep -E '^(written-bytes|flushes) '
    fault=$(belljar-ctl disk data0 error write)
    echo "$fault"
    if dd if=/dev/zero of=$disk bs=4k count=1 oflag=direct 2>dd.err; then echo 'the error was swallowed'; exit 1; fi
    grep -o 'Input/output error' dd.err
    belljar-ctl disk data0 heal
    dd if=/dev/zero of=$disk bs=4k count=1 oflag=direct 2>/dev/null
    su nobody -s /bin/sh -c 'belljar-ctl mark "by nobody"'
    belljar-ctl link down
    until [ "$(cat /sys/class/net/e*/carrier)" = 0 ]; do sleep 0.2; done
    belljar-ctl link up
    if belljar-ctl disk data1 error; then exit 2; fi
    if belljar-ctl wakeup 5s 2>wakeup.err; then exit 5; fi
    grep -o 'does not survive a suspend' wakeup.err >&2
    echo written >"$BELLJAR_OUT/first"
    cat /proc/sys/kernel/random/boot_id >/var/tmp-boot
    belljar-ctl reboot again
    echo 'it lived on' ;;
again)
    echo "$BELLJAR_REBOOT_COUNT $(cat "$BELLJAR_OUT/first")"
    [ "$(cat /var/tmp-boot)" != "$(cat /proc/sys/kernel/random/boot_id)" ] || exit 4
    echo changed | dd of=$disk bs=4k conv=sync,notrunc 2>/dev/null
    belljar-ctl power-cut cut strict
    echo 'it lived on' ;;
cut)
    head -c 7 $disk | od -An -c | tr -d ' '
    exit 3 ;;
esac
TEST
    bj -v --image "$dir/disk.raw" --access console --login root:belljar --disk size=64M,serial=data0,lab --timeout 20m -- sh ./test.sh
    want_err 'session: sh on the console'
    want_code 3
    want_out 'written-bytes 16384' 'flushes 1' 'fault 1' 'Input/output error' 'healed 1' '1 written' '\0\0\0\0\0\0\0'
    want_line 'mark: begun$' err
    want_line 'mark: by nobody$' err
    want_err 'machine: reboot again \(it is up again; '
    want_err 'machine: power-cut cut strict \(it is up again; '
    want_no_line '\.belljar' <(ls -A state/runs/*/out)
}
