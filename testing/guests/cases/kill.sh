# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Belljar is killed with SIGKILL at random moments: nothing is left and nothing has changed.

# kill_at MILLISECONDS ARGUMENT...: run in a session of its own, kill Belljar after that time, and look.
kill_at() {
    local after=$1; shift
    (cd ws && exec "$BELLJAR" run --run-dir "$dir/logs" "$@" >"$dir/out" 2>"$dir/err" </dev/null) & local pid=$!
    sleep "$(printf '%d.%03d' $((after / 1000)) $((after % 1000)))"
    kill -KILL $pid 2>/dev/null || echo "it had ended before $after ms: $(tail -n 1 err)"
    wait $pid 2>/dev/null || :
    until_true 5 no_survivors || fail "killed after $after ms: $(survivors)"
    local left
    left=$(find tmp runtime ws -mindepth 1)
    [ -z "$left" ] || fail "killed after $after ms, temporary files are left: $left"
    rm -rf logs
}

test_fifty_times() {
    local i
    head -c 4M /dev/urandom >image
    sha256sum image >sum
    for i in $(seq 50); do
        kill_at $((RANDOM % 6500)) --disk "file=$dir/image,serial=d" -- sh -c 'cat /dev/urandom >/dev/vda; sleep 100'
    done
    sha256sum --quiet -c sum || fail 'an image has changed'
}

# fixtures: debian-bookworm
test_with_a_disk_image() {
    local i image
    image=$(fixture debian-bookworm)
    sha256sum "$image" >sum
    for i in $(seq 10); do
        kill_at $((RANDOM % 8000 + i * 1500)) --image "$image" --login root:belljar -- sh -c 'touch /written; sync; sleep 100'
    done
    sha256sum --quiet -c sum || fail 'the image has changed'
}
