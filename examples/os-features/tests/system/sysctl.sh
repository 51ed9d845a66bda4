#!/bin/sh
# A sysctl that does what it says: with randomize_va_space a program's stack is elsewhere at each start,
# without it always in the same place.
. "$(dirname "$0")/../lib.sh"

stack() { sed -n 's/-.*\[stack\]$//p' /proc/self/maps; }
places() { for _ in 1 2 3 4; do stack; done | sort -u | wc -l; }

sysctl -w kernel.randomize_va_space=2
[ "$(places)" -gt 1 ] || fail 'the stack is in the same place four times'
sysctl -w kernel.randomize_va_space=0
same "$(places)" 1 'places of the stack'
refused sysctl -w kernel.randomize_va_space=word
