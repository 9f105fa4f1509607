# make demo: the main job on the model inside the package.   make test: style, floors, tests.   make docs: the site in ./site.
# The environment lives in .venv; it is made once and again whenever what it is made from changes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Elsewhere, for the build without CUDA: make TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'
TORCH := torch==2.13.0
STAMP := $(VENV)/.installed
DEMO := demo-result
WORKERS := 2

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
export PIP_ROOT_USER_ACTION = ignore
# The tests and the demo need no network; a library that asks for it anyway should fail at once.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

.PHONY: help install demo test browser lint format docs clean

help:
	@sed -n '1,2p' Makefile | sed 's/^# *//'

install: $(STAMP)

# torch comes first and alone: a bare `torch` may bring gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once) ..."
	@$(BIN)/python -m pip install -qq --progress-bar off $(TORCH)
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(OFFLINE) $(BIN)/thrifty compress --out $(DEMO) --force
	$(OFFLINE) $(BIN)/thrifty try $(DEMO)

test: lint browser
	$(OFFLINE) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# The page of papers is tested in Debian's Chromium; where that cannot be installed, its tests say that they were not run.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get install -qq -y chromium >/dev/null; } \
		|| { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || true

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	@$(BIN)/python -m pip install -qq --progress-bar off -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(DEMO) site .pytest_cache .ruff_cache .import_linter_cache .hypothesis
