#!/bin/sh
# Mount options: nothing is run from a noexec mount, nothing is written through a read-only one, and both can
# be had for one view of a file system that is neither.
. "$(dirname "$0")/../lib.sh"
cd "$(mktemp -d -p /srv/files)"

printf '#!/bin/sh\n' >program
chmod +x program
./program
mkdir view
mount --bind . view
mount -o remount,bind,ro,noexec view
refused view/program
refused touch view/file
./program
touch file
umount view
