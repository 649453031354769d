.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt
# For the demo alone, without the tools of development; Python compiles what it imports.
CORE := $(VENV)/installed-core
STAMP := $(VENV)/installed

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile "torch==2.13.0"
	$(PIP) --no-compile --editable ".[app,openvino]"
	@touch $@

$(STAMP): $(CORE)
	$(PIP) --no-compile --editable ".[dev]"
	-$(BIN)/python -m compileall -q -j 0 -x py312_intrinsics $(VENV)/lib  # on all cores; torch's file for 3.12
	@touch $@

install: $(STAMP) ## make .venv with the tested versions

demo: $(CORE) ## fine-tune, graft and draw on flatland: runs/demo/report.html
	$(BIN)/clipgraft demo --out runs/demo --overwrite

test: $(STAMP) ## default tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -p no:randomly --numprocesses 2 --dist loadfile

test-integration: $(STAMP) ## whole commands, runs and pages
	OMP_NUM_THREADS=1 $(BIN)/pytest -m integration -p no:randomly --numprocesses 2 --dist loadfile

test-slow: $(STAMP) ## tests that take minutes or gigabytes
	$(BIN)/pytest -m slow

lint: $(STAMP) ## format, rules and types, nothing changed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## put files into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## the documentation as a site: build/site/index.html
	$(PIP) --editable ".[docs]"
	$(BIN)/zensical build --clean --strict

bench: $(STAMP) ## measurements, written to benchmarks/results
	for bench in benchmarks/bench_*.py; do $(BIN)/python $$bench || exit 1; done
	$(BIN)/python benchmarks/results_page.py

dist-check: ## build wheel and sdist, try them in empty environments
	$(PYTHON) tools/check_dist.py

.PHONY: help install demo test test-integration test-slow lint format docs bench dist-check
