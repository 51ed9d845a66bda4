#!/bin/sh
# Namespaces, of which containers are made: inside one is process 1 of its own, with a host name and mounts
# that are not seen outside, and with it all its processes end.
# belljar: requires = ["unshare"]
. "$(dirname "$0")/../lib.sh"

outside=$(hostname) at=$(mktemp -d)
inside=$(unshare --pid --fork --mount-proc --uts --mount sh -c "
    hostname inside
    mount -t tmpfs hidden '$at'
    touch '$at/file'
    sleep 4711 >/dev/null &
    [ ! -e /proc/$$ ] || echo 'its processes are there too' # of this test itself
    echo \$\$ \$(hostname) \$(ls '$at')")
same "$inside" '1 inside file' 'what is seen inside'
same "$(hostname)" "$outside" 'the host name outside'
same "$(ls "$at")" '' 'the directory outside'
refused pgrep -f '^sleep 4711'
