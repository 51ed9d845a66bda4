# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Guests that nobody can log in to.

# What every such guest has to be like, however it was got into: booted, root's, and with nothing of Belljar's left in it.
state='[ "$(id -u)" = 0 ] && [ "$HOME" = /root ] && command -v mount >/dev/null || exit 3
    ls -d /.belljar* /run/.belljar* /tmp/.belljar* /dev/shm/.belljar* 2>/dev/null && exit 4
    [ "$(cat /proc/self/cgroup)" = 0::/ ] || { cat /proc/self/cgroup; exit 5; }
    for p in /proc/[0-9]*; do read -r n <$p/comm && [ "$n" = agetty ] && exit 0; done 2>/dev/null; exit 6'
no_boot() { want_no_line '^belljar: (template: made|template: none|booted)' err; }

# enters RUNG IMAGE [OPTION...]: by this rung from a boot, and then in a copy.
enters() {
    local rung=$1 image=$2 before
    shift 2
    export BELLJAR_CACHE_DIR=$dir/cache
    before=$(sha256sum <"$image")
    bj -v --image "$image" "$@" -- sh -c "$state"
    want_code 0
    want_line "^belljar: access: $rung " err
    want_line '^belljar: booted: yes \(agetty waits' err
    want_line '^belljar: session: agent on the virtio port' err
    want_line '^belljar: template: made' err
    bj -v --image "$image" "$@" -- sh -c "$state"
    want_code 0
    no_boot
    [ "$(sha256sum <"$image")" = "$before" ] || fail 'the image has changed'
}

# fixtures: debian-locked
test_by_credentials() { enters credentials "$(fixture debian-locked)" -w none; }

# fixtures: debian-trixie
test_by_a_unit_with_nothing_on_the_serial_line() { enters credentials "$(fixture debian-trixie)"; }

# fixtures: debian-cloud
test_without_9p() {
    enters credentials "$(fixture debian-cloud)"
    want_line '^belljar: share: fuse \(the agent mounted the workspace at /mnt/hostos \(rw\)' err
    bj --image "$(fixture debian-cloud)" --out "$dir/results" -- sh -c 'uname -r >made && cp made $BELLJAR_OUT/copy && systemctl is-system-running --wait'
    want_out running
    cmp ws/made results/copy || fail 'the output directory has not what the guest wrote'
    grep -q cloud ws/made || fail 'the workspace has not what the guest wrote'
}

# fixtures: debian-trixie
test_directly_beside_its_own_init() {
    enters initrd "$(fixture debian-trixie)" --access initrd
    want_line '^belljar: kernel: /boot/vmlinuz-.* of the image \(/boot/grub/grub.cfg of partition 1 boots "Debian' err
    bj --image "$(fixture debian-trixie)" --access initrd -- sh -c 'systemctl is-system-running; cat /proc/1/comm'
    want_out running systemd
}

# fixtures: debian-sysvinit
test_directly_where_its_own_boot_lets_nobody_in() {
    export BELLJAR_CACHE_DIR=$dir/cache
    bj -v --image "$(fixture debian-sysvinit)" -- sh -c 'cat /proc/1/comm; runlevel; ls /run/belljar/out'
    want_code 0
    want_line '^belljar: start: directly, without the image.s boot loader \(its root has no login without a password, and its init, sysvinit' err
    want_line '^belljar: access: initrd ' err
    want_line '^init$'
    want_line '^N 2$'
}

# fixtures: debian-locked
test_directly_where_its_systemd_takes_no_unit() {
    local root="$dir/closed.raw?offset=$((40960 * 512))"
    export BELLJAR_CACHE_DIR=$dir/cache
    qemu-img convert -O raw "$(fixture debian-locked)" "$dir/closed.raw"
    debugfs -R 'cat /boot/grub/grub.cfg' "$root" 2>/dev/null | sed 's/console=ttyS0,115200/& systemd.import_credentials=no/' >grub.cfg
    grep -q import_credentials grub.cfg || fail 'the kernel line is not what it was'
    printf 'cd /boot/grub\nrm grub.cfg\nwrite grub.cfg grub.cfg\n' | debugfs -w -f - "$root" >/dev/null 2>&1
    bj -v --image "$dir/closed.raw" -- sh -c "$state"
    want_code 0
    want_line "^belljar: note: nobody got in by the image's own boot" err
    want_line '^belljar: access: initrd ' err
    # That is known the next time.
    bj -v --image "$dir/closed.raw" -- cat /proc/cmdline
    want_code 0
    no_boot
    want_line 'import_credentials=no'
    want_line "^belljar: start: directly, without the image.s boot loader \(nobody got in by the image's own boot" err
}

# fixtures: debian-cloud
test_by_cloud_init() {
    local image
    image=$(fixture debian-cloud)
    enters cloud-init "$image" --access cloud-init
    # Nothing of the guest's own is touched but cloud-init's own files; and a disk of the user's keeps its name.
    # shellcheck disable=SC2016
    bj --image "$image" --access cloud-init --disk size=8MiB -- sh -c 'hostname; ls /etc/ssh/ssh_host_* /home /root/.ssh 2>/dev/null; lsblk -dno NAME,SIZE,SERIAL
        systemctl is-system-running --wait; cloud-init status'
    want_code 0
    want_line '^vdb +8M *$'
    want_line '^vdc +1M belljar-cidata *$'
    want_line '^running$'
    want_line '^status: done$'
}

# fixtures: debian-menu
test_past_a_boot_menu_that_waits() {
    enters credentials "$(fixture debian-menu)"
    bj -v --no-template --image "$(fixture debian-menu)" -- true
    want_code 0
    want_line "^belljar: boot menu: the choice that it shows \(GRUB's menu waited for a key" err
}

# fixtures: debian-trixie
test_a_picture_of_who_was_not_entered() {
    local picture
    bj --image "$(fixture debian-trixie)" --access console --boot-timeout 60s -- true
    want_code 124
    want_line 'ways in that were tried: login, shell; others, to be asked for with --access: initrd, .*credentials, ignition, cloud-init.*; or give a --login' err
    picture=$(sed -n 's/^ *a picture of its screen: //p' err)
    [ "$(head -c 8 "$picture" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] || fail "no PNG at '$picture'"
    # Text of the firmware's, of GRUB's or of the kernel's: an empty screen of that size is less than two KiB.
    [ "$(stat -c %s "$picture")" -gt 2500 ] || fail "nothing is on the picture ($(stat -c %s "$picture") bytes)"
}

# fixtures: debian-uefi ovmf
test_by_uefi_alone() {
    with_ovmf
    enters credentials "$(fixture debian-uefi)"
    want_line '^belljar: firmware: .*/OVMF_CODE_4M.fd .*the image has what UEFI starts, and no code that a BIOS would run' err
    bj --image "$(fixture debian-uefi)" -- sh -c 'ls -d /sys/firmware/efi; findmnt -no SOURCE /'
    want_out /sys/firmware/efi /dev/vda1
}

# fixtures: debian-lvm
test_on_a_logical_volume() {
    enters credentials "$(fixture debian-lvm)"
    enters initrd "$(fixture debian-lvm)" --access initrd
    bj --image "$(fixture debian-lvm)" --access initrd -- sh -c 'findmnt -no SOURCE /; systemctl is-system-running --wait'
    want_out /dev/mapper/vg0-root running
}

# fixtures: debian-btrfs
test_where_no_firmware_finds_anything() {
    enters initrd "$(fixture debian-btrfs)"
    want_line '^belljar: start: directly, without the image.s boot loader \(no firmware finds anything on it to start' err
    bj --image "$(fixture debian-btrfs)" -- sh -c 'findmnt -no FSTYPE /; systemctl is-system-running --wait'
    want_out btrfs running
}
