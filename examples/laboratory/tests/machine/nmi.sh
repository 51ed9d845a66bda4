#!/bin/sh
# A non-maskable interrupt reaches the kernel, which counts it and goes on.
. "$(dirname "$0")/../lib.sh"
count_nmi() { sed -n 's/^ *NMI: *\([0-9]*\).*/\1/p' /proc/interrupts; }
before=$(count_nmi)
echo 0 >/proc/sys/kernel/unknown_nmi_panic
belljar-ctl nmi
more() { [ "$(count_nmi)" -gt "$before" ]; }
within 30 more
