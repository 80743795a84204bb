PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRITON := $(VENV)/tritonclient
TRITON_INSTALLED := $(TRITON)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint docs clean

help:
	@echo "make demo   the whole path on synthetic scenes, results in demo/ (installs first, into $(VENV))"
	@echo "make test   lint, then every test (installs first, into $(VENV))"
	@echo "make lint   ruff, ruff format, mypy"
	@echo "make docs   the documentation as a site, in site/"
	@echo "make clean  remove $(VENV), demo/ and what the tools left"
	@echo "PYTHON=python3.12 chooses the interpreter of a new $(VENV)"

demo: $(INSTALLED)
	$(BIN)/wsss-trainer demo demo

test: lint $(TRITON_INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy bench

# The variable silences a notice about the end of Material for MkDocs; it is no warning of our pages.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "read it at http://localhost:8000 after: $(BIN)/python -m http.server -d site 8000"

clean:
	rm -rf $(VENV) demo build site wsss *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Installing also turns protos/ into the package wsss/, so a changed contract installs again.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(shell find protos -name '*.proto')
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; wsss needs 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar off -c constraints.txt -e '.[train,serve,http,ray,dev,docs,otel]'
	@touch $@

# NVIDIA's client allows no protobuf 7 beside it and clashes with our generated code, so it lives apart.
$(TRITON_INSTALLED): $(INSTALLED) tests/serving/tritonclient.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python -m pip install --progress-bar off -r tests/serving/tritonclient.txt
	@touch $@
