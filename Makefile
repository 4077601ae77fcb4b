# The same words everywhere: deps venv build develop lint audit test bench bench-peers conformance demo clean.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The profile of the native module that `develop` builds: "dev" links in seconds and is fast enough for tests.
PROFILE ?= dev
# gzip by ISA-L, where its assembly can be built: looked at when a recipe runs, after `deps`.
ISAL = $(if $(and $(shell command -v nasm),$(shell command -v autoreconf),$(shell command -v libtoolize)),isal)
# cargo's features for everything that needs no interpreter.
ENGINE = --no-default-features --features engine$(ISAL:%=,%)
PYTEST_ARGS ?=
# Files of tests are shared out among so many processes, each with registries and images of its own; 0 is this one.
WORKERS ?= $(shell nproc)
IMAGE ?=
PEERS_ARGS ?=
# A directory of OCI layouts that `bench-peers` measures; without it, what it makes itself.
LAYOUTS ?=
TARGETS ?= archive pax apply gzip zstd index toc
ifneq ($(filter fuzz,$(MAKECMDGOALS)),)
SECONDS ?= 60
# `apply` makes a thousand trees a second in memory, seventy on a disk.
FUZZ_SCRATCH := $(firstword $(wildcard /dev/shm) /tmp)
HOST := $(shell PATH="$(HOME)/.cargo/bin:$$PATH" rustc -vV | sed -n 's/^host: //p')
# libFuzzer's instrumentation, as cargo-fuzz asks rustc for it; stable rustc has it too, only the sanitizers want nightly.
COVERAGE := --cfg fuzzing -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 \
  inline-8bit-counters pc-table trace-compares) -Ccodegen-units=1
endif

ifneq ($(filter soak,$(MAKECMDGOALS)),)
# Of each test's own; together they take as long as there are tests. None is no limit.
SECONDS ?=
ROUNDS ?= 5000
endif

ifneq ($(filter bench-peers,$(MAKECMDGOALS)),)
ROUNDS ?= 5
endif

export PATH := $(HOME)/.cargo/bin:$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1

.PHONY: help deps deps-peers venv build develop format lint audit test test-rust test-python soak
.PHONY: bench bench-peers conformance oci-runtime-tool fuzz notices demo clean

help: ## Show these words
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

deps: ## Install what is missing from Debian, and a Rust toolchain
	@.ci/deps

deps-peers: deps ## Install the tools that `bench-peers` compares with
	@.ci/deps peers

venv: $(BIN)/.ready ## Make the virtual environment with the development tools

$(BIN)/.ready: pyproject.toml
	@.ci/deps
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

build: deps venv ## Build a release wheel into dist/
	$(BIN)/maturin build --release $(ISAL:%=--features %) --out dist

develop: deps venv ## Build the native module and the shim into the virtual environment
	rm -f python/pyctrd/pyctrd-shim # a container's may run: the file must be another one then
	PATH="$(VIRTUAL_ENV)/bin:$$PATH" $(BIN)/maturin develop --quiet --profile $(PROFILE) $(ISAL:%=--features %)

notices: deps ## Write the licences of what is linked in; after a change of Cargo.lock
	@.ci/notices

format: deps venv ## Format Python and Rust
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format --quiet .
	cargo fmt
	cargo fmt --manifest-path rust/fuzz/Cargo.toml

lint: develop ## Check style and types of Python and Rust
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cargo fmt --check
	cargo fmt --check --manifest-path rust/fuzz/Cargo.toml
	@.ci/notices --check
	cargo clippy --quiet --locked --all-targets $(ISAL:%=--features %) -- -D warnings
	cargo clippy --quiet --locked --no-default-features --features shim --bin pyctrd-shim -- -D warnings

audit: deps venv ## Look dependencies up in the advisory databases, where they can be reached
	@.ci/audit $(BIN)

test: lint test-rust test-python audit ## Run everything that must pass

test-rust: deps ## Run the Rust unit tests; no interpreter needed
	cargo test --quiet --locked $(ENGINE)
	cargo test --quiet --locked --no-default-features --features shim --bin pyctrd-shim

test-python: develop ## Run pytest; root tests skip themselves without root
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

soak: develop ## The long forms: stop, refuse, cut off every step; ROUNDS kills at random; SECONDS bounds each test
	$(BIN)/python -m pytest --soak --soak-rounds=$(ROUNDS) $(addprefix --soak-seconds=,$(SECONDS)) tests $(PYTEST_ARGS)

bench: PROFILE = release
bench: develop ## Measure digest, ingest, unpack, pull and start
	$(BIN)/python -m pytest benches --benchmark-sort=fullname --benchmark-columns=min,median,max,rounds $(PYTEST_ARGS)

bench-peers: PROFILE = release
bench-peers: deps-peers develop ## Measure pyctrd beside ctr, podman, docker and skopeo+umoci into benches/results (root)
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m compileall -q python/pyctrd # as an installed wheel is
	$(BIN)/python -m benches.peers --rounds $(ROUNDS) $(addprefix --layouts ,$(LAYOUTS)) $(PEERS_ARGS)

# The suite at the commit that the report in benches/results is of; Go fetches it.
# Newer modules of the specification do not build with it.
RUNTIME_TOOLS = github.com/opencontainers/runtime-tools/cmd/oci-runtime-tool
RUNTIME_TOOLS_WITH = $(RUNTIME_TOOLS)@v0.9.0 github.com/opencontainers/runtime-spec@v1.0.2 github.com/opencontainers/selinux@v1.9.1

oci-runtime-tool: ## Build opencontainers' validator of bundles into target/runtime-tools, for a test that looks on PATH (needs Go)
	mkdir -p target/runtime-tools
	cd target/runtime-tools && export PATH="$$PATH:/usr/local/go/bin" && rm -f go.mod go.sum && go mod init validation && \
		go get $(RUNTIME_TOOLS_WITH) && go build -o oci-runtime-tool $(RUNTIME_TOOLS)

CONFORMANCE = github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111

conformance: develop ## Run the OCI distribution-spec conformance suite against `serve registry` (needs Go)
	PATH="$$PATH:/usr/local/go/bin" GOBIN=$(abspath target/conformance) go install $(CONFORMANCE)
	$(BIN)/python -m benches.conformance target/conformance/conformance

fuzz: develop ## Fuzz each parser for SECONDS (TARGETS='archive pax …' chooses)
	$(BIN)/python -m tests.layers.seeds target/fuzz/seeds
	RUSTFLAGS="$(COVERAGE)" cargo build --quiet --locked --release --manifest-path rust/fuzz/Cargo.toml \
	  --target-dir target/fuzz --target $(HOST)
	@mkdir -p target/fuzz/findings; status=0; \
	for target in $(TARGETS); do \
	  echo "fuzz: $$target for $(SECONDS) s"; \
	  mkdir -p target/fuzz/corpus/$$target; \
	  TMPDIR=$(FUZZ_SCRATCH) target/fuzz/$(HOST)/release/$$target -max_total_time=$(SECONDS) -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
	    -print_final_stats=1 -artifact_prefix=target/fuzz/findings/$$target- \
	    target/fuzz/corpus/$$target target/fuzz/seeds/$$target >target/fuzz/$$target.log 2>&1 || status=1; \
	  grep -E 'DONE .*cov:|^stat::|panicked|^(SUMMARY|ERROR|Test unit)|==ERROR' target/fuzz/$$target.log || true; \
	done; exit $$status

demo: PROFILE = quick
demo: develop ## Pull from a registry on loopback and run; IMAGE=… takes any registry's image
	$(BIN)/python demo/demo.py $(IMAGE)

clean: ## Remove everything that was built
	rm -rf target dist build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f python/pyctrd/*.so python/pyctrd/pyctrd-shim
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
