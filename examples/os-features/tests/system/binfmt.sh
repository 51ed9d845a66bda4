#!/bin/sh
# binfmt_misc: files that end in .upper are run by an interpreter of ours, and are no programs any more
# when it is taken away.
. "$(dirname "$0")/../lib.sh"

modprobe binfmt_misc || skip 'the kernel has no binfmt_misc'
control=/proc/sys/fs/binfmt_misc
[ -e "$control/register" ] || mount -t binfmt_misc binfmt_misc "$control"
cd "$(mktemp -d)"
printf '#!/bin/sh\ntr a-z A-Z <"$1"\n' >interpreter
printf 'hello\n' >greeting.upper
chmod +x interpreter greeting.upper
run() { env ./greeting.upper; } # env, since a shell would take it for a script

refused run
echo ":upper:E::upper::$PWD/interpreter:" >"$control/register"
same "$(run)" HELLO 'its output'
echo -1 >"$control/upper"
refused run
