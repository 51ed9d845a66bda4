#!/bin/sh
# The network cable is pulled and put back: the card loses its carrier, and has it again.
# belljar: nic = "isolated"
. "$(dirname "$0")/../lib.sh"
card=$(basename "$(dirname "$(grep -l 1 /sys/class/net/e*/carrier)")")
belljar-ctl link down
carrier() { [ "$(cat "/sys/class/net/$card/carrier")" = "$1" ]; }
within 30 carrier 0
belljar-ctl link up
within 30 carrier 1
