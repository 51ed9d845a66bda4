#!/bin/sh
# Locks: whoever asks for a file that another holds is kept out, many may read at once, and a lock goes with
# the process that held it, killed or not.
# belljar: requires = ["flock"]
. "$(dirname "$0")/../lib.sh"
cd "$(mktemp -d -p /srv/files)"

flock --close file sh -c 'touch held; exec sleep 60' & # the lock is flock's own, not its child's
within 10 test -e held
refused flock --nonblock file true
kill -KILL $!
flock --wait 10 file true

flock --shared file flock --shared --nonblock file true
refused flock --shared file flock --nonblock file true
