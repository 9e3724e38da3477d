# `make demo` and `make test` need Python >= 3.11 with venv (Debian: apt-get install make python3-venv), nothing else.
PYTHON ?= python3
OUT ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt --editable

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/.report
	$(BIN)/fedgs demo --out $(OUT)

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --numprocesses=auto --dist=loadfile --no-loadscope-reorder

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every warning is an error, and so is a name that leads nowhere.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env docs build/docs
	@echo "Documentation: build/docs/index.html"

# One stamp per extra; it is made anew when what is to be installed has changed.
$(VENV)/.report $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fedgs[$*] into $(VENV) (PyTorch makes this take a few minutes the first time) ..."
	$(INSTALL) '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedgs needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1); name another: make demo PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Could not make $(VENV); on Debian install the module first: apt-get install python3-venv"; exit 1; }

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
