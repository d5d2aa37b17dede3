# Everything a newcomer needs: `make demo`, `make test`. Both set the environment up by themselves.
# PYTHON picks the interpreter of .venv (3.11 or newer), WORKERS the number of test processes.
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types layers check format constraints clean

help: ## lists the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

install: $(STAMP) ## creates .venv and installs the package into it (done by the other targets)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@bash scripts/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(STAMP) ## trains a tiny student on real video files, prints the table, writes the trace page
	$(BIN)/ffr demo $(DEMO_ARGS)

test: $(STAMP) ## runs the whole test suite
	@bash scripts/system_packages.sh
	$(BIN)/python -m pytest -v -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP) ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## static types, strict in the rooms that hold the method
	$(BIN)/pyright

layers: $(STAMP) ## which room may import which
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

check: lint types layers test ## all of the above

format: $(STAMP) ## rewrites the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints: $(STAMP) ## writes the installed versions to constraints.txt
	$(BIN)/python scripts/freeze.py > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## removes the environment and what tools have left
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
