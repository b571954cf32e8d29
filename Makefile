# `make help` lists the targets. Everything runs in .venv, which `make setup` creates.
#
#   make setup PYTHON=/path/to/python3.11     another interpreter (3.11 or later)
#   make test-determinism PYTHONS="3.12 /path/to/python3.15"
#                                             which other interpreters replay the golden chain
#   make demo  TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                             where vLLM's CPU build of PyTorch comes from: on an
#                                             ordinary machine PyTorch's own index of CPU wheels

SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
PYTHONS ?= 3.12 3.13 3.14 3.15
BIN := .venv/bin
STAMP := .venv/.setup-done

ifneq ($(strip $(TORCH_INDEX)),)
export IEMAS_TORCH_INDEX := $(TORCH_INDEX)
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup lint format protos protos-check test demo clean \
  test-fast test-integration test-determinism test-model test-e2e

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Options: PYTHON=/path/to/python3.11"
	@echo "         PYTHONS=\"3.12 /path/to/python3.15\"  (for test-determinism)"
	@echo "         TORCH_INDEX=https://download.pytorch.org/whl/cpu  (where vLLM's PyTorch is from)"

setup: $(STAMP) ## Create .venv with the package and all that tests and benchmarks need.

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: IEMAS needs Python 3.11 or later and '$(PYTHON)' is not:" \
	    "install it, or name it with make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: '$(PYTHON)' lacks the venv module: install it (Debian: apt install" \
	    "python3.11-venv), or name another with make setup PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

lint: setup ## Check style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code and apply the safe fixes.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup ## Regenerate iemas/v1 from protos/.
	PYTHON=$(BIN)/python ./scripts/generate_protos.sh

protos-check: setup ## Fail if iemas/v1 is not what protos/ generates.
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	  PYTHON=$(BIN)/python ./scripts/generate_protos.sh "$$fresh" && \
	  diff -r -x __pycache__ -x __init__.py "$$fresh/iemas/v1" iemas/v1 || { \
	    echo "error: iemas/v1 differs from protos/: run make protos" >&2; exit 1; }

test-fast: setup ## Run all tests within one process: rules, properties, simulation (about 2 minutes).
	$(BIN)/python -m pytest -n 2 --dist loadfile \
	  --ignore=tests/e2e --ignore=tests/integration --ignore=tests/model

test-integration: setup ## Run the tests with real processes and sockets, on simulated backends.
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/integration

test-determinism: setup ## Replay the golden chain under every other Python that is here.
	$(BIN)/python -m tests.determinism.pythons $(PYTHONS)

test-model: setup ## Explore consensus exhaustively, reduced (python -m tests.model is the whole).
	$(BIN)/python -m pytest tests/model

test-e2e: setup ## Run the tests on real vLLM and real Compose.
	$(BIN)/python -m pytest tests/e2e

test: lint protos-check test-fast test-integration test-determinism test-model test-e2e ## Run everything that CI runs, from nothing.

demo: setup ## Run a market of 3 nodes on 3 real vLLM servers and show it.
	$(BIN)/python -m examples.demo

clean: ## Remove .venv, caches and build results.
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
