# The commands of a contributor. Everything is installed into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench install install-dev clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: install  ## See a policy get better from its own record, in two environments, without key or network
	@$(BIN)/python examples/demo.py

test: install-dev lint  ## Lint, type-check and run all tests
	@$(BIN)/python -m pytest -n auto

lint: install-dev  ## Ruff, strict type check, import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@PATH="$(BIN):$$PATH" $(BIN)/lint-imports --no-logo

format: install-dev  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: install-dev  ## Measure the runtime; see benchmarks/README.md for the comparison with others
	@$(BIN)/python benchmarks/overhead.py --peers bare,aworld
	@$(BIN)/python benchmarks/store.py

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The marker files are younger than pyproject.toml when what it asks for is installed.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

clean:  ## Remove what was installed and recorded here
	rm -rf $(VENV) .aworld
