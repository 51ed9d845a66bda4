# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, top, code
# A guest that is entered over SSH: nobody waits on its console, and its init takes no unit from outside.

# Root's key; its template is copied like any other, and the user's own things are left alone.
# fixtures: debian-ssh
test_ssh_with_a_key() {
    command -v ssh >/dev/null || skip 'there is no ssh here'
    local how files
    files=$(fixture debian-ssh)
    install -m 600 "$files/key" key
    export HOME=$dir/home
    mkdir home
    for how in first copied; do
        bj -v --image "$files/disk.qcow2" --access ssh --ssh-key "$dir/key" -- sh -c 'id -u; cat /proc/1/comm; exit 4'
        want_code 4
        want_out 0 init
    done
    want_err 'template: found'
    [ ! -e home/.ssh ] || fail "$how: $(ls -la home/.ssh)"
    # Nobody is let in with another.
    if ! command -v ssh-keygen >/dev/null; then skip_part 'there is no ssh-keygen here'; return; fi
    ssh-keygen -q -t ed25519 -N '' -f other
    bj --no-template --image "$files/disk.qcow2" --access ssh --ssh-key "$dir/other" -- true
    want_code 125
    want_err 'did not let root in: .*Permission denied'
}

# Another user's password, which sudo asks for as well.
# fixtures: debian-ssh
test_ssh_with_a_password() {
    command -v ssh >/dev/null || skip 'there is no ssh here'
    bj -v --no-template --image "$(fixture debian-ssh)/disk.qcow2" --access ssh --login tester:belljar -- id -u
    want_code 0
    want_out 0
    want_err 'access: ssh .*not checked'
    if grep -q tester:belljar state/runs/*/events.jsonl; then fail 'the log has the login'; fi
    [ -z "$(find state -name ssh-password)" ] || fail 'the password program is still there'
}
