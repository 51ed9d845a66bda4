#!/bin/sh
# dm-verity: a disk whose content is sealed by one hash. A single changed byte is an input/output error
# when it is read, and everything else is still read right.
# belljar: requires = ["veritysetup"]
# belljar: guards = { allow = [{ guard = "io-error", match = "dm-", reason = "the test changes what is sealed" }] }
. "$(dirname "$0")/../lib.sh"

data=$(disk data0) hashes=$(disk data1)
modprobe dm-verity
head -c 4M /dev/urandom >"$data"
before=$(head -c 1M "$data" | sha256sum)
root=$(veritysetup format --data-blocks=1024 "$data" "$hashes" | sed -n 's/^Root hash:[[:space:]]*//p')
veritysetup verify "$data" "$hashes" "$root"

printf '\0\0\0\0' | dd of="$data" bs=1 seek=2000000 conv=notrunc
veritysetup open "$data" sealed "$hashes" "$root"
refused dd if=/dev/mapper/sealed of=/dev/null bs=4096
same "$(head -c 1M /dev/mapper/sealed | sha256sum)" "$before" 'what was not tampered with'
refused dd if=/dev/zero of=/dev/mapper/sealed bs=4096 count=1
