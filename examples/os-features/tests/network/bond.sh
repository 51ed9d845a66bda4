#!/bin/sh
# Bonding: two cables as one. When the active one is unplugged, the other takes over, and with both gone the
# link is down.
# belljar: requires = ["ping"]
. "$(dirname "$0")/../lib.sh"

modprobe bonding max_bonds=0 || skip 'the kernel has no bonding'
namespaces bond-a bond-b bond-switch
# The far ends of both cables are on one switch, with the other station.
ip -n bond-switch link add br0 type bridge
ip -n bond-switch link set br0 up
pair bond-switch port-b bond-b eth0
ip -n bond-switch link set port-b master br0
ip -n bond-b address add 192.0.2.2/24 dev eth0

ip -n bond-a link add bond0 type bond mode active-backup miimon 100
for cable in 0 1; do
    ip -n bond-a link add "eth$cable" type veth peer name "port$cable" netns bond-switch
    ip -n bond-switch link set "port$cable" master br0 up
    ip -n bond-a link set "eth$cable" master bond0
done
ip -n bond-a address add 192.0.2.1/24 dev bond0
ip -n bond-a link set bond0 up
within 30 reaches bond-a 192.0.2.2

active() { ip netns exec bond-a cat /sys/class/net/bond0/bonding/active_slave; }
first=$(active)
ip -n bond-switch link set "port${first#eth}" down
within 30 reaches bond-a 192.0.2.2
[ "$(active)" != "$first" ] || fail "$first is still the active cable"

for cable in 0 1; do ip -n bond-switch link set "port$cable" down; done
refused reaches bond-a 192.0.2.2
