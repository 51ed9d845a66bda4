# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# Debian 12 with its root on a logical volume, as its installer sets it up. Root is locked.

fixture_describe='Debian 12 disk with its root on LVM, root locked (systemd 252)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; need python3 python3; }

# In the place of lib.sh's, with the same arguments: the file system in the logical volume vg0/root, which has all of the partition.
lvm_ext4() {
    local root=$1 image=$2 offset=$3 size=$4 uuid=$5
    ext4 "$root" "$image" $((offset + (1 << 20))) $(((size - 1024) / 4096 * 4096)) "$uuid"
    physical_volume "$image" "$offset" $((size * 1024))
}

# physical_volume IMAGE OFFSET BYTES: the label and the metadata of a physical volume with one logical volume, as LVM's
# lib/format_text/layout.h and lib/label/label.c have them. LVM itself would want a block device for it.
physical_volume() {
    python3 - "$@" <<'END'
import struct
import sys
import zlib

image, offset, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SECTOR, EXTENT, DATA = 512, 8192, 2048
count = (size // SECTOR - DATA) // EXTENT


def crc(data):
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def identity(letter):
    return "-".join(letter * n for n in (6, 4, 4, 4, 4, 4, 6))


text = f'''vg0 {{
id = "{identity("g")}"
seqno = 1
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = {EXTENT}
max_lv = 0
max_pv = 0
metadata_copies = 0

physical_volumes {{
pv0 {{
id = "{identity("p")}"
device = "/dev/vda1"
status = ["ALLOCATABLE"]
flags = []
dev_size = {size // SECTOR}
pe_start = {DATA}
pe_count = {count}
}}
}}

logical_volumes {{
root {{
id = "{identity("r")}"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
creation_time = 1700000000
creation_host = "debian"
segment_count = 1
segment1 {{
start_extent = 0
extent_count = {count}
type = "striped"
stripe_count = 1
stripes = [
"pv0", 0
]
}}
}}
}}
}}
contents = "Text Format Volume Group"
version = 1
description = ""
creation_host = "debian"
creation_time = 1700000000
'''.encode() + b"\0"

area, area_size = 4096, (1 << 20) - 4096
header = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, area, area_size)
header += struct.pack("<QQII", SECTOR, len(text), crc(text), 0)
header = header.ljust(SECTOR - 4, b"\0")
label = identity("p").replace("-", "").encode() + struct.pack("<Q", size)
label += struct.pack("<QQQQ", DATA * SECTOR, 0, 0, 0) + struct.pack("<QQQQ", area, area_size, 0, 0)
label += struct.pack("<IIQQ", 2, 1, 0, 0)
checked = struct.pack("<I8s", 32, b"LVM2 001") + label
checked = checked.ljust(SECTOR - 20, b"\0")
with open(image, "r+b") as disk:
    disk.seek(offset + SECTOR)
    disk.write(struct.pack("<8sQI", b"LABELONE", 1, crc(checked)) + checked)
    disk.seek(offset + area)
    disk.write(struct.pack("<I", crc(header)) + header + text)
END
}

fixture_build() {
    eval "$(declare -f debian_disk | sed -e 's/ext4 "\$root"/lvm_ext4 "$root"/' -e 's/^1: \(.*\)type=.*/1: \1type=E6D6D379-F507-44C2-A23C-238F2A3DF928/' \
        -e 's/root=UUID=\$uuid ro/root=\/dev\/mapper\/vg0-root ro/' -e 's/UUID=%s \/ ext4/\/dev\/mapper\/vg0-root \/ ext4/' -e 's/insmod ext2/insmod lvm\ninsmod ext2/')"
    eval "$(declare -f install_grub_bios | sed 's/part_gpt ext2/part_gpt lvm ext2/')"
    debian_disk "$1" systemd-sysv,udev,dbus,kmod,iproute2,procps,lvm2 '
        echo uninitialized >"$root/etc/machine-id"
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
    '
}
