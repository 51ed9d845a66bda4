#!/bin/sh
# overlayfs, on which containers stand: the merged directory can be changed at will, and the lower one
# is not touched by it.
. "$(dirname "$0")/../lib.sh"

base=$(mktemp -d)
mount -t tmpfs base "$base"
cd "$base"
mkdir lower upper work merged
echo old >lower/changed
echo old >lower/deleted
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work layers merged
same "$(cat merged/changed merged/deleted)" "$(printf 'old\nold')" 'what is seen of the lower directory'

echo new >merged/changed
rm merged/deleted
echo new >merged/added
same "$(ls merged | xargs)" 'added changed' 'the merged directory'
same "$(ls lower | xargs)" 'changed deleted' 'the lower directory'
same "$(cat lower/changed)" old 'the file below'
same "$(cat upper/changed)" new 'the file above'
same "$(stat -c '%F %t:%T' upper/deleted)" 'character special file 0:0' 'the mark of what was deleted'
