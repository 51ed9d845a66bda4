# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# A kernel with somebody else's initramfs, whose shell is on the serial line.

initrd() { local at; at=$(fixture "$1"); bj --kernel "$at/vmlinuz" --initrd "$at/initrd" "${@:2}"; }

# fixtures: busybox-initrd
test_busybox() {
    head -c 1M /dev/urandom >stdin
    initrd busybox-initrd -- sh -c 'cat; echo "to stderr" >&2; uname -n >result; cp /bin/busybox setuid; chmod 4755 setuid; exit 7'
    want_code 7
    cmp stdin out
    want_line '^to stderr$' err
    want_line '^busybox(-[0-9a-f]{6})?$' ws/result # a copy has a name of its own
}

# fixtures: busybox-initrd
test_busybox_signal_and_out() {
    mkdir results
    initrd busybox-initrd --out "$dir/results" --env 'A=two words' --cwd /tmp -- sh -c 'echo "$A"; pwd; echo left >"$BELLJAR_OUT/file"; kill -9 $$'
    want_code 137
    want_out 'two words' /tmp
    [ "$(cat results/file)" = left ]
}

# fixtures: busybox-initrd
test_what_shares_nothing_loads_no_9p() {
    initrd busybox-initrd -v --access init --workspace none -- \
        sh -c 'grep -w 9p /proc/filesystems; ls -d "$BELLJAR_OUT"; >"$BELLJAR_OUT/file" && exit 7'
    want_code 7
    want_out /run/belljar/out
    want_err 'share: none'
}

# fixtures: installer-amd64
test_installer() {
    initrd installer-amd64 --append rdinit=/bin/sh --workspace none -- sh -c 'echo out; echo err >&2; uname -r; exit 7'
    want_code 7
    want_line '^out$'
    want_line '^6\.1\.0'
    want_line '^err$' err
}

# fixtures: installer-amd64
test_guest_without_9p_says_so() {
    initrd installer-amd64 --append rdinit=/bin/sh -- true
    want_code 125
    want_err 9p
}

# fixtures: installer-i386
test_guest_that_cannot_run_the_agent() {
    initrd installer-i386 -v --append rdinit=/bin/sh --workspace none -- sh -c 'echo out; echo err >&2; uname -m; exit 7'
    want_code 7
    want_out out i686
    want_line '^err$' err
    want_err 'agent'
}

# fixtures: installer-i386
test_console_session_is_exact() {
    head -c 100k /dev/urandom >stdin
    initrd installer-i386 --append rdinit=/bin/sh --workspace none --env "A=it's" --cwd /bin -- \
        sh -c 'cat; echo "$A $PWD" >&2; kill -9 $$'
    want_code 137
    cmp stdin out
    want_line "^it's /bin\$" err
}

# fixtures: installer-i386
test_console_session_panic() {
    initrd installer-i386 --append rdinit=/bin/sh --workspace none -- sh -c 'mount -t proc proc /proc; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_err panic
}

# Orders, and a reboot, where nothing is shared: all of it goes over the console.
# fixtures: installer-i386
test_orders_over_the_console() {
    # shellcheck disable=SC2016
    initrd installer-i386 -v --append rdinit=/bin/sh --workspace none -- sh -c '
        echo "$BELLJAR_REBOOT_COUNT ${BELLJAR_REBOOT_MARK-none}"
        if [ "$BELLJAR_REBOOT_COUNT" = 0 ]; then
            belljar-ctl mark begun && belljar-ctl link down || exit 1
            if belljar-ctl disk d0 error; then exit 2; fi
            belljar-ctl reboot again
            echo "it lived on"
        fi
        echo "mark late" >"$BELLJAR_CTL_DIR/late"
        exit 7'
    want_code 7
    want_out '0 none' '1 again'
    want_line '^this guest has no lab disks' err
    want_line 'mark: begun$' err
    want_line 'mark: late$' err
    want_err 'machine: link down$'
    want_err 'machine: reboot again \(it is up again; '
}
