#!/bin/sh
# A container engine for the whole-program tests: it checks what it is told against the documentation of the one that it plays (docker-run(1),
# podman-run(1)), writes it down, and runs the agent in namespaces of its own where it is to run a container. What goes wrong is said by a file.
#
# Beside this script: `kind` (podman or docker), `manner` (what goes wrong, see below), `calls` (what it was told, a line each), `images` (the
# images that it has, a line each).
here=$(dirname "$0")
kind=$(cat "$here/kind" 2>/dev/null || echo podman)
manner=$(cat "$here/manner" 2>/dev/null)
echo "$*" >>"$here/calls"

die() { echo "$1" >&2; exit "${2:-125}"; }
missing() {
    case $kind in
    docker) die "Error response from daemon: No such image: $1" 1 ;;
    *) die "Error: $1: image not known" 125 ;;
    esac
}

case $manner in
no-daemon) [ "$1" = --version ] || die "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?" 1 ;;
esac

case $1 in
--version)
    case $kind in
    docker) echo "Docker version 24.0.7, build afdd53b" ;;
    podman) echo "podman version 4.3.1" ;;
    *) echo "$kind" ;;
    esac
    exit ;;
import) shift
    # docker-import(1): --change, --message, --platform; podman-import(1): --change, --message, --arch, --os, --variant, --quiet.
    while [ $# -gt 0 ]; do
        case $1 in
        --change)
            case $2 in
            'CMD '* | 'ENTRYPOINT '* | 'ENV '*=* | 'EXPOSE '* | 'LABEL '*=* | 'USER '* | 'VOLUME '* | 'WORKDIR /'*) ;;
            *) die "invalid change $2 - invalid instruction" ;;
            esac
            shift 2 ;;
        --message) shift 2 ;;
        --platform) [ "$kind" = docker ] || die "unknown flag: $1"
            case $2 in */*) ;; *) die "\"$2\" is an invalid component of a platform" 1 ;; esac
            shift 2 ;;
        --arch | --os | --variant) [ "$kind" = podman ] || die "unknown flag: $1"; shift 2 ;;
        --quiet) [ "$kind" = podman ] || die "unknown flag: $1"; shift ;;
        -) break ;;
        -*) die "unknown flag: $1" ;;
        *) break ;;
        esac
    done
    { [ $# = 1 ] || [ $# = 2 ]; } || die "\"import\" requires 1 or 2 arguments" 1
    case $2 in *[!a-z0-9:._/-]*) die "invalid reference format" 1 ;; esac
    if [ "$1" = - ]; then
        case $manner in
        import-hang) exec sleep 1000 ;;
        import-full) head -c 1000 >/dev/null; die "Error processing tar file(exit status 1): write /bin/sh: no space left on device" 1 ;;
        esac
        cat >"$here/imported"
        tar -tf "$here/imported" >/dev/null 2>&1 || die "archive/tar: invalid tar header" 1
        echo "$2" >>"$here/images"
    fi
    echo sha256:0123abcd
    exit ;;
save) shift
    # docker-save(1): --output, --platform; podman-save(1): --format, --compress, --output, --quiet. To standard output where none is said.
    while [ $# -gt 0 ]; do
        case $1 in
        --platform) [ "$kind" = docker ] || die "unknown flag: $1"; shift 2 ;;
        --format | --quiet) [ "$kind" = podman ] || die "unknown flag: $1"; [ "$1" = --quiet ] || shift; shift ;;
        -*) die "unknown flag: $1" ;;
        *) break ;;
        esac
    done
    [ $# = 1 ] || die "\"save\" requires at least 1 argument" 1
    [ ! -t 1 ] || die "cowardly refusing to save to a terminal. Use the -o flag or redirect" 1
    grep -q "\"Id\": \"$1\"" "$here/inspected" || missing "$1"
    case $manner in
    save-hang) sleep 1000 & wait ;; # as one that works in a child
    save-slow) until [ -e "$here/go" ]; do sleep 0.05; done ;;
    save-cut) head -c 3000 "$here/saved"; die "Error response from daemon: unexpected EOF" 1 ;;
    save-cut-quietly) head -c 3000 "$here/saved"; exit ;;
    save-full) head -c 3000 "$here/saved"; die "Error response from daemon: write /var/lib/docker/tmp/x: no space left on device" 1 ;;
    save-gone) missing "$1" ;;
    save-garbage) yes nonsense | head -c 100000; exit ;;
    save-nothing) exit ;;
    esac
    cat "$here/saved"
    exit ;;
rmi | rm) exit ;;
info) exit ;;
ps) cat "$here/left" 2>/dev/null; exit ;;
network) exit ;;
pull) [ "$manner" != pull-refused ] || die "Error: access to the resource is denied" 125
    eval "echo \"\${$#}\"" >>"$here/images"; exit ;;
images) case $* in *' {{.ID}} {{.Repository}}:{{.Tag}} {{.Size}}') cat "$here/kept" 2>/dev/null ;; esac; exit ;;
commit) eval "echo \"\${$#}\"" >>"$here/images"; exit ;;
image)
    eval "name=\${$#}"
    [ "$manner" != nonsense ] || { echo "nothing of the kind"; exit; }
    [ "$manner" != inspect-slow ] || until [ -e "$here/go" ]; do sleep 0.05; done
    grep -qxF "$name" "$here/images" || missing "$name"
    cat "$here/inspected" 2>/dev/null || echo '[{"Id": "0123abcd", "Config": {"User": ""}, "Architecture": ""}]'
    exit ;;
run) shift ;;
*) die "unknown command: $1" ;;
esac

# == run: options, then the image, then the command ============================================
ulimits='' limited='' workdir='' name='' systemd='' tmpfs='' binds="$here/binds.$$"
: >"$binds"
while [ $# -gt 0 ]; do
    case $1 in
    --rm | --sig-proxy=false | --no-healthcheck | --privileged) shift ;;
    --http-proxy=false) [ "$kind" = podman ] || die "unknown flag: --http-proxy"; shift ;;
    --pull) [ "$2" = never ] || die "invalid pull option: $2"; shift 2 ;;
    --systemd) [ "$kind" = podman ] || die "unknown flag: --systemd"
        [ "$2" = always ] || die "Cannot parse bool $2"
        systemd=yes; shift 2 ;;
    --cgroupns) [ "$2" = private ] || die "invalid cgroup namespace mode: $2"; shift 2 ;;
    --tmpfs) tmpfs="$tmpfs $2"; [ "$tmpfs" != ' /run /run/lock' ] || systemd=yes; shift 2 ;;
    --env) case $2 in *=*) export "${2?}" ;; *) die "a variable without a value: $2" ;; esac; shift 2 ;;
    --stop-timeout) [ "$2" -ge 0 ] 2>/dev/null || die "invalid timeout: $2"; shift 2 ;;
    --log-driver | --name | --label | --network | --memory | --cpus | --user | --workdir | --entrypoint | --security-opt | --ulimit)
        [ $# -ge 2 ] || die "flag needs an argument: $1"
        case $1 in
        --log-driver) [ "$2" = none ] || die "unknown log driver: $2" ;;
        --label) case $2 in *=*) ;; *) die "a label without a value: $2" ;; esac ;;
        --memory) [ "$2" -ge 6291456 ] 2>/dev/null || die "Minimum memory limit allowed is 6MB: $2"; limited=yes ;;
        --cpus) [ "$2" -ge 1 ] 2>/dev/null || die "invalid number of processors: $2" ;;
        --security-opt) [ "$2" = label=disable ] || die "invalid security option: $2" ;;
        --ulimit) case $2 in nofile=*:* | nproc=*:*) ulimits="$ulimits $2" ;; *) die "invalid ulimit argument: $2" ;; esac ;;
        --entrypoint) entry=$2 ;;
        --workdir) workdir=$2 ;;
        --name) name=$2 ;;
        esac
        shift 2 ;;
    --volume)
        case $2 in
        *:O) [ "$kind" = podman ] || die "invalid mode: O"; [ "$manner" != no-overlay ] || die "overlay: not supported"; how=overlay both=${2%:O} ;;
        *:ro) how=ro both=${2%:ro} ;;
        *) how=rw both=$2 ;;
        esac
        from=${both%%:*} to=${both#*:}
        case $to in /*:*) die "invalid volume specification: $2" ;; /*) ;; *) die "invalid mount path: $2" ;; esac
        [ -e "$from" ] || die "statfs $from: no such file or directory"
        echo "$how $from $to" >>"$binds"
        shift 2 ;;
    -*) die "unknown flag: $1" ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || die "no image"
shift # the image

[ "$manner" != limits ] || case $ulimits in *nproc=100:100*) ;; *) die "error setting rlimit type 6: operation not permitted" 126 ;; esac
case $manner:$entry:$limited in
unlimited:*:yes | unlimited-later:/.belljar/agent:yes) echo "Resource limits are not supported and ignored on cgroups V1 rootless systems" >&2 ;;
esac
if [ "$entry" = /agent ]; then
    rm -f "$binds"
    [ "$manner" != no-container ] || die "OCI runtime error: nothing works here" 126
    echo "belljar-agent of a trial"
    exit
fi
if [ -z "$name" ] || [ "$workdir" != / ]; then die "a container without a name or a directory"; fi
case $manner in
hang) exec sleep 1000 ;;
full) die "Error: creating container storage: no space left on device" ;;
dies) exit 3 ;;
other-processor) die "exec /.belljar/agent: exec format error" 126 ;;
esac

# A root of its own in memory, with the host's programs and what is mounted.
user='' more=''
if [ "$(id -u)" != 0 ]; then user='--user --map-root-user' more=,userxattr; fi
export more systemd manner here kind
# shellcheck disable=SC2086,SC2016 # two words, and what is expanded within
exec unshare $user --mount --pid --fork --kill-child sh -c '
    binds=$1 root=$2; shift 2
    set -e
    mkdir -p "$root"
    mount -t tmpfs tmpfs "$root"
    for dir in bin lib lib64 usr etc dev sbin; do
        if [ -L "/$dir" ]; then cp -P "/$dir" "$root/$dir"
        elif [ -d "/$dir" ]; then mkdir "$root/$dir"; mount --rbind "/$dir" "$root/$dir"; fi
    done
    mkdir "$root/proc" "$root/tmp"
    [ "$manner" != linked ] || { mkdir "$root/mnt"; ln -s /etc "$root/mnt/hostos"; }
    mount -t proc proc "$root/proc"
    while read -r how from to; do
        mkdir -p "$root$to"
        case $how in
        overlay)
            mkdir -p "$root/.upper/u" "$root/.upper/w"
            mount -t overlay -o "lowerdir=$from,upperdir=$root/.upper/u,workdir=$root/.upper/w$more" overlay "$root$to" ;;
        *) mount --bind "$from" "$root$to" ;;
        esac
        [ "$how" != ro ] || mount -o remount,bind,ro "$root$to"
    done <"$binds"
    rm -f "$binds"
    [ -z "$systemd" ] || . "$here/systemd.sh"
    exec chroot "$root" "$@"
' sh "$binds" "$here/root.$$" "$entry" "$@"
