# shellcheck shell=bash
# shellcheck disable=SC2154 # run and lib.sh set top
# What takes too long for each run.

test_a_thousand_copies() {
    # shellcheck source=testing/guests/cases/template.sh
    . "$top/testing/guests/cases/template.sh"
    own_cache
    copies 1000 20
}
