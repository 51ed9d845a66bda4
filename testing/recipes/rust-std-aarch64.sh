# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # testing/fixture reads fixture_*, and sets work
# Rust's standard library for aarch64, as `rustup target add aarch64-unknown-linux-musl` has it where that can be had: built of the sources of the very
# version, which Debian's package rust-src has, with musl from Debian's package for arm64. Nothing of it is the toolchain's own, so it is for BELLJAR_AGENT_SYSROOT.

fixture_describe="Rust's standard library for aarch64 (musl), for BELLJAR_AGENT_SYSROOT"
fixture_suffix=d

fixture_needs() { need cargo rustup; need dpkg-deb dpkg; }

fixture_build() {
    local version target=aarch64-unknown-linux-musl source into=$1/lib/rustlib/aarch64-unknown-linux-musl/lib own=$work/apt package
    version=$(rustc --version | cut -d' ' -f2)
    mkdir -p "$into/self-contained" "$own/lib/lists/partial" "$own/cache/archives/partial" "$work/debs"
    : >"$own/status"
    # The suites in which it may be: each release of Debian has one version, and the backports several.
    for package in trixie trixie-backports forky sid; do apt_sources "$package" '[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ' | grep -v -- -security; done >"$own/sources.list"
    local -a apt=(-o "Dir::State=$own/lib" -o "Dir::State::status=$own/status" -o "Dir::Cache=$own/cache" -o "Dir::Etc::SourceList=$own/sources.list"
        -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o APT::Architecture=arm64
        -o APT::Architectures=arm64 -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=5
        -o Debug::NoLocking=1 -o APT::Sandbox::User=)
    apt-get "${apt[@]}" -qq update >&2 || die 'apt-get update failed'
    source=$(apt-cache "${apt[@]}" madison rust-src | awk -v v="$version+" 'index($3, v) == 1 { print $3; exit }')
    [ -n "$source" ] || die "no suite of Debian has the sources of Rust $version (rust-src): $(apt-cache "${apt[@]}" madison rust-src | awk '{ print $3 }' | xargs)"
    say "downloading the sources of Rust $version, and musl"
    (cd "$work/debs" && apt-get "${apt[@]}" -qq download "rust-src=$source" musl-dev/trixie libgcc-14-dev/trixie) || die 'apt-get download failed'
    for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
    say 'building the standard library'
    # As the toolchain's own build has it; no unwinding, for the agent's panics end it.
    (cd "$work/unpacked/usr/src/rustc-$version/library" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET RUSTC_BOOTSTRAP=1 __CARGO_DEFAULT_LIB_METADATA=stablestd \
        RUSTFLAGS='-Zforce-unstable-if-unmarked -Cdebuginfo=0 -Cpanic=abort' cargo build --quiet --profile dist --locked -p std -p panic_abort --no-default-features \
        --target "$target" --target-dir "$work/target") || die 'cargo could not build it'
    cp "$work/target/$target/dist/deps"/*.rlib "$into/"
    cp "$work"/unpacked/usr/lib/aarch64-linux-musl/{crt1,crti,crtn,rcrt1,Scrt1}.o "$work/unpacked/usr/lib/aarch64-linux-musl/libc.a" "$into/self-contained/"
    cp "$work"/unpacked/usr/lib/gcc/aarch64-linux-gnu/14/crt{begin,end}{,S}.o "$into/self-contained/"
    # Nothing is unwound, so nothing of it is called.
    printf '!<arch>\n' >"$into/self-contained/libunwind.a"
}
