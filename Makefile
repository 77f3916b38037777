# Coracle's commands for people and CI. `make help` lists them.

SHELL := /bin/bash
TARGET ?= x86_64-unknown-linux-gnu
# Where cargo builds; the supervisor is built apart, as it is static.
OUT := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
SUPERVISOR := $(OUT)/$(TARGET)/supervisor/coracle-supervisor
PYTHON := $(CURDIR)/.venv/bin/python

.PHONY: help setup build release supervisor test lint unit e2e test-v2 demo bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## install what the system lacks (Debian packages, a Python environment for the tests)
	@scripts/setup

supervisor:
	@CARGO_ENCODED_RUSTFLAGS="-Ctarget-feature=+crt-static" \
		cargo build --locked -p supervisor --profile supervisor --target $(TARGET)

build: ## build target/debug/coracle, with the supervisor as a file beside it
	@cargo build --locked -p coracle -p supervisor

release: supervisor ## build target/release/coracle, one file
	@CORACLE_SUPERVISOR_BIN=$(SUPERVISOR) cargo build --locked --release -p coracle

lint: ## formatting, clippy, dependency rules, generated code
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo xtask deps
	cargo xtask licenses
	cargo xtask codegen --check --botocore $$($(PYTHON) -c 'import os, botocore; print(os.path.dirname(botocore.__file__))')

unit: build ## Rust tests
	PATH=$(CURDIR)/.venv/bin:$$PATH cargo test --locked --workspace

e2e: build ## tests with boto3, the aws CLI and real images against a running server
	CORACLE=$(OUT)/debug/coracle $(PYTHON) -m pytest -q tests

test-v2: build ## the same tasks on a host with pure cgroup v2, emulated
	@test=$$(cargo test --locked -q -p agent --test cgroup --no-run --message-format json | grep -o '"executable":"[^"]*"' | tail -n 1 | cut -d'"' -f4) && \
	CORACLE=$(OUT)/debug/coracle && \
	/usr/bin/python3 emulated-host/machine.py --cache $(OUT)/emulated-host --coracle $$CORACLE --test-binary $$test

test: setup lint unit e2e test-v2 ## everything that CI runs

demo: setup release ## a web application on Coracle, from nothing (KEEP=1 leaves it running)
	@CORACLE=$(OUT)/release/coracle PYTHON=$(PYTHON) scripts/demo

bench: setup release ## speed, beside docker and runc where they are installed
	@CORACLE=$(OUT)/release/coracle $(PYTHON) bench/bench.py

clean: ## remove what was built
	cargo clean
	rm -rf .venv
