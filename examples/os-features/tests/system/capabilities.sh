#!/bin/sh
# Capabilities: root without CAP_CHOWN cannot give files away, and a user who runs a program that has it
# in its file can.
# belljar: requires = ["setcap", "setpriv"]
. "$(dirname "$0")/../lib.sh"

dir=$(mktemp -d)
chmod 755 "$dir"
cd "$dir"
touch file
refused setpriv --bounding-set=-chown --inh-caps=-all chown 4711 file
same "$(stat -c %u file)" 0 'the owner'

user() { setpriv --reuid=4711 --regid=4711 --clear-groups "$@"; }
cp "$(command -v chown)" .
refused user ./chown 4711 file
setcap cap_chown+ep chown
user ./chown 4711 file
same "$(stat -c %u file)" 4711 'the new owner'
