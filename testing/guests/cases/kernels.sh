# shellcheck shell=bash
# shellcheck disable=SC2154 # run and lib.sh set dir, code
# A guest for each kernel.

# fixtures: kernels
test_each_kernel_is_a_guest() {
    local kernels
    kernels=$(fixture kernels)
    mkdir ws/t
    # Each boots its own kernel, with its own modules.
    cat >ws/t/release <<'END'
#!/bin/sh
[ "$(uname -r | tr + _)" = "${BELLJAR_GUEST#deb-}" ] && modprobe dummy && grep '^dummy ' /proc/modules
END
    printf '#!/bin/sh\nuname -r | grep -q "^5" && exit 3\nexit 0\n' >ws/t/only
    chmod +x ws/t/*
    cat >ws/belljar.toml <<END
[guests.deb]
kernels = ["$kernels/boot/vmlinuz-*"]

[[suites]]
name = "s"
tests = ["t/*"]
END
    if (cd ws && "$BELLJAR" test) >out 2>err; then fail 'it passed'; fi
    cat out err
    want_line '6 tests: 5 passed, 1 failed'
    want_line 'FAIL .* s/only@deb-5\.10'
}
