# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# A Debian 13 as bare as one can be had, for testing/bare/run: what is essential and apt, and make and sudo to begin with.

fixture_describe='bare Debian 13 (minbase, no recommends, with make and sudo) as a tar'
fixture_suffix=tar

fixture_needs() { need mmdebstrap mmdebstrap; }

fixture_build() {
    apt_sources trixie >"$work/sources.list"
    as_root mmdebstrap --variant=minbase --mode=root --format=tar --include=make,sudo --aptopt='Acquire::Retries "5"' \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
        trixie "$1" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1 || { tail -n 30 "$work/mmdebstrap.log" >&2; die 'mmdebstrap failed; these lines are the end of what it said'; }
    as_root chown "$(id -u):$(id -g)" "$1"
}
