# Two commands are enough: `make demo` and `make test`. Each sets up what it needs in .venv, once.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint tensorboard clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name about; do \
		printf 'make %-12s %s\n' "$$name" "$$about"; done

setup: .venv/ready  ## create .venv and install the pinned versions; a no-op when done

.venv/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the zoo needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## train every model on its embedded default and print the results table (minutes)
	$(BIN)/python -m zoo.demo

test: setup  ## the suite
	$(BIN)/python -m pytest

test-all: setup  ## the suite with its slow tests
	$(BIN)/python -m pytest -m "slow or not slow"

lint: setup  ## ruff, and mypy on zoo, datamodules, callbacks
	$(BIN)/ruff check .
	$(BIN)/mypy

tensorboard: setup  ## watch the runs in a browser
	$(BIN)/tensorboard --logdir runs

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
