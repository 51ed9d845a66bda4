#!/bin/sh
# KTAP, as the kernel's own selftests (tools/testing/selftests) print it: here a few promises of /proc.
# belljar: format = "kselftest"
. "$(dirname "$0")/../lib.sh"

number=0
# result NAME COMMAND...
result() {
    name=$1 number=$((number + 1)) verdict=ok
    shift
    "$@" || verdict='not ok'
    echo "$verdict $number $name"
}

echo 'TAP version 13'
echo '1..5'
echo '# selftests: proc: self'
result proc_self_is_the_reader sh -c 'read -r pid _ </proc/self/stat && [ "$pid" = $$ ]'
result proc_exe_is_the_program sh -c '[ "$(readlink -f /proc/$$/exe)" = "$(readlink -f "$(command -v sh)")" ]'
result proc_environ_is_from_the_start env -i A=1 sh -c 'A=2; export A; [ "$(tr "\0" " " </proc/$$/environ)" = "A=1 " ]'
result proc_oom_score_only_rises_for_users setpriv --reuid=4711 --regid=4711 --clear-groups \
    sh -c 'echo 5 >/proc/self/oom_score_adj && ! echo -5 >/proc/self/oom_score_adj'
if [ -e /proc/config.gz ]; then
    result proc_config_is_readable zgrep -q CONFIG_PROC_FS=y /proc/config.gz
else
    number=$((number + 1))
    echo "ok $number proc_config_is_readable # SKIP the kernel was built without it"
fi
