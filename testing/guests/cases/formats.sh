# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# The Debian disk in other formats.

format() {
    local image; image=$(fixture "debian-bookworm-$1")
    sha256sum "$image" >sum
    bj --image "$image" --login root:belljar -- sh -c 'touch /written; sync; echo "$(ls /mnt/hostos | wc -l) files"; exit 7'
    want_code 7
    want_out '0 files'
    sha256sum --quiet -c sum || fail 'the image has changed'
}

# fixtures: debian-bookworm-raw
test_raw() { format raw; }
# fixtures: debian-bookworm-vmdk
test_vmdk() { format vmdk; }
# fixtures: debian-bookworm-vdi
test_vdi() { format vdi; }
# fixtures: debian-bookworm-vhdx
test_vhdx() { format vhdx; }
