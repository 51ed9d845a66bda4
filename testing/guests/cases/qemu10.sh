# shellcheck shell=bash
# shellcheck disable=SC2154 # run and lib.sh set dir, top
# Some of the other groups' cases on another QEMU than the one that is installed.

on_10() { # GROUP NAME
    BELLJAR_QEMU=$(fixture qemu-10)/qemu
    export BELLJAR_QEMU
    # shellcheck disable=SC1090
    . "$top/testing/guests/cases/$1.sh"
    "test_$2"
    grep -rqs "$BELLJAR_QEMU" "$dir/state" || [ "$2" = dry_run ] || fail 'that was another QEMU'
}

# fixtures: qemu-10
test_bytes_through_both_streams() { on_10 host bytes_through_both_streams; }
# fixtures: qemu-10
test_only_plain_files_are_left() { on_10 host only_plain_files_are_left; }
# fixtures: qemu-10
test_disks() { on_10 host disks; }
# fixtures: qemu-10
test_panic() { on_10 host panic; }
# fixtures: qemu-10
test_guest_powers_off() { on_10 host guest_powers_off; }
# fixtures: qemu-10
test_dry_run() { on_10 host dry_run; }
# fixtures: qemu-10
test_copies_are_apart() { on_10 template copies_are_apart; }
# fixtures: qemu-10 debian-bookworm
test_exit_code_streams_and_plain_files() { on_10 debian exit_code_streams_and_plain_files; }
# fixtures: qemu-10 installer-i386
test_console_session_is_exact() { on_10 initrd console_session_is_exact; }
# fixtures: qemu-10
test_kinds() { on_10 lab kinds; }
# fixtures: qemu-10
test_paths() { on_10 lab paths; }
# fixtures: qemu-10
test_usb() { on_10 lab usb; }
