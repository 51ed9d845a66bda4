#!/bin/sh
# nftables: one port is closed and the other stays open, the rule counts what it stopped, and everything is open again
# once the rules are gone.
# belljar: requires = ["nft", "nc"]
. "$(dirname "$0")/../lib.sh"

namespaces fw-client fw-server
pair fw-client eth0 fw-server eth0
ip -n fw-client address add 192.0.2.1/24 dev eth0
ip -n fw-server address add 192.0.2.2/24 dev eth0
for port in 22 80; do
    ip netns exec fw-server nc -l -k -p "$port" </dev/null &
done
connects() { ip netns exec fw-client nc -z -w 3 192.0.2.2 "$1"; }
within 30 connects 22
within 30 connects 80

ip netns exec fw-server nft -f - <<END
table inet filter {
    chain input {
        type filter hook input priority filter; policy accept;
        tcp dport 22 counter reject with tcp reset
    }
}
END
refused connects 22
connects 80
counted=$(ip netns exec fw-server nft list ruleset | sed -n 's/.*dport 22 counter packets \([0-9]*\).*/\1/p')
same "$counted" 1 'packets that the rule stopped'

ip netns exec fw-server nft flush ruleset
connects 22
