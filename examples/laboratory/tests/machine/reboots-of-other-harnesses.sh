#!/bin/sh
# A test that was written for autopkgtest, and for tmt, finds what it knows.
. "$(dirname "$0")/../lib.sh"
case $TMT_REBOOT_COUNT in
0) /tmp/autopkgtest-reboot first ;;
1)
    same "$AUTOPKGTEST_REBOOT_MARK" first 'the mark'
    tmt-reboot
    ;;
2) ;;
*) fail "$TMT_REBOOT_COUNT reboots" ;;
esac
