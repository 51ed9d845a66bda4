#!/bin/sh
# A program that crashes is handed to the collector named in core_pattern, with its name, the signal, and
# a core that is an ELF file of that process.
# belljar: guards = { allow = [{ guard = "coredump", match = "sh (", reason = "the test has it crash" }] }
. "$(dirname "$0")/../lib.sh"

dir=$(mktemp -d)
cat >"$dir/collector" <<END
#!/bin/sh
cat >$dir/core
echo "\$1 \$2" >$dir/seen
END
chmod +x "$dir/collector"
echo "|$dir/collector %e %s" >/proc/sys/kernel/core_pattern

code=0
sh -c 'kill -SEGV $$' || code=$?
same "$code" 139 'how it ended'
within 30 test -s "$dir/seen"
same "$(cat "$dir/seen")" 'sh 11' 'what the collector was told'
same "$(head -c 4 "$dir/core" | tail -c 3)" ELF 'the core'
