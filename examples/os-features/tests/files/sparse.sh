#!/bin/sh
# Sparse files: holes take no room and read as zeros, and a hole can be punched into what was full.
# belljar: requires = ["fallocate"]
. "$(dirname "$0")/../lib.sh"
cd "$(mktemp -d -p /srv/files)"
blocks() { sync "$1"; stat -c %b "$1"; }

truncate -s 100M hole
same "$(blocks hole)" 0 'blocks of a file that is all hole'
same "$(head -c 1M hole | tr -d '\0' | wc -c)" 0 'bytes in it that are not zero'

head -c 8M /dev/urandom >full
before=$(blocks full)
fallocate --punch-hole --offset 1M --length 4M full
same "$((before - $(blocks full)))" $((4 << 11)) 'blocks that were given back'
same "$(stat -c %s full)" $((8 << 20)) 'the size'
