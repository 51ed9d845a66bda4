#!/bin/sh
# Runs once in each guest, before the tests of this directory: a file system that all of them use.
. "$(dirname "$0")/../lib.sh"

mkfs.ext4 -q "$(disk data0)"
mkdir -p /srv/files
mount "$(disk data0)" /srv/files
