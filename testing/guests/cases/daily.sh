# shellcheck shell=bash
# shellcheck disable=SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# What users do every day: jobs, terminals, commands that are not there, runs that leave much behind.

test_background_job_with_unused_input() {
    # A terminal of its own, and a shell with job control on it.
    script -qec 'bash -c '\''set -m; "$BELLJAR" run -w none -q -- sh -c "echo in-the-guest; exit 6" & wait $!; echo code-$?'\''' typescript </dev/null
    want_line 'in-the-guest' typescript
    want_line 'code-6' typescript
}

test_terminal_where_there_is_none() {
    printf 'typed\n' >stdin
    bj -t -- sh -c 'test -t 0 && test -t 1 && stty size; stty -echo; cat; exit 6'
    want_code 6
    want_line '^24 80' out
    # The pipe's end is typed, so that cat comes to its end.
    want_line 'typed' out
    rm stdin
}

test_what_cannot_be_started() {
    printf '#!/no/such/interpreter\n' >ws/script
    printf 'text\n' >ws/plain
    chmod +x ws/script
    bj -q -- /no/such
    want_code 127
    want_err 'cannot start the command: execve /no/such'
    bj -q --cwd /nonexistent -- true
    want_code 126
    want_err '/nonexistent: there is no such directory in the guest'
    bj -q --cwd /etc/passwd -- true
    want_code 126
    want_err 'not a directory'
    bj -q -- ./script
    want_code 127
    want_err 'its interpreter /no/such/interpreter is missing in the guest'
    bj -q -- ./plain
    want_code 126
    want_err 'not executable'
    bj -q -- /etc
    want_code 126
    want_err 'it is a directory'
}

test_deep_and_closed_directories_are_removed() {
    bj -q -- python3 -c '
import os
os.chdir(os.environ["BELLJAR_OUT"])
for n in range(2000):
    os.mkdir("d")
    os.chdir("d")
os.chdir(os.environ["BELLJAR_OUT"])
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0)
open("n" * 255, "w").close()
'
    want_code 0
    local first
    first=$(ls "$BELLJAR_STATE_DIR/runs")
    for _ in 1 2; do
        BELLJAR_KEEP_RUNS=1 bj -q -- true
        want_code 0
    done
    [ ! -e "$BELLJAR_STATE_DIR/runs/$first" ] || fail 'the run that is over is still there'
}

test_log_of_a_clone() {
    bj -- true
    want_code 0
    bj -- true
    want_code 0
    want_no_line 'template' err
    local log
    # shellcheck disable=SC2012 # names of runs are plain
    log=$(ls -t "$BELLJAR_STATE_DIR"/runs/*/events.jsonl | head -n 1)
    for what in access session share; do
        want_line "\"kind\":\"choice\",\"what\":\"$what\"" "$log"
    done
}
