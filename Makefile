# `make demo` trains the default run; `make test` checks everything; `make test-fast`, for the moment between two edits,
# runs what takes two minutes: the tests that start no program, and one small run; `make fuzz` runs the fuzzers at large
# size. Each makes .venv if it is missing, by uv where that is installed (`make UV= demo`: by pip); the demo installs only what training needs.
PYTHON ?= python3
BIN := .venv/bin
# One more than the cores that the tests are made for: some of them wait.
WORKERS ?= 3

# The demo imports few modules, and compiles those; the tests start hundreds of programs, which find all compiled.
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
VENV := $(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
COMPILED := --compile-bytecode
else
VENV := $(PYTHON) -m venv .venv
# Quiet twice: without warnings.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
UNCOMPILED := --no-compile
endif

.PHONY: demo test test-fast fuzz lint clean

demo: .venv/trains
	$(BIN)/ddpm-train

# The types are checked beside the tests, by mypy on one core; what it finds is printed after them.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy > .venv/mypy.log 2>&1 & mypy=$$!; \
	echo "$(BIN)/pytest -n $(WORKERS) --dist worksteal"; \
	$(BIN)/pytest -n $(WORKERS) --dist worksteal; tests=$$?; \
	wait $$mypy; types=$$?; echo "$(BIN)/mypy"; cat .venv/mypy.log; \
	exit $$((tests + types))

test-fast: .venv/installed
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m fast

fuzz: .venv/installed
	$(BIN)/pytest -n $(WORKERS) tests/fuzz --large

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/trains: pyproject.toml
	@echo "installing into .venv (minutes; torch is large) …"
	test -x $(BIN)/python || $(VENV)
	$(INSTALL) $(UNCOMPILED) --editable .
	touch $@

.venv/installed: pyproject.toml
	@echo "installing into .venv (minutes; torch is large) …"
	test -x $(BIN)/python || $(VENV)
	$(INSTALL) $(COMPILED) --editable ".[dev]"
	touch .venv/trains $@

clean:
	rm -rf .venv outputs
