#!/bin/sh
# VLANs: two networks on one cable. Stations with the same tag hear each other, stations with another
# do not.
# belljar: requires = ["ping"]
. "$(dirname "$0")/../lib.sh"

namespaces vlan-a vlan-b
pair vlan-a eth0 vlan-b eth0
tag() {
    ip -n "$1" link add link eth0 name "eth0.$2" type vlan id "$2"
    ip -n "$1" address add "$3/24" dev "eth0.$2"
    ip -n "$1" link set "eth0.$2" up
}
tag vlan-a 10 192.0.2.1
tag vlan-b 10 192.0.2.2
within 30 reaches vlan-a 192.0.2.2

tag vlan-a 20 198.51.100.1
tag vlan-b 30 198.51.100.2
refused reaches vlan-a 198.51.100.2
