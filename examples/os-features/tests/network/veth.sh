#!/bin/sh
# Two network namespaces and a cable between them: data goes through in order and whole, over IPv4 and
# over IPv6 with no address given, and nothing more once the cable is unplugged.
# belljar: requires = ["ping", "nc"]
. "$(dirname "$0")/../lib.sh"

namespaces veth-a veth-b
pair veth-a eth0 veth-b eth0
ip -n veth-a address add 192.0.2.1/24 dev eth0
ip -n veth-b address add 192.0.2.2/24 dev eth0
within 30 reaches veth-a 192.0.2.2

sent=$(mktemp) received=$(mktemp)
head -c 4M /dev/urandom >"$sent"
ip netns exec veth-b nc -l -p 4711 -N </dev/null >"$received" &
listener=$!
within 30 ip netns exec veth-a nc -N 192.0.2.2 4711 <"$sent"
wait "$listener"
same "$(checksum "$received")" "$(checksum "$sent")" 'what came over TCP'

# It gives itself an address some time after the cable is in, and checks it for a double before it uses it.
over_ipv6() {
    own=$(ip -n veth-b -6 -o address show dev eth0 scope link | awk '{ sub("/.*", "", $4); print $4 }')
    [ -n "$own" ] && reaches veth-a "$own%eth0"
}
within 30 over_ipv6

ip -n veth-b link set eth0 down
refused reaches veth-a 192.0.2.2
