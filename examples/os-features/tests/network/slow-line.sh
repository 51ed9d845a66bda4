#!/bin/sh
# Traffic control: a line that is made slow is slow, and one that loses everything loses everything.
# belljar: requires = ["tc", "ping"]
. "$(dirname "$0")/../lib.sh"

namespaces slow-a slow-b
pair slow-a eth0 slow-b eth0
ip -n slow-a address add 192.0.2.1/24 dev eth0
ip -n slow-b address add 192.0.2.2/24 dev eth0
within 30 reaches slow-a 192.0.2.2

tc -n slow-a qdisc add dev eth0 root netem delay 300ms || skip 'the kernel has no netem'
# The line of ping's last words: rtt min/avg/max/mdev = 300.123/…
least=$(ip netns exec slow-a ping -q -n -c 3 -i 0.2 192.0.2.2 | sed -n 's/^rtt [^=]*= \([0-9]*\).*/\1/p')
[ "$least" -ge 300 ] || fail "an answer after $least ms over a line with 300 ms"

tc -n slow-a qdisc change dev eth0 root netem loss 100%
refused reaches slow-a 192.0.2.2
