#!/bin/sh
# A bridge joins cables to one network, learns behind which port a station is, and a port that is taken
# out is cut off.
# belljar: requires = ["ping", "bridge"]
. "$(dirname "$0")/../lib.sh"

namespaces br-switch br-a br-b
ip -n br-switch link add br0 type bridge
ip -n br-switch link set br0 up
for end in a b; do
    pair br-switch "port-$end" "br-$end" eth0
    ip -n br-switch link set "port-$end" master br0
done
ip -n br-a address add 192.0.2.1/24 dev eth0
ip -n br-b address add 192.0.2.2/24 dev eth0
within 30 reaches br-a 192.0.2.2

station=$(ip netns exec br-b cat /sys/class/net/eth0/address)
ip netns exec br-switch bridge fdb show br br0 | grep "^$station dev port-b" || fail "$station was not learned at port-b"

ip -n br-switch link set port-b nomaster
refused reaches br-a 192.0.2.2
