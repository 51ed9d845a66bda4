#!/bin/sh
# TAP: a result for each block size of ext4, made of a result for each step. What a machine cannot do is
# `# SKIP`, what is known not to work would be `# TODO`.
# belljar: format = "tap"
# belljar: requires = ["mkfs.ext4", "losetup"]
. "$(dirname "$0")/../lib.sh"

at=$(mktemp -d) file=$(mktemp) number=0
sizes='1024 2048 4096 65536'
page=$(getconf PAGESIZE)
truncate -s 32M "$file"
modprobe loop

# step NUMBER NAME COMMAND...: a point of the test inside. What the command says goes to standard error.
step() {
    step_number=$1 step_name=$2
    shift 2
    if "$@" >&2; then echo "    ok $step_number - $step_name"
    else
        echo "    not ok $step_number - $step_name"
        bad=yes
    fi
}

echo 'TAP version 14'
echo "1..$(echo "$sizes" | wc -w)"
for size in $sizes; do
    number=$((number + 1)) bad=''
    if [ "$size" -gt "$page" ]; then
        echo "ok $number - blocks of $size bytes # SKIP larger than a page of $page"
        continue
    fi
    echo "# Subtest: blocks of $size bytes"
    echo '    1..4'
    step 1 'is made' mkfs.ext4 -q -F -b "$size" "$file"
    step 2 'is mounted' mount -o loop "$file" "$at"
    step 3 'has such blocks' test "$(stat -f -c %S "$at")" = "$size"
    umount "$at" || :
    step 4 'is whole' e2fsck -fn "$file"
    echo "${bad:+not }ok $number - blocks of $size bytes"
done
