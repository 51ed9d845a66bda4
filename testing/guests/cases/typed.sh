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
