# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# A stock Debian disk image, started by UEFI.

uefi() { bj -v --image "$(fixture debian-bookworm)" --login root:belljar --firmware uefi "$@"; }
no_boot() { want_no_line '^belljar: (template: made|template: none|access: login)' err; }
# Sets a variable of the firmware's that must not be there yet.
mark='v=/sys/firmware/efi/efivars/Mark-5a3c8e62-0c63-4d0f-9d1f-7c0d1a2b3c4d
    [ -e $v ] && exit 9
    printf "\007\0\0\0set" >$v && tail -c 3 $v'

# fixtures: debian-bookworm ovmf
test_uefi() {
    local before
    before=$(sha256sum <"$(fixture debian-bookworm)")
    with_ovmf
    export BELLJAR_CACHE_DIR=$dir/cache
    uefi -- sh -c "$mark"
    want_code 0
    want_line '^set$'
    want_line '^belljar: firmware: .*/OVMF_CODE_4M.fd \(UEFI, as .*/60-edk2-x86_64.json says\)' err
    want_line '^belljar: template: made' err
    # Each copy has variables of its own, and so have those that a template is made of.
    uefi -- sh -c "$mark; ls /sys/firmware/efi/efivars | grep -c ^BootCurrent-"
    no_boot
    want_out set1
    uefi --disk size=64M,serial=d0 -- sh -c "$mark; readlink -f /dev/disk/by-id/virtio-d0"
    no_boot
    want_out set/dev/vdb
    # The image says what it wants: without the code that a BIOS runs, UEFI. On another machine, with another controller for its disk.
    qemu-img convert -O raw "$(fixture debian-bookworm)" efi-only.raw
    dd if=/dev/zero of=efi-only.raw bs=440 count=1 conv=notrunc status=none
    bj -v --image "$dir/efi-only.raw" --login root:belljar --firmware auto --no-template --machine q35 --boot-bus sata -- sh -c "$mark; ls -d /sys/block/sda"
    want_code 0
    want_line '^belljar: firmware: .*/OVMF_CODE_4M.fd .*no code that a BIOS would run' err
    want_out set/sys/block/sda
    rm efi-only.raw
    [ "$(sha256sum <"$(fixture debian-bookworm)")" = "$before" ] || fail 'the image has changed'
}

# fixtures: ovmf
test_an_image_without_an_efi_boot_loader() {
    with_ovmf
    truncate -s 64M disk.raw
    printf '\125\252' | dd of=disk.raw bs=1 seek=510 conv=notrunc status=none
    bj --image "$dir/disk.raw" --image-format raw --firmware uefi --boot-timeout 120s -- true
    want_code 121
    want_err 'UEFI'
    want_err 'leave --firmware uefi out'
}

# What the kernel can do is known from its modules alone, and the chain of the boot stays the image's own.
# fixtures: debian-uki ovmf
test_a_unified_kernel_image() {
    local image
    image=$(fixture debian-uki)
    with_ovmf
    fill_workspace
    "$BELLJAR" doctor "$image" >out 2>err || fail "doctor refuses it: $(tail -n 3 out)"
    want_line 'loader +a unified kernel image'
    want_line 'kernel +[0-9.]+.*: with 9p, fuse'
    bj -v --image "$image" -- sh -c 'cat old/file; ls -d /sys/firmware/efi; exit 7'
    want_code 7
    want_line '^x$'
    want_line '^/sys/firmware/efi$'
    want_line '^belljar: access: credentials' err
    want_line '^belljar: share: fuse' err
}

# UEFI firmware starts the kernel that lies on its partition, with Belljar's program before its initramfs.
# fixtures: debian-sdboot ovmf
test_a_kernel_on_the_efi_partition() {
    with_ovmf
    fill_workspace
    bj -v --image "$(fixture debian-sdboot)" -- sh -c 'cat old/file; ls -d /sys/firmware/efi; exit 7'
    want_code 7
    want_line '^x$'
    want_line '^/sys/firmware/efi$'
    want_line '^belljar: access: initrd' err
    want_line '^belljar: boot: started as it is, not by PVH' err
}

# fixtures: debian-live
test_a_live_cd() {
    fill_workspace
    bj -v --image "$(fixture debian-live)" -- sh -c 'cat old/file; grep -o "^overlay / " /proc/mounts; exit 7'
    want_code 7
    want_line '^x$'
    want_line '^overlay / $'
    want_line '^belljar: firmware: bios' err
    want_line '^belljar: access: credentials' err
}

# Its disks are told of just before systemd takes what it is given.
# fixtures: debian-split
test_a_system_in_several_partitions() {
    fill_workspace
    bj -v --image "$(fixture debian-split)" -- sh -c 'cat old/file; grep -c " /usr ext4 ro\| /var ext4 rw" /proc/mounts; ls /dev/.belljar 2>/dev/null; exit 7'
    want_code 7
    want_line '^x$'
    want_line '^2$'
    want_no_line belljar
    want_line '^belljar: access: credentials' err
}
