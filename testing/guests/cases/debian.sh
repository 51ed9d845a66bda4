# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# A stock Debian disk image, as its users have it.

debian() { bj --image "$(fixture debian-bookworm)" --login root:belljar "$@"; }
unchanged() { [ "$(sha256sum <"$(fixture debian-bookworm)")" = "$before" ] || fail 'the image has changed'; }

# fixtures: debian-bookworm
test_make_check() {
    before=$(sha256sum <"$(fixture debian-bookworm)")
    mkdir results
    printf 'check:\n\t@echo "checked by $$(. /etc/os-release; echo $$ID $$VERSION_ID)"\n\t@echo found >result\n\t@echo kept >$$BELLJAR_OUT/kept\n\t@ps -o comm= -p 1\n\t@echo to stderr >&2\n\t@echo mark made >$$BELLJAR_CTL\n' >ws/Makefile
    debian -v --out "$dir/results" -- make check
    want_code 0
    want_out 'checked by debian 12' systemd
    want_line '^to stderr$' err
    want_line '^belljar: mark: made$' err
    [ "$(cat ws/result)" = found ]
    [ "$(cat results/kept)" = kept ]
    unchanged
}

# fixtures: debian-bookworm
test_exit_code_streams_and_plain_files() {
    before=$(sha256sum <"$(fixture debian-bookworm)")
    head -c 10M /dev/urandom >stdin
    debian --env 'A=two words' -- sh -c '
        cat; echo "$A, $(id -un), $PWD" >&2
        cp /bin/true setuid; chmod 6755 setuid; chown 1234:1234 setuid; mknod null c 1 3; setcap cap_net_admin+ep setuid
        touch /etc/written /usr/written; sync
        exit 7'
    want_code 7
    cmp stdin out
    want_line '^two words, root, /mnt/hostos$' err
    [ -e ws/setuid ]
    [ ! -c ws/null ]
    [ -z "$(getcap ws/setuid)" ]
    unchanged
}

# fixtures: debian-bookworm
test_signal_and_user() {
    debian --user nobody --cwd / -- sh -c 'id -un; pwd; kill -9 $$'
    want_code 137
    want_out nobody /
}

# fixtures: debian-bookworm
test_network_isolated() {
    # Something to reach on the host, if a guest could.
    mkdir www
    (cd www && exec python3 -c '
import http.server, sys
s = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
print(s.server_port, file=open("../port", "w"), flush=True)
s.serve_forever()') 2>/dev/null & server=$!
    trap 'kill $server 2>/dev/null' EXIT
    until_true 10 test -s port
    local address; address=$(hostname -I | cut -d' ' -f1)
    debian --env PORT="$(cat port)" --env ADDRESS="$address" --nic isolated -- bash -c '
        for try in $(seq 300); do ip -4 -o addr show scope global | grep -q inet && break; sleep 0.2; done
        ip -4 -o addr show scope global | grep -q inet && echo "DHCP answered"
        gateway=$(ip route | sed -n "s/^default via \([^ ]*\).*/\1/p")
        for to in $gateway 10.0.2.2 $ADDRESS; do
            timeout 10 bash -c "exec 3<>/dev/tcp/$to/$PORT" 2>/dev/null && echo "reached $to"
        done
        echo tried'
    want_code 0
    want_out 'DHCP answered' tried
}

# fixtures: debian-bookworm
test_network_user() {
    mkdir www
    (cd www && exec python3 -c '
import http.server
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(s.server_port, file=open("../port", "w"), flush=True)
s.serve_forever()') 2>/dev/null & server=$!
    trap 'kill $server 2>/dev/null' EXIT
    until_true 10 test -s port
    debian --env PORT="$(cat port)" --nic user -- bash -c '
        for try in $(seq 300); do ip -4 -o addr show scope global | grep -q inet && break; sleep 0.2; done
        timeout 20 bash -c "exec 3<>/dev/tcp/10.0.2.2/$PORT" && echo reached'
    want_code 0
    want_out reached
}

# fixtures: debian-bookworm
test_wrong_password() {
    bj --image "$(fixture debian-bookworm)" --login root:WRONG-SECRET --run-dir "$dir/logs" -- true
    want_code 125
    want_err 'login'
    want_no_line WRONG-SECRET err
    if grep -rl WRONG-SECRET logs state; then fail 'the password is in a log'; fi
}

# fixtures: debian-bookworm
test_no_login_given() {
    bj -v --image "$(fixture debian-bookworm)" -- id -u
    want_code 0
    want_out 0
    want_line '^belljar: access: credentials ' err
    bj --image "$(fixture debian-bookworm)" --access console -- true
    want_code 125
    want_err '--login'
}

# fixtures: debian-bookworm
test_password_from_the_environment_is_nowhere() {
    export BELLJAR_LOGIN=root:belljar
    bj -vv --image "$(fixture debian-bookworm)" --run-dir "$dir/logs" -- sh -c 'echo in; env; exit 2'
    want_code 2
    want_line '^in$'
    want_no_line 'BELLJAR_LOGIN'
    if grep -rl 'root:belljar' logs err out; then fail 'the password is in a log'; fi
}

# fixtures: debian-bookworm
test_panic() {
    debian -- sh -c 'echo before; echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_out before
    want_err panic
}

# fixtures: debian-bookworm
test_powers_off() {
    before=$(sha256sum <"$(fixture debian-bookworm)")
    debian -- sh -c 'echo before; systemctl poweroff; sleep 100'
    want_code 121
    want_err 'power'
    unchanged
}

# fixtures: debian-bookworm
test_reboots() {
    debian -- sh -c 'echo before; systemctl reboot; sleep 100'
    want_code 121
    want_err 'reboot|reset'
}

# fixtures: debian-bookworm
test_image_is_locked_while_it_runs() {
    local image=$dir/image.qcow2
    cp --reflink=auto "$(fixture debian-bookworm)" "$image"
    (cd ws && exec setsid "$BELLJAR" run --image "$image" --login root:belljar -- sh -c 'echo started; while [ ! -e end ]; do sleep 0.2; done' >"$dir/out" 2>"$dir/err") & run=$!
    until_true 300 grep -q started out || fail "never started: $(tail -5 err)"
    if qemu-io -f qcow2 -c 'write 0 512' "$image"; then fail 'another writer got in'; fi
    touch ws/end
    wait $run
    rm "$image"
}

# fixtures: debian-bookworm
test_killing_everything_is_no_pass() {
    # The agent dies of this, and nobody is left to vouch for an exit code.
    debian --timeout 1m -- sh -c 'kill -9 -1; sleep 5; exit 0'
    [ "$code" != 0 ] || fail 'a false pass'
}

# A service that systemd starts for whoever wants it, and that ends when nobody does, is no test's doing. One that a test has stopped is told, of the same kind too.
# fixtures: debian-bookworm
test_services_that_end_by_themselves() {
    suite_on debian-bookworm <<'TOML'
setup = "setup.sh"
isolation = "suite"
TOML
    # One of either end, both by a socket.
    cat >ws/setup.sh <<'SH'
#!/bin/sh
set -e
for name in brief long; do
    printf '[Socket]\nListenFIFO=/run/%s\n' $name >/run/systemd/system/$name.socket
done
printf '[Service]\nExecStart=/bin/sleep 5\n' >/run/systemd/system/brief.service
printf '[Service]\nExecStart=/bin/sh -c "trap \\"exit 0\\" TERM; while :; do sleep 1; done"\n' >/run/systemd/system/long.service
printf '[Service]\nExecStart=/bin/sleep 7000\n' >/run/systemd/system/plain.service
systemctl daemon-reload
systemctl start brief.socket long.socket
systemctl start brief.service long.service plain.service
SH
    printf '#!/bin/sh\nwhile systemctl is-active brief; do sleep 1; done\nn=0; while systemctl is-active systemd-fsckd && [ $n -lt 60 ]; do n=$((n + 1)); sleep 1; done\nsystemctl show systemd-fsckd brief\nexit 0\n' >ws/t/1-waits.sh
    printf '#!/bin/sh\nsystemctl stop long.service\n' >ws/t/2-stops.sh
    printf '#!/bin/sh\nsystemctl stop plain\n' >ws/t/3-stops.sh
    printf '#!/bin/sh\nexit 0\n' >ws/t/4-last.sh
    chmod +x ws/setup.sh ws/t/*
    bjt -v -j1
    want_code 0
    want_line '4 passed'
    want_line 'note s/3-stops.sh@h: units of systemd that ran do not run any more after an earlier test: long.service'
    want_line 'note s/4-last.sh@h: units of systemd that ran do not run any more after an earlier test: long.service, plain.service'
    want_no_line 'do not run any more.*(brief|fsckd)'
}
