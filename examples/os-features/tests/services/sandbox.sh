#!/bin/sh
# A service in a sandbox: it cannot write to /etc, sees no network but its own, and runs as a user that is
# made for it.
. "$(dirname "$0")/../lib.sh"
needs_systemd

boxed() { systemd-run --quiet --wait --pipe --collect "$@"; }

boxed touch /etc/open
[ -e /etc/open ] || fail 'without a sandbox it could not write either'
refused boxed -p ProtectSystem=strict touch /etc/closed
[ ! -e /etc/closed ] || fail 'it wrote to /etc all the same'

same "$(boxed -p PrivateNetwork=yes ip -brief link | cut -d " " -f 1)" lo 'interfaces in the sandbox'

user=$(boxed -p DynamicUser=yes id -u)
if [ "$user" -lt 61184 ] || [ "$user" -gt 65519 ]; then fail "user $user was not made for the service"; fi
refused getent -s files passwd "$user"
