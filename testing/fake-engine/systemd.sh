# shellcheck shell=sh disable=SC2154 # read by engine.sh, in the container's namespaces, with $root and the like set
# What a container has that systemd can run in, with a systemd and a systemctl that do as `manner` says.
mkdir -p "$root/.usr/u" "$root/.usr/w" "$root/run" "$root/sys/fs/cgroup/systemd"
mount -t overlay -o "lowerdir=/usr,upperdir=$root/.usr/u,workdir=$root/.usr/w$more" overlay "$root/usr"
[ "$manner" != no-groups ] || mount -t tmpfs -o ro tmpfs "$root/sys/fs/cgroup/systemd"
mkdir -p "$root/usr/lib/systemd"
rm -f "$root/usr/lib/systemd/systemd" "$root/usr/bin/systemctl" "$root/usr/bin/busctl"
# What is asked of logind: whether it is about to end the system.
printf '#!/bin/sh\n[ ! -e /run/preparing ] || echo "b true"\n' >"$root/usr/bin/busctl"
chmod +x "$root/usr/bin/busctl"
cat >"$root/usr/lib/systemd/systemd" <<'END'
#!/bin/sh
# Ends by SIGRTMIN+13, and by no other signal.
trap 'exit 0' 47
trap '' TERM INT
echo 'Failed to set RLIMIT_CORE: Operation not permitted' >&2
printf systemd >/proc/self/comm
[ "$manner" = systemd-forged ] || mkdir -p /run/systemd/system
printf 'multi-user.target loaded active active Up\nold.service loaded active running Old\nidle.service loaded inactive dead Idle\n' >/run/units
[ "$manner" != systemd-dies ] || { echo 'Failed to allocate manager object: no such thing' >&2; exit 1; }
[ "$manner" != systemd-frozen ] || trap '' 47
# Without a child, for whoever looks at what runs here.
mkfifo /run/never
while :; do read -r _ <>/run/never; done
END
cat >"$root/usr/bin/systemctl" <<'END'
#!/bin/sh
# What a test says of the system is in /run/state, /run/jobs and /run/units; what is done to units is in /run/done.
case $1 in
is-system-running)
    if [ -e /run/state ]; then
        [ "$(cat /run/state)" != hangs ] || exec sleep 1000
        exec cat /run/state
    fi
    asked=$(cat /run/asked 2>/dev/null || echo 0)
    echo $((asked + 1)) >/run/asked
    case $manner,$asked in
    *,0) echo offline; exit 1 ;;
    *,1 | systemd-slow,*) echo starting; exit 1 ;;
    degraded,*) echo degraded; exit 1 ;;
    maintenance,*) echo maintenance; exit 1 ;;
    *) echo running ;;
    esac ;;
list-units) case " $* " in *' --all '*) exec cat /run/units ;; esac
    printf 'bad.service loaded failed failed Bad\nworse.service loaded failed failed Worse\n' ;;
list-jobs) if [ -e /run/jobs ]; then exec cat /run/jobs; fi
    case " $* " in *' --full '*) exit ;; esac
    echo '12 slow.service start running' ;;
is-enabled) case $3 in enabled*) echo enabled ;; *) echo disabled; exit 1 ;; esac ;;
stop | kill | reset-failed)
    echo "$*" >>/run/done
    for unit; do
        case $1,$unit in
        stop,hangs.service) exec sleep 1000 ;;
        stop,never.service | kill,never.service | reset-failed,never.service | reset-failed,hangs.service) ;;
        *) sed -i "/^$unit /d" /run/units ;;
        esac
    done ;;
esac
END
chmod +x "$root/usr/lib/systemd/systemd" "$root/usr/bin/systemctl"
[ "$manner" != no-systemctl ] || rm "$root/usr/bin/systemctl"
[ "$manner" != no-systemd ] || rm "$root/usr/lib/systemd/systemd"
