# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Somebody else's initramfs: a stock Debian kernel and a busybox whose shell sits on the serial line. It has the modules
# for virtio and 9p, but loads none of them: that is for whoever comes in.

fixture_describe='directory with a stock kernel (vmlinuz) and a busybox initramfs (initrd), a root shell on ttyS0'
fixture_suffix=d

fixture_needs() { need cpio cpio; need depmod kmod; need dpkg-deb dpkg; }

fixture_build() {
    local out=$1 root=$work/root kernel version module
    debian_unpack bookworm amd64 "$work/unpacked" linux-image-amd64 busybox-static
    kernel=$(echo "$work"/unpacked/boot/vmlinuz-*) version=${kernel##*/vmlinuz-}
    mkdir -p "$out" "$root"/{bin,sbin,etc,proc,sys,dev,tmp,root,run,usr/bin,usr/sbin,"lib/modules/$version"}
    cp "$work/unpacked/bin/busybox" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    # A flat set of modules with what they need, which depmod then puts in order.
    depmod -b "$work/unpacked" "$version"
    for module in virtio_pci virtio_console virtio_blk virtio_net 9p 9pnet_virtio; do
        modprobe -d "$work/unpacked" -S "$version" --show-depends "$module" | sed -n 's/^insmod \(\S*\).*/\1/p'
    done | sort -u | while read -r module; do
        mkdir -p "$root/${module#"$work/unpacked/"}"; rmdir "$root/${module#"$work/unpacked/"}"
        cp "$module" "$root/${module#"$work/unpacked/"}"
    done
    cp "$work/unpacked/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$version/"
    depmod -b "$root" "$version"
    cat >"$root/init" <<'END'
#!/bin/sh
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
hostname busybox
ip link set lo up
echo "busybox on $(uname -r)"
cd /root
while :; do setsid cttyhack sh -l; done
END
    chmod 755 "$root/init"
    cp "$kernel" "$out/vmlinuz"
    initramfs "$root" "$out/initrd"
}
