#!/bin/sh
# The journal keeps what a service says, with the unit and the priority that it was said with, and gives it
# back by these.
. "$(dirname "$0")/../lib.sh"
needs_systemd

systemd-run --quiet --wait --unit=speaker.service sh -c 'echo "<3>an error"; echo "<6>a notice"'
journalctl --sync
said() { journalctl --quiet --output=cat --unit=speaker.service "$@"; }

said | grep -x 'a notice' || fail 'the journal lost a line'
same "$(said --priority=err)" 'an error' 'what was said as an error'
same "$(journalctl --quiet --unit=speaker.service _COMM=nobody)" '' 'what another program said'
