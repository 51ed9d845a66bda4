# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016 # testing/fixture reads fixture_*; the set-up script is expanded later
# A Debian 12 disk without systemd: sysvinit, getty on the serial line, and a root user for each login shell that a
# session has to find its way out of (user and shell have the same name, all passwords are "belljar").

fixture_describe='Debian 12 disk with sysvinit; users root, dash, mksh, fish, tcsh, busybox (all uid 0, password belljar)'
fixture_suffix=qcow2

fixture_needs() { debian_disk_needs; }

fixture_build() {
    debian_disk "$1" sysvinit-core,initscripts,udev,kmod,iproute2,ifupdown,procps,mksh,fish,tcsh,busybox-static '
        sed -i "s/^\([2-6]\):\([0-9]*\):respawn/#&/" "$root/etc/inittab"
        echo "T0:23:respawn:/sbin/getty -L ttyS0 115200 vt102" >>"$root/etc/inittab"
        printf "auto lo\niface lo inet loopback\n" >"$root/etc/network/interfaces"
        # busybox is ash when called by a name that starts with a dash and ends in sh; a login shell is.
        ln -s /bin/busybox "$root/usr/local/bin/ash"
        for user in dash:/bin/dash mksh:/bin/mksh fish:/usr/bin/fish tcsh:/bin/tcsh busybox:/usr/local/bin/ash; do
            useradd -R "$root" -K UID_MIN=0 -o -u 0 -g 0 -d /root -s "${user#*:}" "${user%%:*}"
            echo "${user%%:*}:belljar" | chpasswd -R "$root"
        done
    '
}
