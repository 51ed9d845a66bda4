#!/bin/sh
# Hard links are one file with several names: it lives as long as one of them, and they cannot lead to another
# file system.
. "$(dirname "$0")/../lib.sh"
cd "$(mktemp -d -p /srv/files)"

echo content >one
ln one two
same "$(stat -c %i one)" "$(stat -c %i two)" 'the inode'
same "$(stat -c %h one)" 2 'the number of links'
rm one
same "$(cat two)" content 'what the other name leads to'
refused ln two /tmp/three
refused ln . directory
