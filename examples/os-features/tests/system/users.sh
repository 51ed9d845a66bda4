#!/bin/sh
# A user from the cradle to the grave: a home that others cannot look into, a password that is asked for, a
# locked account, and nothing left in the end.
# belljar: requires = ["useradd", "chpasswd", "su"]
. "$(dirname "$0")/../lib.sh"

useradd --create-home --shell /bin/sh --key HOME_MODE=0700 guest-one
useradd --create-home --shell /bin/sh guest-two
echo guest-one:correct | chpasswd
same "$(su - guest-one -c 'echo $HOME; id -un' | xargs)" '/home/guest-one guest-one' 'home and name'
refused su - guest-two -c 'ls /home/guest-one'

# Only root is not asked for the password.
log_in() { echo "$1" | su - guest-two -c "su - guest-one -c 'echo in'"; }
same "$(log_in correct)" in 'a login with the password'
refused log_in wrong
usermod --lock guest-one
refused log_in correct

userdel --remove guest-one
refused getent passwd guest-one
[ ! -e /home/guest-one ] || fail 'its home is still there'
