# Coracle's commands for people and CI. `make help` lists them.

SHELL := /bin/bash
# Where `make setup` puts Rust on a machine that has none.
export PATH := $(PATH):$(HOME)/.cargo/bin
TARGET ?= x86_64-unknown-linux-gnu
# Where cargo builds.
OUT := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FUZZ_TIME ?= 60
# The supervisor is static: it is also the init inside containers that ask for one, whatever libraries
# they have. `coracle` carries it inside.
# The microVM monitor and its jailer are static as they run where there are no files at all.
embed = CORACLE_SUPERVISOR_BIN=$(OUT)/$(TARGET)/$(1)/coracle-supervisor \
	CORACLE_VMM_BIN=$(OUT)/$(TARGET)/$(1)/coracle-vmm \
	CORACLE_JAILER_BIN=$(OUT)/$(TARGET)/$(1)/coracle-jailer
EMBED := $(call embed,supervisor)
EMBED_DEV := $(call embed,supervisor-dev)
# Where the lean kernel is kept; it is not cargo's, and compiled once for all trees that share the place.
LEAN_KERNEL ?= $(OUT)/lean-kernel
STATIC := CARGO_ENCODED_RUSTFLAGS="-Ctarget-feature=+crt-static"
PYTHON := $(CURDIR)/.venv/bin/python

.PHONY: help setup build release programs programs-dev test lint unit e2e test-v2 test-microvm test-monitor e2e-microvm e2e-microvm-killed test-row-1 test-row-2 fuzz demo demo-microvm bench bench-microvm lean-kernel clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what the system lacks (Debian packages, a Python environment for the tests)
	@scripts/setup

programs:
	@$(STATIC) cargo build --locked -p supervisor -p vmm --profile supervisor --target $(TARGET)

programs-dev:
	@$(STATIC) cargo build --locked -p supervisor -p vmm --profile supervisor-dev --target $(TARGET)

build: programs-dev ## build target/debug/coracle
	@$(EMBED_DEV) cargo build --locked --workspace $(BUILD_ALSO)

release: programs ## build target/release/coracle, one file
	@$(EMBED) cargo build --locked --release -p coracle

lint: ## formatting, clippy, dependency rules, generated code
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo xtask deps
	cargo xtask licenses
	cargo xtask codegen --check --botocore $$($(PYTHON) -c 'import os, botocore; print(os.path.dirname(botocore.__file__))')

unit: build ## Rust tests
	PATH=$(CURDIR)/.venv/bin:$$PATH $(EMBED_DEV) cargo test --locked --workspace

e2e: build ## tests with boto3, the aws CLI and real images against a running server
	CORACLE=$(OUT)/debug/coracle $(PYTHON) -m pytest -q tests

test-v2: build ## tasks and the supervisor on a host with pure cgroup v2, emulated
	@tests=$$($(EMBED_DEV) cargo test --locked -q --workspace --test cgroup --test run --no-run --message-format json | grep -o '"executable":"[^"]*/deps/[^"]*"' | cut -d'"' -f4 | sed 's/^/--test-binary /') && \
	/usr/bin/python3 emulated-host/machine.py --cache $(OUT)/emulated-host --coracle $(OUT)/debug/coracle $$tests \
	  --file $(OUT)/$(TARGET)/supervisor-dev/coracle-supervisor=/bin/coracle-supervisor

test-microvm: test-monitor e2e-microvm-killed e2e-microvm ## tests of microVMs on real KVM, in an emulated host

# The end-to-end tests run here, against a server there that gives each task a microVM. Two such hosts, as those tests
# that kill their servers take as long as half of the others.
E2E_MICROVM = @/usr/bin/python3 emulated-host/machine.py --cache $(OUT)/emulated-host --kvm --coracle $(OUT)/debug/coracle \
	  --memory 8G --limit 1800 --results $(OUT)/$@ --pytest "$(PYTHON) -m pytest" --serve -q -n 2 -p no:cacheprovider

e2e-microvm: build ## all end-to-end tests with a microVM for each task, but those that kill their servers (TESTS=… for some)
	$(E2E_MICROVM) -m 'not own_server' $(or $(TESTS),tests)

e2e-microvm-killed: build ## the end-to-end tests that kill their servers, with a microVM for each task (TESTS=… for some)
	$(E2E_MICROVM) -m own_server $(or $(TESTS),tests)

# Each test binary of the monitor; those of its tests that need KVM are ignored elsewhere.
test-monitor: build
	@tests=$$($(EMBED_DEV) cargo test --locked -q --workspace --no-run --message-format json | grep '/crates/vmm#' | grep -o '"executable":"[^"]*/deps/[^"]*"' | cut -d'"' -f4 | sed 's/^/--test-binary /') && \
	/usr/bin/python3 emulated-host/machine.py --cache $(OUT)/emulated-host --kvm --coracle $(OUT)/debug/coracle $$tests \
	  $$(cd $(OUT)/$(TARGET)/supervisor-dev && printf -- '--file %s ' $$PWD/coracle-supervisor=/guest/supervisor $$PWD/coracle-vmm=/bin/coracle-vmm $$PWD/coracle-jailer=/bin/coracle-jailer)

# What is found goes to a directory of its own: the corpus that is kept is to stay small.
fuzz: ## fuzz the microVM monitor, FUZZ_TIME seconds for each target (needs nightly Rust and cargo-fuzz)
	@cd crates/vmm/fuzz && for target in $$(cargo fuzz list); do \
	  mkdir -p $(OUT)/fuzz/$$target && \
	  cargo +nightly fuzz run --target-dir $(OUT)/fuzz/build $$target $(OUT)/fuzz/$$target corpus/$$target -- \
	    -max_total_time=$(FUZZ_TIME) -max_len=1024 -len_control=0 -timeout=20 || exit; \
	done

# Built with its tests from the beginning: their dependencies' features would have half of all built once more.
# At the end two rows of tests side by side, each of which keeps a processor busy for as long as the other.
test: export BUILD_ALSO := --all-targets
test: setup lint build ## everything that CI runs
	@$(MAKE) --no-print-directory -j 2 --output-sync=line test-row-1 test-row-2

test-row-1:
	@$(MAKE) --no-print-directory -j 1 unit
	@$(MAKE) --no-print-directory -j 1 e2e
	@$(MAKE) --no-print-directory -j 1 test-v2
	@$(MAKE) --no-print-directory -j 1 e2e-microvm-killed

test-row-2:
	@$(MAKE) --no-print-directory -j 1 e2e-microvm
	@$(MAKE) --no-print-directory -j 1 test-monitor

demo: setup release ## a web application on Coracle, from nothing (KEEP=1 leaves it running)
	@CORACLE=$(OUT)/release/coracle PYTHON=$(PYTHON) scripts/demo

bench: setup release ## speed, beside docker and runc where they are installed
	@CORACLE=$(OUT)/release/coracle $(PYTHON) bench/bench.py

# A command on a machine with KVM: this one, or the emulated host.
KVM_HOST = /usr/bin/python3 emulated-host/kvm_host.py --cache $(OUT)/emulated-host --coracle $(OUT)/debug/coracle

demo-microvm: build ## tasks with kernels of their own, and one that crashes its kernel
	@$(KVM_HOST) --put scripts/demo-microvm '$$FILES/demo-microvm'

bench-microvm: build programs ## how soon microVMs start and what they cost; ratios only where there is no real KVM
	@$(EMBED_DEV) cargo build --locked --workspace --example microvm_bench
	@lean=$$(scripts/lean-kernel $(LEAN_KERNEL)) && $(KVM_HOST) --lean $$lean --put $(OUT)/debug/examples/microvm_bench \
	  $$(printf -- '--put $(OUT)/$(TARGET)/supervisor/%s ' coracle-jailer coracle-vmm coracle-supervisor) \
	  '$$FILES/microvm_bench --state-dir $$CORACLE_STATE_DIR --programs $$FILES $${EMULATED:+--ratios --rounds 10 --clones 8}'

lean-kernel: ## compile a small kernel for microVMs, once (8 minutes); prints its package
	@scripts/lean-kernel $(LEAN_KERNEL)

clean: ## remove what was built
	cargo clean
	rm -rf .venv
