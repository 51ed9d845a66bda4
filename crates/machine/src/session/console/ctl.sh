#!/bin/sh
# belljar-ctl, for a guest that Belljar drives by a shell on its console: asks Belljar for something by a file, and prints what came of it.
# A file in the directory $BELLJAR_CTL_DIR has an order, a line; the answer is the file of the same name in the directory "answers" beside it.
LC_ALL=C
export LC_ALL
usage="usage: belljar-ctl mark TEXT | disk NAME ORDER | reboot [MARK] | reset [MARK] | power-cut [MARK] [strict|seed=N]
                 | power-button [MARK] | reboot-prepare [MARK] | nmi | link up|down | plug DEVICE | unplug DEVICE [surprise]
                 | wakeup TIME | balloon SIZE|full | screenshot NAME
It asks Belljar for something and prints what came of it. The exit code is 0 if it was done, 1 if it was refused, 2 if it makes no sense, and
3 if there was no answer, or it could not be written. The orders are in the manual, under \"Breaking things\"."

end() { # CODE TEXT...
    code=$1
    shift
    echo "belljar-ctl: $*" >&2
    exit "$code"
}

case ${0##*/} in
tmt-reboot)
    case "$#:${1-}" in
    0: | 2:-t) set -- reboot ;;
    *) end 2 "of tmt-reboot's options there is -t here; for another kind of reboot take belljar-ctl" ;;
    esac
    ;;
esac
case ${1-} in
-h | --help | help)
    echo "$usage" || exit 3
    exit 0
    ;;
mark | disk) [ $# -gt 1 ] || end 2 "$usage" ;;
reboot | reboot-prepare | soft-reboot | kexec | reset | power-button | power-cut | snapshot | return | nmi | link | plug | unplug | wakeup | clock | balloon | screenshot) ;;
*) end 2 "$usage" ;;
esac
# disk NAME device: only the guest knows by which device it has a disk.
serial_of() {
    for file in "$1/serial" "$1/device/serial" "$1/device/../../../../serial"; do
        serial=
        [ ! -r "$file" ] || read -r serial 2>/dev/null <"$file" || : # a line need not end
        if [ -n "$serial" ]; then
            echo "$serial"
            return
        fi
    done
    # A page of the disk's own words: four bytes that are no letters, and the number.
    tr -d '\000-\040\200' <"$1/device/vpd_pg80"
}
if [ $# = 3 ] && [ "$1" = disk ] && [ "$3" = device ]; then
    found=
    for at in /sys/block/*; do
        hidden=
        [ ! -r "$at/hidden" ] || read -r hidden <"$at/hidden"
        if [ -e "$at/device" ] && [ "$hidden" != 1 ] && [ "$(serial_of "$at" 2>/dev/null)" = "$2" ]; then
            echo "/dev/${at##*/}" || exit 3
            found=yes
        fi
    done
    [ -n "$found" ] || end 1 "the guest has no disk \"$2\": it is not plugged in, or its driver is not loaded (virtio_blk, nvme, sd_mod, ahci, usb_storage)"
    exit 0
fi
IFS=' '
line=$*
case $line in
*'
'*) end 1 "a line with a line's end in it cannot be asked" ;;
esac
[ ${#line} -lt 1024 ] || end 1 "a line of ${#line} bytes is too long; 1023 are the limit"

orders=${BELLJAR_CTL_DIR-}
[ -d "$orders" ] ||
    end 3 "cannot ask at \"$orders\" (\$BELLJAR_CTL_DIR): it is no directory; is this a command that Belljar runs, and still runs?"
answers=${orders%/*}/answers

# The name is claimed by a file that must not be there before, for another namespace may have the same process number.
n=0
while :; do
    n=$((n + 1))
    [ $n -lt 1000 ] || end 3 "cannot write to $orders"
    id=ctl-$$-$n
    [ ! -e "$answers/$id" ] || continue
    (
        set -C
        : >"$orders/.$id"
    ) 2>/dev/null || continue
    if [ -e "$answers/$id" ] || [ -e "$orders/$id" ]; then
        rm -f "$orders/.$id"
        continue
    fi
    break
done
trap 'rm -f "$orders/.$id" "$orders/.$id.new"' 0
trap 'exit 129' 1
trap 'exit 130' 2
trap 'exit 143' 15
cat >"$orders/.$id.new" <<END || end 3 "cannot write to $orders"
$line
END
mv -f "$orders/.$id.new" "$orders/$id" || end 3 "cannot write to $orders"

# In tenths of a second: two minutes, and an hour for what may take long once it is known to be asked. One that is busy waits longer.
waited=0
tick=1
while [ ! -e "$answers/$id" ]; do
    most=1200
    [ ! -e "$answers/.taken-$id" ] || most=36000
    if [ $waited -ge $most ]; then
        rm -f "$orders/$id"
        end 3 "there was no answer within $((most / 10)) s; it may have been done"
    fi
    if [ $tick = 10 ] || ! sleep 0.1 2>/dev/null; then
        tick=10
        sleep 1 || end 3 "cannot wait for the answer: this guest has no sleep; it may have been done"
    fi
    waited=$((waited + tick))
done
[ -r "$answers/$id" ] || end 3 "the answer in $answers/$id cannot be read; it may have been done"
{
    read -r word
    if [ "$word" = ok ]; then
        cat || end 3 "it was done, but what there is to say cannot be written"
        exit 0
    fi
    cat >&2
    exit 1
} <"$answers/$id"
