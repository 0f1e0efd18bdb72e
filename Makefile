# The two main commands are `make demo` and `make test`; each creates .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest test-newest lint docs results results-quick tensorboard clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name about; do \
		printf 'make %-14s %s\n' "$$name" "$$about"; done

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

# The oldest and the newest versions that setup.cfg allows, each in a separate environment. Old packages call what newer
# ones, which they require without an upper bound, deprecate, and leave files open: such warnings are no errors there, and
# neither in the processes that tests start.
OLD_WARNINGS := -W 'ignore:The loaded checkpoint was produced with Lightning' -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::pytest.PytestUnraisableExceptionWarning
test-oldest: .venv-oldest/ready  ## run the test suite with the oldest versions that setup.cfg allows
	PYTEST_ADDOPTS="$(OLD_WARNINGS)" .venv-oldest/bin/python -m pytest -n 2 --dist loadfile

test-newest: .venv-newest/ready  ## run the test suite with the newest versions that setup.cfg allows
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile

.venv-oldest/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	sed -n 's/^ *\([A-Za-z0-9_.-]*\)\(\[.*\]\)\{0,1\}>=\([0-9.]*\),<.*/\1==\3/p' setup.cfg > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[dev]'
	@touch $@

.venv-newest/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'
	@touch $@

lint: setup  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# ZOO_DATA: the folder of real data; UPSTREAM: regress-lm's checkout; ENCODER: a pretrained encoder. Without them studies are left out.
ZOO_DATA ?= ../shared/data
RESULTS := $(BIN)/python benchmarks/all_results.py --data_dir $(ZOO_DATA) \
	$(if $(UPSTREAM),--upstream $(UPSTREAM)) $(if $(ENCODER),--encoder $(ENCODER))

results: setup  ## measure every study again and generate all tables and figures (days on two cores)
	$(RESULTS)

results-quick: setup  ## run small versions of the studies in a clone below runs/ (at most 15 minutes)
	$(RESULTS) --quick

docs: .venv/docs  ## build the documentation site in site/; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

tensorboard: setup  ## show the runs in a browser
	$(BIN)/tensorboard --logdir_spec runs:runs,saved_models:saved_models

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .venv-oldest .venv-newest site .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
