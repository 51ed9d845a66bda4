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
    local suite=$1 uri origin label codename main='' security=''
    while IFS='|' read -r uri origin label codename; do
        case $label in
            Debian) main=${main:-$uri} ;;
            Debian-Security) security=${security:-$uri} ;;
            # No lists downloaded yet: all that is known is the URI and the suite's name in it.
            *) [ -z "$origin" ] || [ "$origin" = Debian ] || continue
               case $codename:$uri in
                   *-security:*|*:*-security*|*:*/security*) security=${security:-$uri} ;;
                   *:*/debian/|*:*/debian) main=${main:-$uri} ;;
               esac ;;
        esac
    done < <(apt-get indextargets --format '$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(CODENAME)' 'Created-By: Packages' | sort -u)
    [ -n "$main" ] || die "apt's sources on this machine name no Debian mirror (see apt-get indextargets); add one, such as the line of a stock Debian install"
    printf 'deb %s %s main\n' "$main" "$suite"
    case $suite in sid|unstable) ;; *) [ -z "$security" ] || printf 'deb %s %s-security main\n' "$security" "$suite" ;; esac
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
    say "installing Debian $suite into a directory (packages: ${packages//,/ }), from:"
    sed "s/^/${fixture_name:-fixture}:     /" "$work/sources.list" >&2
    if ! as_root mmdebstrap "${options[@]}" "${@:4}" "$suite" "$root" "$work/sources.list" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "mmdebstrap failed; the lines above are the end of what it said"
    fi
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
# (offsets 0x5c of boot.img, 0x1f4 of core.img's first sector: GRUB's include/grub/i386/pc/boot.h).
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
    export MTOOLS_SKIP_CHECK=1
    mformat -i "$at" -T "$sectors" -h 64 -s 32 ::
    mmd -i "$at" ::/EFI ::/EFI/BOOT ::/EFI/debian
    mcopy -i "$at" "$binary" ::/EFI/BOOT/BOOTX64.EFI
    mcopy -i "$at" "$binary" ::/EFI/debian/grubx64.efi
    mcopy -i "$at" "$work/esp.cfg" ::/EFI/debian/grub.cfg
}
