# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# The embedded default guest: this machine's userland.

test_exit_code() {
    bj -- sh -c 'echo out; echo err >&2; exit 7'
    want_code 7
    want_out out
    want_line '^err$' err
}

test_signal() {
    bj -- sh -c 'kill -9 $$'
    want_code 137
    want_err 'SIGKILL|signal 9'
}

test_command_not_found() {
    bj -- /no/such/program
    want_code 127
    want_err '/no/such/program'
}

test_bytes_through_both_streams() {
    head -c 10M /dev/urandom >stdin
    bj -- sh -c 'tee /dev/stderr | cat; echo "the end" >&2; exit 3'
    want_code 3
    cmp stdin out
    # Belljar's own lines may stand around it, but not inside.
    python3 -c 'import sys; sys.exit(open("stdin","rb").read() + b"the end\n" not in open("err","rb").read())' || fail 'stderr differs'
}

test_streams_stay_apart() {
    head -c 10M /dev/urandom >ws/random
    bj -q -- sh -c 'cat random; echo "only this" >&2'
    want_code 0
    cmp ws/random out
    [ "$(cat err)" = 'only this' ] || fail 'standard error has more than the command wrote'
}

test_standard_input() {
    printf 'one\ntwo' >stdin
    bj -- sh -c 'wc -c; read x || echo "end of input"'
    want_code 0
    want_out 7 'end of input'
    bj --no-stdin -- sh -c 'wc -c'
    want_out 0
}

test_input_that_is_not_read() {
    head -c 5M /dev/zero >stdin
    bj -- sh -c 'exit 4'
    want_code 4
}

test_workspace_is_written() {
    mkdir ws/made-before
    echo from-the-host >ws/made-before/file
    bj -- sh -ec 'test "$PWD" = /mnt/hostos; cat made-before/file; echo from-the-guest >new; mkdir -p a/b; echo deep >a/b/c; rm made-before/file'
    want_code 0
    want_out from-the-host
    [ "$(cat ws/new)" = from-the-guest ]
    [ "$(cat ws/a/b/c)" = deep ]
    [ ! -e ws/made-before/file ]
    [ "$(stat -c %u:%g ws/new)" = "$(id -u):$(id -g)" ] || fail "not the user's own: $(stat -c %u:%g ws/new)"
}

test_only_plain_files_are_left() {
    bj -- sh -c '
        cp /bin/true setuid; chmod u+s setuid; chmod 6755 setuid
        cp /bin/true owned; chown 1234:1234 owned
        (umask 0; mkdir -m 7777 directory; touch directory/inside)
        mknod block b 8 0; mknod char c 1 3
        cp /bin/true capable; setcap cap_net_admin+ep capable
        ln -s /etc/shadow link; ln -s ../../../../etc up
        cp -a /bin/true archived; chown 5:5 -h link
        install -m 4711 -o 7 -g 7 /bin/true installed
        python3 -c "import os; os.close(os.open(\"sticky\", os.O_CREAT | os.O_WRONLY, 0o4755))"
        python3 -c "import os; f = os.open(\"late\", os.O_CREAT | os.O_WRONLY, 0o644); os.fchmod(f, 0o6755)"
        exit 9'
    want_code 9
    ls -lan ws
    [ -e ws/setuid ] && [ -e ws/owned ] && [ -d ws/directory ] && [ -L ws/link ] || fail 'a plain part of it is missing'
    [ -z "$(find ws -type b -o -type c -o -type s)" ] || fail 'device nodes'
    [ -z "$(find ws -perm /6000)" ] || fail 'set-uid or set-gid bits'
    [ -z "$(find ws ! -uid "$(id -u)" -o ! -gid "$(id -g)")" ] || fail 'foreign owners'
    [ -z "$(getcap ws/* 2>/dev/null)" ] || fail "capabilities: $(getcap ws/*)"
}

test_workspace_read_only() {
    echo kept >ws/file
    bj --workspace-mode ro -- sh -c 'cat file; echo x >file || echo refused; mkdir d || echo refused; rm -f file || echo refused; mount -o remount,rw /mnt/hostos; echo x >new || echo refused; exit 5'
    want_code 5
    want_out kept refused refused refused refused
    [ "$(cat ws/file)" = kept ]
    [ "$(ls ws)" = file ]
}

test_workspace_copy_on_write() {
    echo kept >ws/file
    bj --workspace-mode cow -- sh -ec 'echo changed >file; echo more >new; cat file new; rm file; ls'
    want_code 0
    want_out changed more new
    [ "$(cat ws/file)" = kept ]
    [ "$(ls ws)" = file ]
}

test_workspace_none() {
    bj --workspace none -- sh -c 'ls -A /mnt/hostos 2>/dev/null | wc -l; pwd'
    want_code 0
    want_line '^0$'
}

test_output_directory() {
    mkdir results
    bj --out "$dir/results" --workspace-mode ro -- sh -ec 'echo left >"$BELLJAR_OUT/file"; mkdir "$BELLJAR_OUT/d"; head -c 3M /dev/zero >"$BELLJAR_OUT/d/zeros"; chown 5:5 "$BELLJAR_OUT/file"'
    want_code 0
    [ "$(cat results/file)" = left ]
    [ "$(stat -c %s results/d/zeros)" = 3145728 ]
    [ "$(stat -c %u results/file)" = "$(id -u)" ]
}

test_environment_directory_user() {
    BJ_PASSED='from outside' bj --env 'A=two words' --env EMPTY= --env BJ_PASSED --cwd /tmp --user nobody -- \
        sh -c 'echo "$A"; echo "${EMPTY-unset}"; echo "$BJ_PASSED"; pwd; id -un; id -u; echo "${BELLJAR_LOGIN-no login}"'
    want_code 0
    want_out 'two words' '' 'from outside' /tmp nobody 65534 'no login'
    bj --user 1234 -- id -u
    want_out 1234
    bj --user no-such-user -- true
    want_code 126 # as shells have it for a command that cannot be started
    want_err no-such-user
}

test_arguments_are_not_touched() {
    bj -- printf '%s\n' '' 'two  words' '$HOME' "it's" 'a"b' 'back\slash' '*' '--' '-n' $'tab\there' 'ünï'
    want_code 0
    want_out '' 'two  words' '$HOME' "it's" 'a"b' 'back\slash' '*' '--' '-n' $'tab\there' 'ünï'
}

test_guest_has_what_a_system_has() {
    bj -- sh -c '
        for at in /proc /sys /dev /run /tmp; do mountpoint -q $at && echo "$at"; done
        test -n "$(hostname)" && echo hostname
        grep -q 0.0.0.0 /etc/hosts || echo hosts
        ip link show lo | grep -q "[<,]UP" && echo lo
        touch /new /etc/new /usr/new /var/new && echo writable
        echo x >/dev/null && test -c /dev/urandom && test -e /dev/fd/1 && echo dev
        test -w /tmp && mktemp >/dev/null && echo tmp
        sh -c "exit 0" & wait $! && echo children
        echo "$PATH"'
    want_code 0
    want_out /proc /sys /dev /run /tmp hostname hosts lo writable dev tmp children "$PATH:/run/belljar/bin"
    [ ! -e /new ] && [ ! -e /etc/new ] && [ ! -e /usr/new ] || fail "the host's root was written to"
}

test_guest_is_another_machine() {
    bj -- cat /proc/sys/kernel/random/boot_id
    want_code 0
    [ "$(cat out)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
}

test_memory_and_processors() {
    bj --memory 512MiB --cpus 2 -- sh -c 'nproc; awk "/MemTotal/ { print (\$2 > 380000 && \$2 < 524288) }" /proc/meminfo'
    want_code 0
    want_out 2 1
}

test_disks() {
    head -c 8M /dev/urandom >image
    cp image before
    cp image ws/image
    bj --disk size=64M,serial=data0 --disk "file=$dir/image,serial=data1" -- sh -ec '
        PATH=$PATH:/sbin:/usr/sbin
        for serial in /sys/block/*/serial; do
            disk=$(basename $(dirname $serial))
            echo "$(cat $serial) $(cat /sys/block/$disk/size)"
            case $(cat $serial) in
                data0) mkfs.ext4 -q /dev/$disk; mkdir /tmp/m; mount -t ext4 /dev/$disk /tmp/m; touch /tmp/m/file; umount /tmp/m ;;
                data1) cmp /dev/$disk image; echo spoilt >/dev/$disk; sync; head -c 7 /dev/$disk ;;
            esac
        done'
    want_code 0
    want_line '^data0 131072$'
    want_line '^data1 16384$'
    want_line '^spoilt$'
    cmp image before || fail 'a disk image was written to'
}

test_a_disk_may_hold_an_archive() {
    echo 'from the archive' >note
    tar -cf data.tar note
    local before; before=$(sha256sum <data.tar)
    bj --disk "file=$dir/data.tar" -- sh -ec 'cd /tmp && tar -xf /dev/vda && cat note && echo gone >/dev/vda'
    want_code 0
    want_out 'from the archive'
    [ "$(sha256sum <data.tar)" = "$before" ] || fail 'the archive has changed'
    gzip data.tar
    bj --disk "file=$dir/data.tar.gz" -- true
    want_code 125
    want_err 'packed with gzip; unpack it first'
}

test_timeout() {
    bj --timeout 2s -- sh -c 'echo started; sleep 1000'
    want_code 124
    want_out started
    want_err 'time.?out|timed out'
}

test_timeout_of_one_that_ignores_signals() {
    bj --timeout 2s -- sh -c 'trap "" TERM INT HUP; echo started; while :; do sleep 100; done'
    want_code 124
}

test_panic() {
    bj -- sh -c 'echo before; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_out before
    want_err panic
}

test_guest_powers_off() {
    bj -- sh -c 'echo 1 >/proc/sys/kernel/sysrq; echo o >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_err 'power'
}

test_guest_reboots() {
    bj -- sh -c 'echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_err 'reboot|reset'
}

test_killing_everything_else() {
    # Neither PID 1, which is Belljar's own here, nor the shell itself is killed by this.
    bj --timeout 60s -- sh -c 'kill -9 -1; echo alone; exit 5'
    want_code 5
    want_out alone
}

test_closing_everything_is_no_pass() {
    # The command dies with its streams closed first.
    bj --timeout 60s -- sh -c 'exec 0<&- 1>&- 2>&-; kill -TERM $$'
    want_code 143
}

test_process_left_behind_does_not_hold_the_run() {
    bj --timeout 60s -- sh -c 'sleep 1000 & echo done; exit 6'
    want_code 6
    want_out "done"
}

test_full_disk_on_the_host_is_no_pass() {
    code=0
    (cd ws && "$BELLJAR" run -- sh -c 'head -c 1M /dev/zero' >/dev/full 2>"$dir/err") || code=$?
    cat err
    want_code 125
    want_err 'no space left'
}

test_reader_that_goes_away() {
    (cd ws && timeout 120 "$BELLJAR" run -- yes 2>"$dir/err" || true) | head -n 1 >out
    want_out y
}

test_console_flood() {
    bj -- sh -c 'head -c 300k /dev/urandom | base64 >/dev/console; echo out; exit 3'
    want_code 3
    want_out out
}

test_guest_cannot_reach_the_terminal() {
    bj -vv -- sh -c 'printf "\033]0;evil\007\033[2J\n" >/dev/console; sleep 1; exit 0'
    want_code 0
    if grep -q $'\033\|\007' err; then fail 'control sequences of the guest on standard error'; fi
}

test_network_none() {
    bj --nic none -- sh -c 'for n in /sys/class/net/*; do [ "${n##*/}" = lo ] || [ "${n##*/}" = sit0 ] || echo "$n"; done; exit 2'
    want_code 2
    [ ! -s out ] || fail "there is a network card: $(cat out)"
}

test_dry_run() {
    BELLJAR_LOGIN=root:SECRET-PASSWORD bj --dry-run --disk size=64M,serial=with,,comma --memory 512M --append ignore_loglevel -- echo never
    want_code 0
    want_line ' -nodefaults '
    want_no_line SECRET-PASSWORD
    want_no_line SECRET-PASSWORD err
    # Pasted elsewhere, it starts: its guest's kernel finds the disk, and the agent its root.
    mkdir pasted
    (cd pasted && exec timeout 300 sh -e "$dir/out" </dev/null >"$dir/console" 2>"$dir/errors") & local pid=$!
    until_true 280 grep -aq 'vda.* 131072 512-byte' console || fail "what is pasted does not start: $(cat errors; tail -c 500 console)"
    kill $pid
    wait $pid || :
    until_true 5 no_survivors || fail "left running: $(survivors)"
}

test_choices_are_said() {
    bj -v --accel tcg -- true
    want_code 0
    want_err 'tcg'
    want_err 'kernel'
}

test_accelerator_is_probed() {
    # On a machine whose /dev/kvm opens but cannot run a guest this hangs if the node is trusted.
    bj -v -- true
    want_code 0
    want_err 'kvm'
}

test_run_directory() {
    bj --run-dir "$dir/logs" -- sh -c 'echo on-the-console >/dev/console; exit 1'
    want_code 1
    find logs -type f
    want_line '^on-the-console' logs/console.log
    [ -n "$(find logs -name '*.jsonl' -size +0)" ] || fail 'no event log'
    grep -rqs qemu-system logs || fail 'no QEMU command line'
}

test_usage_errors() {
    bj --no-such-option -- true
    want_code 2
    bj --
    want_code 2
    bj --memory lots -- true
    case $code in 2 | 125) ;; *) fail "a wrong size ended with $code" ;; esac
    want_err memory
}

test_what_is_missing_is_named() {
    bj --image "$dir/no-such-image" -- true
    want_code 125
    want_err "no-such-image"
    bj --kernel "$dir/no-such-kernel" -- true
    want_code 125
    want_err "no-such-kernel"
    bj --workspace "$dir/no-such-workspace" -- true
    want_code 125
    want_err "no-such-workspace"
    bj --qemu "$dir/no-such-qemu" -- true
    want_code 125
    want_err "no-such-qemu"
    echo 'no kernel' >not-a-kernel
    bj --kernel "$dir/not-a-kernel" -- true
    want_code 125
    want_err "not-a-kernel"
}

test_rootfs_directory() {
    mkdir -p root/bin root/etc
    cp "$(command -v busybox)" root/bin/busybox
    ln -s busybox root/bin/sh
    echo in-this-root >root/etc/marker
    bj --rootfs "$dir/root" -- /bin/sh -c 'read x </etc/marker; echo $x; echo w >/written; exit 8'
    want_code 8
    want_out in-this-root
    [ ! -e root/written ]
}

test_interrupted_once_ends_cleanly() {
    (cd ws && exec setsid "$BELLJAR" run -- sh -c 'echo started; exec sleep 1000' >"$dir/out" 2>"$dir/err") &
    until_true 120 grep -q started out || fail "never started: $(tail -5 err)"
    kill -INT "$(belljar_pid)"
    code=0; wait $! || code=$?
    cat err
    want_code 130
    rm -rf ws/*
}

test_terminated_ends_cleanly() {
    (cd ws && exec setsid "$BELLJAR" run -- sh -c 'echo started; exec sleep 1000' >"$dir/out" 2>"$dir/err") &
    until_true 120 grep -q started out || fail "never started: $(tail -5 err)"
    kill -TERM "$(belljar_pid)"
    code=0; wait $! || code=$?
    cat err
    want_code 143
}

test_two_at_once() {
    (cd ws && exec "$BELLJAR" run -- sh -c 'echo first' >"$dir/out1" 2>"$dir/err1") & first=$!
    bj -- sh -c 'echo second'
    wait $first
    want_code 0
    want_out second
    [ "$(cat out1)" = first ]
}

test_doctor() {
    code=0
    "$BELLJAR" doctor >out 2>err || code=$?
    cat out err
    grep -qi qemu out
    want_line '[Kk][Vv][Mm]'
    want_line '[Kk]ernel'
}

# A TPM of its own for each guest: what one has extended no other sees, and nothing of it stays.
test_a_tpm() {
    command -v swtpm >/dev/null || skip 'there is no swtpm here'
    local pcr=/sys/class/tpm/tpm0/pcr-sha256/23 text
    # TPM2_PCR_Extend of PCR 23 with no password session (the TPM 2.0 library specification, part 3, section 22.2).
    # shellcheck disable=SC2016 # the guest expands it
    text='printf "\200\002\0\0\0\101\0\0\001\202\0\0\0\027\0\0\0\011\100\0\0\011\0\0\0\0\0\0\0\0\001\0\013%032d" 0 >/tmp/extend; '
    text+="cat $pcr; cat /tmp/extend >/dev/tpm0; cat $pcr"
    bj -v --tpm -- sh -c "$text"
    want_code 0
    cp out first
    [ "$(sed -n 1p first)" = "$(printf '%064d' 0)" ] || fail "PCR 23 is not new: $(cat first)"
    [ "$(sed -n 2p first)" != "$(sed -n 1p first)" ] || fail "PCR 23 was not extended: $(cat first)"
    want_err 'template: none .*TPM'
    bj --tpm -- sh -c "$text"
    diff out first || fail 'the second guest has not a new TPM'
    if find state -name tpm | grep .; then fail 'the state of a TPM is left'; fi
}
