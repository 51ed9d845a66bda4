# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# Images whose kernel has no virtio: on SATA or IDE, over the second serial port, with the workspace on a disk.

# Both ways: `belljar run`'s options.
both_ways() {
    rm -rf ws state/runs; mkdir -p ws/d
    echo before | tee ws/file ws/gone >/dev/null
    printf '#!/bin/sh\necho it runs\n' >ws/run; chmod 755 ws/run
    bj -v --image "$(fixture debian-no-virtio)" "$@" -- sh -c './run; cat file; echo more >>file; rm gone; echo new >d/new; echo left >"$BELLJAR_OUT/left"
        lsmod | grep -c virtio; exit 3'
    want_code 3
    want_err 'session: agent on the second serial port'
    want_err 'share: disk .*is in the guest'
    want_line '^it runs$'; want_line '^before$'; want_line '^0$'
    [ "$(cat ws/file)" = $'before\nmore' ] || fail 'the host does not see what was appended'
    [ ! -e ws/gone ] && [ "$(cat ws/d/new)" = new ] || fail "$(find ws -ls)"
    [ "$(cat state/runs/*/out/left)" = left ] || fail 'what it left is not there'
}

# Nothing is said of it: a boot, and a copy of that, by a unit for systemd.
# fixtures: debian-no-virtio
test_an_image_for_real_machines_is_got_into_as_it_is() {
    both_ways
    want_err 'boot bus: sata .the image.s kernel has no virtio disks'
    want_err 'network card: e1000e'
    want_err 'agent: on the disk of shares'
    want_err 'access: credentials'
    want_err 'template: made'
    both_ways
    want_err 'template: found'
    # Its card works, with the address that a copy gives it.
    bj --image "$(fixture debian-no-virtio)" -- sh -c 'for i in $(seq 60); do ip -4 -o addr show scope global | grep "10\.0\.2\." && exit; sleep 1; done; exit 1'
    want_code 0
}

# By its login, on the older controller, with a disk more; and a copy of that.
# fixtures: debian-no-virtio
test_by_its_login_on_ide() {
    local template
    for template in made found; do
        both_ways --login root:belljar --boot-bus ide --disk size=1M,serial=data
        want_err "template: $template"
        if [ $template = made ]; then want_err 'access: login'; fi
    done
    bj --image "$(fixture debian-no-virtio)" --login root:belljar --boot-bus ide --disk size=1M,serial=data -- lsblk -dno NAME,SERIAL
    want_line '^sdb +data'; want_line '^sdc +belljar-share'
}

# Its own kernel and initramfs, started directly.
# fixtures: debian-no-virtio
test_beside_its_own_init() {
    both_ways --no-template --access initrd
    want_err 'access: initrd'
}

# A disk on NVMe cannot be frozen, and boots all the same.
# fixtures: debian-no-virtio
test_on_nvme() {
    both_ways --boot-bus nvme
    want_err 'template: none .*NVMe'
}
