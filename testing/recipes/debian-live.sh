# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# A live system's CD that also boots from a disk: Debian 12 in a squashfs, found by live-boot. Root is locked.

fixture_describe="image of a live system's CD (ISO 9660): Debian 12, live-boot, root locked (systemd 252)"
fixture_suffix=iso

fixture_needs() {
    need mmdebstrap mmdebstrap; need mksquashfs squashfs-tools; need xorriso xorriso; need grub-mkrescue grub-common; need mformat mtools
    [ -d /usr/lib/grub/i386-pc ] || missing_packages+=(grub-pc-bin)
    [ -d /usr/lib/grub/x86_64-efi ] || missing_packages+=(grub-efi-amd64-bin)
}

fixture_build() {
    local root=$work/root cd=$work/cd
    debian_root bookworm "$root" systemd-sysv,udev,dbus,kmod,iproute2,procps,live-boot,live-boot-initramfs-tools,linux-image-amd64,zstd
    as_root sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
    mkdir -p "$cd/live" "$cd/boot/grub"
    cp "$root"/boot/vmlinuz-* "$cd/live/vmlinuz"
    cp "$root"/boot/initrd.img-* "$cd/live/initrd.img"
    as_root mksquashfs "$root" "$cd/live/filesystem.squashfs" -comp zstd -Xcompression-level 3 -quiet -no-progress
    cat >"$cd/boot/grub/grub.cfg" <<'END'
set timeout=3
menuentry "Live system (amd64)" {
    linux /live/vmlinuz boot=live components console=tty0 console=ttyS0,115200
    initrd /live/initrd.img
}
END
    grub-mkrescue -o "$1" "$cd" >"$work/mkrescue.log" 2>&1 || { tail -n 20 "$work/mkrescue.log" >&2; die 'grub-mkrescue failed; the lines above are the end of what it said'; }
}
