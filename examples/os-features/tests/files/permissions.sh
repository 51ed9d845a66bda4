#!/bin/sh
# Directories for many: in a sticky one nobody deletes another's files, in one with the set-group-id bit new
# files belong to its group.
# belljar: requires = ["setpriv"]
. "$(dirname "$0")/../lib.sh"
dir=$(mktemp -d -p /srv/files)
chmod 755 "$dir"
cd "$dir"
as() { id=$1; shift; setpriv --reuid="$id" --regid="$id" --clear-groups "$@"; }

mkdir common
chmod 1777 common
as 4711 touch common/file
refused as 4712 rm -f common/file
as 4711 rm common/file

mkdir group
chgrp 4713 group
chmod 2777 group
as 4711 touch group/file
same "$(stat -c %u:%g group/file)" 4711:4713 'owner and group of a new file'
