#!/bin/sh
# DHCP on the guest's own card: systemd-networkd gets an address from the isolated network that Belljar gives
# every guest, finds no way out of it, and gets the address again after the card was down.
# belljar: guests = ["debian"]
# belljar: nic = "isolated"
# belljar: isolation = "test"
# belljar: tags = ["systemd"]
. "$(dirname "$0")/../lib.sh"

card=$(basename "$(dirname "$(grep -l '^52:54:' /sys/class/net/*/address)")")
leased() { ip -4 -o address show dev "$card" dynamic | grep 'inet 10\.0\.2\.'; }

within 60 leased
refused ip route get 192.0.2.1

ip link set "$card" down
refused leased
ip link set "$card" up
within 60 leased
