# Belljar. `make` alone says what there is.

export CARGO_TERM_COLOR ?= auto

# What could not be tried on this machine: no step that was skipped counts as passed.
export SKIPPED := $(CURDIR)/target/skipped

.PHONY: help build demo example laboratory test check html bare bare-all guests guests-all table bench fixtures lint-shell clean-fixtures

help:
	@echo 'make build        the program, target/release/belljar'
	@echo 'make demo         install what is needed, then run a test in two guests: this machine as it is, and a stock Debian image'
	@echo 'make example      install what is needed, then the suite of examples/os-features in both guests (ARGS="--profile quick" for some of it)'
	@echo 'make laboratory   the same for the suite of examples/laboratory: disks that fail, power cuts, reboots'
	@echo 'make test         install what is needed, then everything that CI checks: format, lints, docs, tests, real guests'
	@echo 'make check        the part of it without guests'
	@echo 'make html         the part of it in a browser'
	@echo 'make bare         the part of it in bare root directories of Debian 12 and 13: what a fresh machine has to install'
	@echo 'make bare-all     the same, and make demo and make test as a whole there (takes an hour)'
	@echo 'make guests       the part of it in real guests (CASES=pattern for some)'
	@echo 'make guests-all   in all real guests: all formats, login shells and distributions, of which make guests takes some in turn; a thousand clones'
	@echo 'make table        the table of guests in the README, measured anew (takes half an hour without KVM)'
	@echo 'make bench        ratios against a bare QEMU, and against virtme-ng where that is installed; clones against cold boots; shares against each other; lab disks against QEMU'\''s own'
	@echo 'make fixtures     build the images of the tests'

build:
	cargo build --release --locked

demo:
	@echo '==> make demo: installs what is missing, builds Belljar and a Debian image, and runs a test in two guests'
	@testing/setup demo
	@testing/demo/run

example:
	@echo '==> make example: installs what is missing, builds Belljar and a Debian image, and runs the example suite in two guests'
	@testing/setup example
	cargo build --release --locked --quiet
	@examples/os-features/run $(ARGS)

laboratory:
	@echo '==> make laboratory: installs what is missing, builds Belljar and a Debian image, and runs the suite of disks that fail, power cuts and reboots'
	@testing/setup example
	cargo build --release --locked --quiet
	@examples/laboratory/run $(ARGS)

test:
	@echo '==> make test: installs what is missing, then checks sources, runs the tests, and runs the guests'
	@testing/setup test
	@mkdir -p target && : >$(SKIPPED)
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory html
	@$(MAKE) --no-print-directory bare
	@$(MAKE) --no-print-directory guests
	@if [ -s $(SKIPPED) ]; then echo '==> passed, without what could not be tried on this machine:'; cat $(SKIPPED); else echo '==> passed, nothing skipped'; fi

# Tests without a guest mostly wait.
check: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
check: lint-shell
	@echo '==> format'
	cargo fmt --all --check
	@echo '==> lints'
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@echo '==> documentation'
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet
	@echo '==> tests without a guest'
	cargo test --workspace --locked --quiet --no-fail-fast

lint-shell:
	@if command -v shellcheck >/dev/null; then echo '==> shell scripts'; \
	    shellcheck -x testing/fixture testing/setup testing/install testing/bare/run testing/fake-engine/engine.sh crates/machine/src/session/console/ctl.sh testing/demo/run testing/demo/test.sh testing/html/run testing/recipes/*.sh testing/guests/run testing/guests/lib.sh testing/guests/cases/*.sh .ci/run \
	        examples/os-features/run examples/os-features/tests/*.sh examples/os-features/tests/*/*.sh \
	        examples/laboratory/run examples/laboratory/tests/*.sh examples/laboratory/tests/*/*.sh; \
	else mkdir -p target; echo 'skipped - shell scripts: there is no shellcheck' | tee -a $(SKIPPED); fi

html:
	@echo '==> the HTML report in a browser'
	@testing/html/run || { code=$$?; [ $$code = 77 ] && echo 'skipped - the HTML report in a browser: there is none' >>$(SKIPPED) || exit $$code; }

bare:
	@echo '==> what a fresh Debian has to install'
	cargo build --locked --quiet
	@testing/bare/run

bare-all:
	cargo build --locked --quiet
	@testing/bare/run --all

guests:
	@echo '==> tests in real guests'
	cargo build --locked --quiet
	cargo test --locked --quiet -p belljar-image -p belljar-machine -- --ignored
	@testing/guests/run $(CASES)

guests-all:
	@testing/setup test
	@testing/fixture $$(testing/guests/run --all --fixtures) >/dev/null
	cargo build --locked --quiet
	@testing/guests/run --all $(CASES)

# The table in the README, with what it measures.
table:
	@testing/setup test
	cargo build --locked --quiet
	@testing/guests/table --update

bench:
	@testing/setup bench
	cargo build --release --locked --quiet -p belljar -p fake-qemu
	cargo build --release --locked --quiet -p belljar-machine --example clones
	@testing/fixture debian-bookworm >/dev/null
	@testing/bench/run
	@testing/bench/clones
	@testing/bench/shares
	@testing/bench/disks

fixtures:
	@testing/setup test
	@testing/fixture debian-bookworm busybox-initrd installer-amd64 installer-i386

clean-fixtures:
	@testing/fixture --prune
