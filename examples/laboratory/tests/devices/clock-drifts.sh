#!/bin/sh
# A clock that goes ten per cent too fast: what waits by it is early by the processor's own.
. "$(dirname "$0")/../lib.sh"
ten() { perl -MTime::HiRes=clock_gettime,CLOCK_MONOTONIC,sleep -e 'my $raw = 4; my @b = (clock_gettime($raw), clock_gettime(CLOCK_MONOTONIC)); sleep 5; my @a = (clock_gettime($raw), clock_gettime(CLOCK_MONOTONIC)); printf "%.3f\n", ($a[1] - $b[1]) / ($a[0] - $b[0])'; }
belljar-ctl clock rate=1.1
same "$(ten)" 1.100 'how fast it goes'
belljar-ctl clock rate=1
same "$(ten)" 1.000 'how fast it goes then'
