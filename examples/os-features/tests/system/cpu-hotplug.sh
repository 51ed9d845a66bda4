#!/bin/sh
# A processor is taken offline and comes back: what was bound to it goes on elsewhere, and nothing can be
# bound to what is not there.
# belljar: cpus = 2
# belljar: requires = ["taskset"]
. "$(dirname "$0")/../lib.sh"

switch=/sys/devices/system/cpu/cpu1/online
same "$(nproc)" 2 'processors'
sleep 600 &
bound=$!
taskset -pc 1 "$bound"
echo 0 >"$switch"
same "$(nproc)" 1 'processors with one offline'
kill -0 "$bound" || fail 'what ran on it is gone'
refused taskset -c 1 true
echo 1 >"$switch"
same "$(nproc)" 2 'processors in the end'
taskset -c 1 true
