# Two commands for a fresh clone: `make demo` and `make test`. Both first make the environment in .venv, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
EXPERIMENT := $(or $(FLOWKIT_RESULTS),results)/demo
SNAKEMAKE_ARGS := --profile profiles/local --configfile workflow/config/demo.yaml
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo environment picture test test-slow bench lint format
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo       run the whole workflow on the demo (five to seven minutes on two cores)"
	@echo "make test       run the tests (about ten minutes)"
	@echo "make test-slow  run the long tests: kill drills, pages in a browser, retraining the demo encoders, the whole demo"
	@echo "make bench      measure every performance bar (about half an hour, 8 GB of disk)"
	@echo "make picture    take the README's picture of the demo's report anew"
	@echo "make lint       ruff, the type checker, snakefmt and snakemake --lint"

environment: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flowkit needs Python 3.11 or newer, $(PYTHON) is older: make demo PYTHON=python3.12"; exit 1; }
	@echo "making the environment in .venv (about 6 GB, a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) --constraint constraints.txt --editable '.[test,development]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m flowkit run --parent $$PPID -- $(SNAKEMAKE_ARGS)
	@$(MAKE) --no-print-directory $(EXPERIMENT)/report.zip
	@$(BIN)/python -m flowkit results --config workflow/config/demo.yaml

$(EXPERIMENT)/report.zip: $(EXPERIMENT)/site/manifest.json
	@mkdir -p $(EXPERIMENT)/partial
	@$(BIN)/python -m flowkit run --parent $$PPID -- $(SNAKEMAKE_ARGS) --report $(EXPERIMENT)/partial/report.zip --quiet all
	@mv $(EXPERIMENT)/partial/report.zip $@ && rmdir $(EXPERIMENT)/partial

picture: $(INSTALLED)
	@$(BIN)/python tests/report_picture.py $(EXPERIMENT)/report docs/report.png

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(INSTALLED)
	@$(BIN)/python -m pytest -n 3 --dist loadscope -m slow --durations=15

bench: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/run.py

lint: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check rules workflow
	@$(BIN)/snakemake --lint --configfile workflow/config/demo.yaml

format: $(INSTALLED)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	@$(BIN)/snakefmt rules workflow
