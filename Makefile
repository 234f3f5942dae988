# serve, test, lint, bench, clean. Each target sets up what it needs in .venv and is quick when
# nothing changed: stamp files remember the install, pyproject.toml and constraints.txt renew it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
# Twice quiet: errors only, not a warning per mirror that lacks a package.
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
ARGS   ?=

# Two test workers on two cores: one thread of BLAS each, or they fight over the cores.
TEST_WORKERS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
            HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1

# A change of any of these installs again, which builds the native extension.
INSTALLED := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*.* native/core/* native/isa/* native/kernels/* native/simd/*)

.PHONY: serve test test-agents coverage lint bench clean help
.DEFAULT_GOAL := help

help:
	@echo "make serve   install what serving needs and serve SmolLM2 and MiniLM on http://127.0.0.1:8000"
	@echo "make test    install the test dependencies and run all tests"
	@echo "make test-agents  install Codex, OpenCode, Cline, Continue and aider; they edit a file (network, minutes)"
	@echo "make coverage  branch coverage of engine, kv, decoding and call; fails under 90 %"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   Penstock and its peers, alternating (minutes; ARGS=--quick; PEERS=all or names)"
	@echo "make clean   remove .venv and everything generated"
	@echo "ARGS=…       is passed on: make test ARGS='tests/kv -x'"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Penstock needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(INSTALLED) | $(BIN)/python
	@echo "installing penstock into $(VENV)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(INSTALLED) | $(BIN)/python
	@echo "installing .[test] into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[test]'
	@touch $(VENV)/.base $@

# SDKs that need other versions than ours get an environment of their own.
$(VENV)/.clients: tests/clients/apart/requirements.txt | $(BIN)/python
	@echo "installing the SDKs of tests/clients/apart into $(VENV)/clients"
	@$(PYTHON) -m venv $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip --disable-pip-version-check --quiet --quiet install -r $<
	@touch $@

$(VENV)/.lint: $(INSTALLED) | $(BIN)/python
	@echo "installing .[lint] into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[lint]'
	@touch $(VENV)/.base $@

# The embedding model too, so that its first request need not wait for a download; without it chats still work.
serve: $(VENV)/.base
	-$(BIN)/penstock pull minilm
	$(BIN)/penstock serve $(ARGS)

# The models of the end-to-end tests are pulled first: two workers need not race for them.
test: $(VENV)/.test $(VENV)/.clients
	$(BIN)/penstock pull smollm2
	$(BIN)/penstock pull minilm
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(ARGS)

# Real coding agents, in an environment of their own. Another version: change it here, then ARGS=--record.
AGENTS     := $(VENV)/agents
AGENTS_NPM := @openai/codex@0.169.0 opencode-ai@1.18.33 cline@3.0.65 @continuedev/cli@1.5.47
AIDER      := aider-chat==0.86.2

$(AGENTS)/.installed: Makefile | $(BIN)/python
	@echo "installing coding agents into $(AGENTS)"
	@npm install --prefix $(AGENTS) --no-audit --no-fund --loglevel error $(AGENTS_NPM)
	@$(PYTHON) -m venv $(AGENTS)/aider
	@$(AGENTS)/aider/bin/python -m pip --disable-pip-version-check --quiet --quiet install $(AIDER)
	@touch $@

test-agents: $(VENV)/.test $(AGENTS)/.installed
	$(BIN)/penstock pull smollm2
	PATH="$(abspath $(AGENTS))/node_modules/.bin:$(abspath $(AGENTS))/aider/bin:$$PATH" $(TEST_ENV) \
	    $(BIN)/python -m pytest -m "network or not network" tests/agents $(ARGS)

# The parts that must not rot unseen: branch coverage of 90 % or more, or it fails.
COVERED := penstock.engine penstock.kv penstock.decoding penstock.call penstock.sampling_params
coverage: $(VENV)/.test
	$(BIN)/penstock pull smollm2
	$(BIN)/penstock pull minilm
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not network and not nightly and not slow" \
	    $(COVERED:%=--cov=%) --cov-branch --cov-report=term --cov-fail-under=90 \
	    tests/engine tests/kv tests/decoding tests/engine_process tests/matrix tests/wire $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# Peers get environments of their own below ~/.cache/penstock; see benchmarks/README.md.
PEERS ?=
bench: $(VENV)/.base
	$(BIN)/python benchmarks/run.py --peers "$(PEERS)" $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.*
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
