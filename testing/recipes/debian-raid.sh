# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 12 with its root on a RAID 1 of Linux (metadata 1.2), of one disk. Root is locked, and systemd takes no credentials.

fixture_describe='Debian 12 disk with its root on Linux RAID 1 (metadata 1.2), root locked, no credentials (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; need python3 python3; }

# In the place of lib.sh's, with the same arguments: the file system in the array, which has all of the partition but its first mebibyte.
raid_ext4() {
    local root=$1 image=$2 offset=$3 size=$4 uuid=$5
    ext4 "$root" "$image" $((offset + (1 << 20))) $((size - 1024)) "$uuid"
    superblock "$image" "$offset" $((size * 1024))
}

# superblock IMAGE OFFSET BYTES: what is 4 KiB from the start of an array's device (struct mdp_superblock_1 in Linux' include/uapi/linux/raid/md_p.h). mdadm
# itself would want a block device for it.
superblock() {
    python3 - "$@" <<'END'
import struct
import sys

image, offset, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SECTOR, DATA, SUPER, DEVICES = 512, 2048, 8, 1
data = size // SECTOR - DATA
uuid = bytes.fromhex("b311ba5eb311ba5eb311ba5eb311ba5e")
# The first device is active; there are no others.
roles = struct.pack("<H", 0) + b"\xff\xff" * 127
block = struct.pack("<IIII16s32sQIIQIIIIII", 0xA92B4EFC, 1, 0, 0, uuid, b"debian:root", 1700000000, 1, 0, data, 0, DEVICES, 0, 0, 0, 0)
block += b"\0" * (128 - len(block))
# data_offset, data_size, super_offset, recovery_offset, dev_number, cnt_corrected_read, device_uuid, devflags, bblog_shift, bblog_size, bblog_offset
block += struct.pack("<QQQQII16sBBHI", DATA, data, SUPER, 0, 0, 0, uuid[::-1], 0, 0, 0, 0)
# utime, events, resync_offset (all is in step), sb_csum, max_dev
block += struct.pack("<QQQII", 1700000000, 1, 0xFFFFFFFFFFFFFFFF, 0, 128)
block += b"\0" * (256 - len(block)) + roles
words = sum(struct.unpack(f"<{len(block) // 4}I", block))
checksum = (words & 0xFFFFFFFF) + (words >> 32)
block = block[:216] + struct.pack("<I", checksum & 0xFFFFFFFF) + block[220:]
with open(image, "r+b") as disk:
    disk.seek(offset + SUPER * SECTOR)
    disk.write(block)
END
}

fixture_build() {
    eval "$(declare -f debian_disk | sed -e 's/ext4 "\$root"/raid_ext4 "$root"/' -e 's/^1: \(.*\)type=.*/1: \1type=A19D880F-05FC-4D3B-A006-743F0F84911E/' \
        -e 's/insmod ext2/insmod mdraid1x\ninsmod ext2/' \
        -e 's/ ro console=/ ro systemd.import_credentials=no console=/')"
    eval "$(declare -f install_grub_bios | sed 's/part_gpt ext2/part_gpt mdraid1x ext2/')"
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,mdadm '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
    '
}
