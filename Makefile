# `make demo` trains the default run; `make test` checks everything; `make test-fast`, for the moment between two edits,
# runs what takes two minutes: the tests that start no program, and one small run; `make fuzz` runs the fuzzers at large
# size. Each makes .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
# One more than the cores that the tests are made for: some of them wait.
WORKERS ?= 3

.PHONY: demo test test-fast fuzz lint clean

demo: .venv/installed
	$(BIN)/ddpm-train

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-fast: .venv/installed
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m fast

fuzz: .venv/installed
	$(BIN)/pytest -n $(WORKERS) tests/fuzz --large

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv outputs
