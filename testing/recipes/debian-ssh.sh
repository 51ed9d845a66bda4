# shellcheck shell=bash
# shellcheck disable=SC2034,SC2016,SC2154 # testing/fixture reads fixture_*; the set-up script is expanded later; work is testing/fixture's
# A Debian 12 disk that is entered over SSH alone: its init is sysvinit, which takes no unit from outside, nobody waits on the serial line, and root is locked. The
# key beside it is root's and that of the user tester, who may sudo with the password "belljar".

fixture_describe='directory with a Debian 12 disk (disk.qcow2: sysvinit, sshd, no serial login, root locked) and the key (key) that lets root and tester:belljar in'
fixture_suffix=d

fixture_needs() { debian_disk_needs; need ssh-keygen openssh-client; }

fixture_build() {
    mkdir -p "$1"
    ssh-keygen -q -t ed25519 -N '' -C belljar -f "$1/key"
    debian_disk "$1/disk.qcow2" sysvinit-core,initscripts,udev,kmod,procps,iproute2,ifupdown,isc-dhcp-client,openssh-server,sudo "key='$(cat "$1/key.pub")'"'
        printf "auto lo eth0 ens4 enp0s4\niface lo inet loopback\niface eth0 inet dhcp\niface ens4 inet dhcp\niface enp0s4 inet dhcp\n" >"$root/etc/network/interfaces"
        sed -i "/^[^#]*ttyS0/d" "$root/etc/inittab"
        chroot "$root" useradd -m -s /bin/bash -G sudo tester
        echo tester:belljar | chroot "$root" chpasswd
        chroot "$root" usermod -L root
        sed -i "s/^root:[^:]*:/root:*:/" "$root/etc/shadow"
        for home in /root /home/tester; do
            mkdir -p -m 700 "$root$home/.ssh"
            echo "$key" >"$root$home/.ssh/authorized_keys"
        done
        chroot "$root" chown -R tester: /home/tester/.ssh
    '
}
