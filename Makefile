# The two main commands are `make demo` and `make test`; each creates .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint tensorboard clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name about; do \
		printf 'make %-12s %s\n' "$$name" "$$about"; done

setup: .venv/ready  ## create .venv and install the pinned versions; does nothing if that is done

.venv/ready: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the zoo needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## train every tiny config and print a table of results (minutes)
	$(BIN)/python -m zoo.demo

test: setup  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: setup  ## run the test suite with its slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

lint: setup  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

tensorboard: setup  ## show the runs in a browser
	$(BIN)/tensorboard --logdir runs

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
