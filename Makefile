# Every target sets up what it needs: a machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo run test check lint docs stubs lock clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.run: requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(VENV)/.run ## Start the server with the demo model, transcribe the samples, stop
	$(BIN)/python -m whisper_server demo

run: $(VENV)/.run ## Serve (settings: docs/settings.md)
	$(BIN)/python -m whisper_server serve

test: $(VENV)/.dev ## Run the tests with coverage
	$(BIN)/python -m pytest --numprocesses=auto --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.docs --check
	$(BIN)/python -m tools.stubs --check

check: lint test ## Everything CI runs: style, types, import rules, generated docs, tests

docs: $(VENV)/.dev ## Write the generated parts of the docs anew
	$(BIN)/python -m tools.docs

stubs: $(VENV)/.dev ## Write the gRPC stubs anew from proto/
	$(BIN)/python -m tools.stubs

lock: $(VENV)/.dev ## Compile the requirements files from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" --group dev -c requirements.txt -o requirements-dev.txt
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile --quiet --python-platform aarch64-apple-darwin --python-version 3.11 --extra transformers --custom-compile-command "make lock" -c requirements.txt pyproject.toml -o requirements_macos_arm.txt

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/node/node_modules
