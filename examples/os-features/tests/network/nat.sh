#!/bin/sh
# A router that hides a network behind its own address: without forwarding nothing gets through, without
# masquerading no answer finds its way back, and with both the server sees the router's address.
# belljar: requires = ["nft", "ping", "nc"]
. "$(dirname "$0")/../lib.sh"

namespaces nat-inside nat-router nat-server
pair nat-inside eth0 nat-router inside
pair nat-router outside nat-server eth0
ip -n nat-inside address add 192.0.2.2/24 dev eth0
ip -n nat-router address add 192.0.2.1/24 dev inside
ip -n nat-router address add 198.51.100.1/24 dev outside
ip -n nat-server address add 198.51.100.2/24 dev eth0 # which knows no way to the inside
ip -n nat-inside route add default via 192.0.2.1
within 30 reaches nat-router 198.51.100.2

refused reaches nat-inside 198.51.100.2
ip netns exec nat-router sysctl -q net.ipv4.ip_forward=1
refused reaches nat-inside 198.51.100.2
ip netns exec nat-router nft -f - <<END
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname "outside" masquerade
    }
}
END
within 30 reaches nat-inside 198.51.100.2

log=$(mktemp)
ip netns exec nat-server nc -l -v -n -p 4711 </dev/null >/dev/null 2>"$log" &
server=$!
within 30 ip netns exec nat-inside nc -N 198.51.100.2 4711 </dev/null
wait "$server"
grep ' 198.51.100.1 ' "$log" || fail "the server saw somebody else: $(cat "$log")"
