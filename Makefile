# `make demo` and `make test` need Debian's (or any) Python >= 3.11 with venv, and make; nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= runs/demo

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[report]'
	$(BIN)/fedgs demo --out $(OUT)

test: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lint]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.installed:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedgs needs Python 3.11 or newer, found $$($(PYTHON) --version); say which to use: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Could not make $(VENV); on Debian install the module first: apt-get install python3-venv"; exit 1; }
	@echo "Installing PyTorch and the other packages into $(VENV) (a few minutes the first time) ..."
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
