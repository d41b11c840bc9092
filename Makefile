# make run    the whole product on this machine: gateway 127.0.0.1:8642, workbench 127.0.0.1:8643
# make test   everything, with all set-up;  make check  lint, types, fast tests;  make soak  faults and load at full count
# make bench  lists the benchmarks;  make journey  from a base model to your own assistant, start to end (15 minutes)
# make journey-chinese  a vocabulary, pre-training and tuning for a base that hardly knows Chinese (40 minutes)
# PYTHON=python3.12 make run   chooses the interpreter

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Tests at a time; each may start a cluster, a model and a browser of its own.
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export MOFANG_CACHE ?= $(HOME)/.cache/mofang-tests

.PHONY: help run install dev training journey journey-chinese system test check lint fast soak bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

run: install
	@exec $(BIN)/mofang up

install: $(VENV)/.base
dev: $(VENV)/.dev

$(BIN)/python:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/venv.sh

$(VENV)/.base: $(BIN)/python pyproject.toml
	@echo "模坊：安装中…… Mofang: installing…"
	$(PIP) install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	@$(PIP) install --quiet --editable '.[dev]'
	touch $@

# torch and what trains with it, for `mofang train` and `mofang export`
training: $(VENV)/.train
$(VENV)/.train: $(VENV)/.base pyproject.toml
	@$(PIP) install --quiet --editable '.[train]'
	touch $@

journey: install
	@exec bash journeys/own_assistant.sh

journey-chinese: install
	@exec bash journeys/chinese_llama.sh

# What the tests need of the system: a browser and Chinese glyphs; installed where apt is there and we are root.
system:
	@bash scripts/system.sh

lint: dev
	@$(BIN)/ruff format --check src tests bench journeys examples
	$(BIN)/ruff check src tests bench journeys examples
	$(BIN)/mypy

fast: dev
	@$(BIN)/pytest -m 'not model and not browser and not slow and not soak'

check: lint fast

test: dev system
	@$(BIN)/python tests/bring_models.py
	$(MAKE) lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not soak' -n $(TEST_PROCESSES) --dist worksteal --durations=25 --durations-min=5

soak: dev system
	@$(BIN)/python tests/bring_models.py
	$(BIN)/pytest -m soak -s --timeout 3600

bench: dev
	@$(BIN)/python bench/list.py

clean:
	rm -rf $(VENV) build dist artefacts
