# shellcheck shell=bash
# shellcheck disable=SC2154 # set by testing/fixture
# What the recipes share. Sourced by testing/fixture, which has set: work (a scratch directory of this build, removed
# afterwards), cache (where downloads may be kept), here (the directory of the recipes).

say() { printf '%s: %s\n' "${fixture_name:-fixture}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# need COMMAND PACKAGE: the Debian package that brings a command which the recipe calls.
need() { command -v "$1" >/dev/null || missing_packages+=("$2"); }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi; }

# The mirrors that this machine's own apt uses, so that no host name stands here and a local mirror is honoured. Prints
# sources.list lines for the suite (a Debian release name) and its security updates.
# shellcheck disable=SC2016 # $(…) is apt's own syntax
apt_sources() {
    local suite=$1 options=${2:-} uri label main='' security=''
    while IFS='|' read -r uri label; do
        case $label in
            Debian) main=${main:-$uri} ;;
            Debian-Security) security=${security:-$uri} ;;
            # apt has downloaded no lists yet, and so knows no labels: all that tells is the URI.
            '$(LABEL)' | '') case $uri in
                */debian-security/ | */debian-security) security=${security:-$uri} ;;
                */debian/ | */debian) main=${main:-$uri} ;;
            esac ;;
        esac
    done < <(apt-get indextargets --format '$(REPO_URI)|$(LABEL)' 'Created-By: Packages' | sort -u)
    [ -n "$main" ] || die "apt's sources on this machine name no Debian mirror (see apt-get indextargets): add one, as a stock Debian has it"
    printf 'deb %s%s %s main\n' "$options" "$main" "$suite"
    [ -z "$security" ] || printf 'deb %s%s %s-security main\n' "$options" "$security" "$suite"
}

# debian_root SUITE DIRECTORY PACKAGES [mmdebstrap's options...]: a Debian root directory, without manual pages,
# documentation and translations, with downloads kept for the next build.
debian_root() {
    local suite=$1 root=$2 packages=$3 debs=$cache/debs path log=$work/mmdebstrap.log
    local -a options=(
        --variant=minbase --mode=root --format=directory --include="$packages"
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' --aptopt='APT::Install-Recommends "false"'
        --dpkgopt=force-unsafe-io
        --skip=download/empty --skip=essential/unlink # or the kept packages would be refused or removed
        --setup-hook="mkdir -p '$debs' \"\$1/var/cache/apt/archives\"; cp -l '$debs'/*.deb \"\$1/var/cache/apt/archives/\" 2>/dev/null || :"
        --customize-hook="cp -lu \"\$1\"/var/cache/apt/archives/*.deb '$debs'/ 2>/dev/null || :"
    )
    for path in man doc info locale lintian doc-base; do options+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
    apt_sources "$suite" >"$work/sources.list"
    say "installing Debian $suite into a directory: ${packages//,/ }; from"
    sed 's/^/    /' "$work/sources.list" >&2
    # The kernel's postinst and then a trigger would each write the initramfs, 20 s apiece; it is written once, here.
    case ,$packages, in
        *,linux-image-*) # shellcheck disable=SC2016 # expanded by the hook's shell
            options+=(--customize-hook='chroot "$1" update-initramfs -c -k all') ;;
    esac
    if ! as_root env INITRD=No mmdebstrap "${options[@]}" "${@:4}" "$suite" "$root" "$work/sources.list" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "mmdebstrap failed; the lines above are the end of what it said"
    fi
}

# debian_unpack SUITE ARCHITECTURE DIRECTORY PACKAGE...: the contents of packages, not installed, for whatever
# architecture, without touching this machine's own apt. A meta package stands for what it depends on directly.
debian_unpack() {
    local suite=$1 arch=$2 into=$3 state=$cache/apt-$1-$2 package names
    local -a apt=(-o "Dir::State=$state/lib" -o "Dir::State::status=$state/status" -o "Dir::Cache=$state/cache"
        -o "Dir::Etc::SourceList=$state/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null
        -o Dir::Etc::PreferencesParts=/dev/null -o "APT::Architecture=$arch" -o "APT::Architectures=$arch"
        -o Acquire::Languages=none -o Acquire::Retries=5 -o Debug::NoLocking=1 -o APT::Sandbox::User=)
    mkdir -p "$state/lib/lists/partial" "$state/cache/archives/partial" "$into" "$work/debs"
    : >"$state/status"
    apt_sources "$suite" "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] " >"$state/sources.list"
    say "downloading and unpacking for $suite/$arch: ${*:4}"
    apt-get "${apt[@]}" -qq update >&2 || die "apt-get update for $suite/$arch failed"
    for package in "${@:4}"; do
        names=$package
        case $package in
            linux-image-*) names=$(apt-cache "${apt[@]}" depends --important "$package" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p') ;;
        esac
        (cd "$work/debs" && apt-get "${apt[@]}" -qq download "${names:-$package}") || die "apt-get download ${names:-$package} failed"
    done
    for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$into"; done
    rm -r "$work/debs"
}

# debian_disk OUT PACKAGES SETUP: a bootable qcow2 of Debian bookworm. GPT as on Debian's cloud images (partition 1 the
# root, 14 for GRUB under a BIOS, 15 for EFI), the generic kernel, a kernel console on ttyS0, root's password "belljar".
# SETUP is a script that runs as root, with $root the directory, for what differs between the guests.
#
# Neither a loop device nor a mount: mke2fs fills the file system from the directory, and GRUB is written by hand.
debian_disk() {
    local out=$1 packages=$2 setup=$3 root=$work/root disk=$work/disk.raw uuid=b17e9a5c-3c61-4b0e-9f3a-5d2a1c7be110
    local mib=2048 bios=2048 esp=8192 first=40960 sectors # positions in sectors of 512 bytes
    sectors=$((mib * 2048 - first - 2048))
    debian_root bookworm "$root" "$packages,linux-image-amd64,zstd,grub-pc-bin,grub-efi-amd64-bin,grub2-common"

    say 'setting it up: password, file systems, network, serial console, GRUB'
    # shellcheck disable=SC2016 # expanded by the inner shell
    as_root env root="$root" uuid=$uuid bash -euo pipefail -c '
        export LC_ALL=C
        echo root:belljar | chpasswd -R "$root"
        echo debian >"$root/etc/hostname"
        printf "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n" >"$root/etc/hosts"
        printf "UUID=%s / ext4 errors=remount-ro 0 1\n" "$uuid" >"$root/etc/fstab"
        printf "GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200\"\nGRUB_TERMINAL=\"console serial\"\n" >"$root/etc/default/grub"
        kernel=$(basename "$root"/boot/vmlinuz-*) kernel=${kernel#vmlinuz-}
        mkdir -p "$root/boot/grub/i386-pc"
        cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
        cat >"$root/boot/grub/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set default=0
set timeout=0
insmod part_gpt
insmod ext2
search --no-floppy --fs-uuid --set=root $uuid
menuentry "Debian GNU/Linux" {
    echo "Loading Linux $kernel ..."
    linux /boot/vmlinuz-$kernel root=UUID=$uuid ro console=tty0 console=ttyS0,115200
    echo "Loading initial ramdisk ..."
    initrd /boot/initrd.img-$kernel
}
END
    '"$setup"

    say "writing a disk of $mib MiB: partitions, ext4 from the directory, GRUB"
    truncate -s ${mib}M "$disk"
    sfdisk --quiet "$disk" <<END
label: gpt
label-id: 6D1A3A0B-52C1-4C3C-8B16-2C0E1F0C9A01
14: start=$bios, size=$((esp - bios)), type=21686148-6449-6E6F-744E-656564454649
15: start=$esp, size=$((first - esp)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
1: start=$first, size=$sectors, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
END
    install_grub_bios "$root" "$disk" $bios $uuid
    install_grub_efi "$root" "$disk" $esp $((first - esp)) $uuid
    ext4 "$root" "$disk" $((first * 512)) $((sectors / 2)) $uuid
    say 'converting it to qcow2'
    qemu-img convert -f raw -O qcow2 "$disk" "$out"
}

debian_disk_needs() {
    need mmdebstrap mmdebstrap; need mke2fs e2fsprogs; need sfdisk fdisk; need qemu-img qemu-utils; need mformat mtools
}

# ext4 DIRECTORY IMAGE OFFSET KIBIBYTES UUID: a file system filled from a directory, without a mount. The features are
# those that GRUB 2.06 and kernel 5.10 read, whatever this machine's mke2fs.conf says.
ext4() {
    local root=$1 image=$2 offset=$3 size=$4 uuid=$5
    local features=none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum
    as_root mke2fs -q -F -t ext4 -O "$features" -I 256 -U "$uuid" -L root -d "$root" -E "offset=$offset,nodiscard" "$image" "${size}k" \
        || die "mke2fs could not fill $image from $root"
}

# write_le FILE OFFSET BYTES NUMBER: a little-endian number into a file in place.
write_le() {
    local i hex=''
    for ((i = 0; i < $3; i++)); do hex+=$(printf '\\x%02x' $((($4 >> (8 * i)) & 255))); done
    printf '%b' "$hex" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# install_grub_bios ROOT IMAGE SECTOR UUID: what grub-install does for a BIOS, without a block device: boot.img into the
# first sector and core.img into the BIOS boot partition that starts at SECTOR, each told where the next piece lies
# (offset 0x5c of boot.img, the list at 0x1f4 of core.img's first sector: GRUB's include/grub/i386/pc/boot.h).
install_grub_bios() {
    local root=$1 image=$2 sector=$3 uuid=$4 size
    # shellcheck disable=SC2016 # GRUB's variables
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\n' "$uuid" | as_root tee "$root/tmp/early.cfg" >/dev/null
    as_root chroot "$root" grub-mkimage -O i386-pc -p /boot/grub -c /tmp/early.cfg -o /tmp/core.img \
        biosdisk part_gpt ext2 search_fs_uuid normal configfile serial
    cp "$root/usr/lib/grub/i386-pc/boot.img" "$work/boot.img"
    cp "$root/tmp/core.img" "$work/core.img"
    as_root rm "$root/tmp/early.cfg" "$root/tmp/core.img"
    size=$((($(stat -c %s "$work/core.img") + 511) / 512))
    write_le "$work/boot.img" $((0x5c)) 8 "$sector"
    write_le "$work/core.img" $((0x1f4)) 8 $((sector + 1))
    write_le "$work/core.img" $((0x1fc)) 2 $((size - 1))
    write_le "$work/core.img" $((0x1fe)) 2 $((0x820))
    dd if="$work/boot.img" of="$image" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$image" bs=512 seek="$sector" conv=notrunc status=none
}

# install_grub_efi ROOT IMAGE SECTOR SECTORS UUID: an EFI system partition with Debian's own GRUB binary, which reads
# EFI/debian/grub.cfg.
install_grub_efi() {
    local root=$1 image=$2 sector=$3 sectors=$4 uuid=$5
    local at="$image@@$((sector * 512))" binary=$root/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi
    # shellcheck disable=SC2016 # GRUB's variables
    printf 'search.fs_uuid %s root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n' "$uuid" >"$work/esp.cfg"
    mformat -i "$at" -T "$sectors" -h 64 -s 32 ::
    mmd -i "$at" ::/EFI ::/EFI/BOOT ::/EFI/debian
    mcopy -i "$at" "$binary" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$at" "$binary" ::/EFI/debian/grubx64.efi
    mcopy -i "$at" "$work/esp.cfg" ::/EFI/debian/grub.cfg
}

# initramfs DIRECTORY OUT: a gzipped cpio archive, as a kernel unpacks it, all owned by root.
initramfs() { (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc -R 0:0 --quiet | gzip -1n) >"$2"; }

# debian_installer ARCHITECTURE OUT: kernel and initramfs of Debian 12's network installer. The package is data that any
# machine can unpack, so amd64's index serves for both.
debian_installer() {
    local images="$work/unpacked/usr/lib/debian-installer/images/12/$1/text/debian-installer/$1"
    debian_unpack bookworm amd64 "$work/unpacked" "debian-installer-12-netboot-$1"
    mkdir -p "$2"
    cp "$images/linux" "$2/vmlinuz"
    cp "$images/initrd.gz" "$2/initrd"
}
