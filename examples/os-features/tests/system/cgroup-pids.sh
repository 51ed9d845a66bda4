#!/bin/sh
# A limit to the number of processes by cgroup, which is what stops a fork bomb: five start, the sixth
# does not.
. "$(dirname "$0")/../lib.sh"

grep -qw pids /sys/fs/cgroup/cgroup.controllers || skip 'no cgroup v2 with a pids controller'
echo +pids >/sys/fs/cgroup/cgroup.subtree_control
few=/sys/fs/cgroup/few
mkdir "$few"
echo 5 >"$few/pids.max"

# The shell itself is one of the five.
started=$(sh -c "echo \$\$ >$few/cgroup.procs
    for n in 1 2 3 4 5 6 7 8; do sleep 600 >/dev/null & echo \$n; done" | wc -l) || :
same "$(wc -l <"$few/cgroup.procs")" "$started" 'processes in the cgroup'
[ "$started" -le 5 ] || fail "$started processes started"
read -r _ stopped <"$few/pids.events"
[ "$stopped" -ge 1 ] || fail 'the kernel counted no attempt that it stopped'
