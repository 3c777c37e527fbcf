# Everything is set up on first use in a private environment (.venv); only python3 >= 3.11, pip and make are needed.
#   make demo    train on packaged pictures and open the way to a report
#   make test    formatting, types, layers and the test suite, as CI runs them
#   make lint    the first three of these      make bench   speed, as ratios (BENCH="meta_step --rounds 5")
#   make docs    the pages of docs/ as a site in build/site; a broken link fails
#   make clean   remove caches and builds      make distclean   and the environment too
# Another interpreter: make test PYTHON=python3.13. Extra words for pip, a package index for example: PIP_ARGS=...

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
BENCH ?=
PIP_ARGS ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_ARGS)
PINS := constraints.txt
TORCH = $(shell sed -n 's/^\(torch==.*\)/\1/p' $(PINS))
# Two workers with a thread each: more threads than cores make small convolutions slower, not faster.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint bench docs clean distclean

help:
	@sed -n 's/^#  //p' Makefile

demo: $(VENV)/.installed-run
	@$(BIN)/selftaught demo

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not gpu and not hub"

bench: $(VENV)/.installed-run
	$(BIN)/python -m benchmarks $(BENCH)

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

# An environment that is already there is used as it is. Some systems ship Python without ensurepip: pip can then
# install itself into the new environment from outside.
$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "selftaught needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install -qq pip; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(VENV) holds an older Python: make distclean, then again" >&2; exit 1; }
	@touch $@

# torch goes first and alone, so that nothing else can pull in another build of it.
$(VENV)/.installed-run: pyproject.toml $(PINS) | $(VENV)/.python
	@echo "Installing selftaught with the tested versions of what it needs (once; some minutes) ..."
	@$(PIP) "$(TORCH)" -c $(PINS)
	@$(PIP) -c $(PINS) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(PINS) | $(VENV)/.python
	@echo "Installing selftaught and the tools that check it (once; some minutes) ..."
	@$(PIP) "$(TORCH)" -c $(PINS)
	@$(PIP) -c $(PINS) -e ".[dev]"
	@touch $@ $(VENV)/.installed-run

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
