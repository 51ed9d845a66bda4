# shellcheck shell=bash
# shellcheck disable=SC2015,SC2016,SC2154 # what is quoted is expanded in the guest; run and lib.sh set dir, code
# The agent for another processor, with a belljar that is built where Rust has a standard library for it.

# fixtures: busybox-arm64 rust-std-aarch64
test_aarch64() {
    command -v qemu-system-aarch64 >/dev/null || skip 'there is no qemu-system-aarch64'
    local at target=${CARGO_TARGET_DIR:-$top/target}/agents
    BELLJAR_AGENT_SYSROOT=$(fixture rust-std-aarch64) CARGO_TARGET_DIR=$target \
        cargo build --quiet --locked --manifest-path "$top/Cargo.toml" -p belljar || fail 'belljar cannot be built'
    BELLJAR=$target/debug/belljar
    "$BELLJAR" doctor >told || :
    want_line 'aarch64: .*with an agent' told
    at=$(fixture busybox-arm64)
    on() { bj --kernel "$at/vmlinuz" --initrd "$at/initrd" "$@"; }
    head -c 1M /dev/urandom >stdin
    on -v -- sh -c 'cat; echo "to stderr" >&2; uname -m >result; exit 7'
    want_code 7
    cmp stdin out
    want_line '^to stderr$' err
    want_line '^aarch64$' ws/result
    want_err 'session: agent'
    want_err 'template: made'
    on -v --share fuse -- sh -c 'grep -c fuse.belljar /proc/mounts; kill -9 $$'
    want_code 137
    want_out 2
    on -v --timeout 3s -- sleep 100
    want_code 124
    on -- sh -c 'echo c >/proc/sysrq-trigger; sleep 100'
    want_code 121
    want_err 'kernel panicked'
    # The agent as its first process.
    on --access init --workspace none -- sh -c 'echo $PPID; exit 7'
    want_code 7
    want_out 1
    # A root directory of that processor, with a kernel in it.
    mkdir -p root/bin root/boot
    (cd root && zcat "$at/initrd" | cpio -idm --quiet)
    cp "$at/vmlinuz" "root/boot/vmlinuz-$(ls root/lib/modules)"
    bj -v --rootfs "$dir/root" -- sh -c 'uname -m; ls /belljar 2>/dev/null; exit 7'
    want_code 7
    want_out aarch64
    want_err 'processor: aarch64 \(the programs in its root'
}
