#!/bin/sh
# A memory limit by cgroup: what goes beyond it is killed, and counted, while its neighbour lives on.
# belljar: group = "busy"
# belljar: guards = { allow = [{ guard = "oom", match = "Memory cgroup", reason = "the test reaches the limit" }] }
. "$(dirname "$0")/../lib.sh"

grep -qw memory /sys/fs/cgroup/cgroup.controllers || skip 'no cgroup v2 with a memory controller'
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
limited=/sys/fs/cgroup/limited
mkdir "$limited"
echo 32M >"$limited/memory.max"
if [ -e "$limited/memory.swap.max" ]; then echo 0 >"$limited/memory.swap.max"; fi

sh -c "echo \$\$ >$limited/cgroup.procs; exec sleep 600" &
neighbour=$!
code=0
# tail keeps the last line in memory, and this one has no end.
sh -c "echo \$\$ >$limited/cgroup.procs; echo 1000 >/proc/self/oom_score_adj; exec tail /dev/zero" || code=$?
same "$code" 137 'how the greedy one ended'
cat "$limited/memory.events"
grep -q '^oom [1-9]' "$limited/memory.events" || fail 'it was not the limit of the cgroup that was reached'
grep -qx 'oom_kill 1' "$limited/memory.events" || fail 'the kernel did not count one kill'
kill -0 "$neighbour" || fail 'the neighbour was killed too'
