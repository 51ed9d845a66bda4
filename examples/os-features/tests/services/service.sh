#!/bin/sh
# A systemd service that fails twice is started again until it holds, and stays stopped when it is stopped.
. "$(dirname "$0")/../lib.sh"
needs_systemd

cat >/run/systemd/system/moody.service <<'END'
[Service]
ExecStart=/bin/sh -c 'echo start >>/run/starts; [ $$(wc -l </run/starts) -ge 3 ] && exec sleep 600'
Restart=on-failure
RestartSec=100ms
END
systemctl daemon-reload
systemctl start moody.service
within 60 sh -c '[ "$(systemctl show -P NRestarts moody.service)" = 2 ]'
within 60 systemctl --quiet is-active moody.service
same "$(wc -l </run/starts)" 3 'starts'

systemctl stop moody.service
refused systemctl is-active moody.service
same "$(systemctl show -P Result moody.service)" success 'the result'
