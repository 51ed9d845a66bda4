# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# Login shells that are not a plain sh, in a Debian without systemd.

as() {
    bj --image "$(fixture debian-sysvinit)" --login "$1:belljar" --env "A=it's" -- sh -c 'echo "$A on $(uname -s)"; ps -o comm= -p 1; echo err >&2; touch made; exit 7'
    want_code 7
    want_out "it's on Linux" init
    want_line '^err$' err
    [ -e ws/made ]
}

# fixtures: debian-sysvinit
test_bash() { as root; }
# fixtures: debian-sysvinit
test_dash() { as dash; }
# fixtures: debian-sysvinit
test_mksh() { as mksh; }
# fixtures: debian-sysvinit
test_fish() { as fish; }
# fixtures: debian-sysvinit
test_tcsh() { as tcsh; }
# fixtures: debian-sysvinit
test_busybox() { as busybox; }
