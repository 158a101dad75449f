# Set-up, demo, tests and checks; the continuous integration runs the same targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready
PYTEST = $(BIN)/pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-exhaustive bench sql check format build clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  ARGS="…" is passed on, as in: make test ARGS="tests/store -x"'
	@echo '  JOBS is the number of test processes: make test JOBS=4'
	@echo '  PYTHON and VENV choose another interpreter: make test PYTHON=python3.12 VENV=.venv-3.12'

venv: $(READY) ## Set up .venv with all that the other targets need

demo: $(READY) ## Show the library at work, on a PostgreSQL server of its own
	@$(BIN)/pupsourcing-sa demo $(ARGS)

test: $(READY) ## Run the tests of every day, on a PostgreSQL server of their own or on PUPSOURCING_TEST_DSN
	@$(PYTEST) $(ARGS)

test-all: $(READY) ## Run all tests: the whole matrix and the long campaigns too
	@$(PYTEST) -m '' $(ARGS)

# pytest exits with status 5 when ARGS select a part without such tests.
test-exhaustive: $(READY) ## Run only what test-all adds to test
	@$(PYTEST) -m exhaustive $(ARGS) || [ $$? -eq 5 ]

bench: $(READY) ## Measure store and worker beside bare psycopg; ARGS: parts of names, --rounds N
	@$(BIN)/python -m tests.benchmarks $(ARGS)

sql: $(READY) ## Write tests/sql/*.sql again, after a statement was changed on purpose
	@$(BIN)/python -m tests.sql

check: $(READY) ## Check lint, format, types and layers; change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(READY) ## Format the code, and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build: $(READY) ## Build the sdist and the wheel into dist/
	$(BIN)/python -m build

clean: ## Remove everything that the targets made
	rm -rf $(VENV) dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The file exists when the set-up is complete. Without it, an existing directory is left from an interrupted set-up and is
# created again. With an older one, only the packages are updated.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) is not there; try make PYTHON=…'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12"; exit 1; }
	@test -e $@ || { echo 'Setting up $(VENV), which takes a minute…'; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $@
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable '.[demo]' --group dev
	@touch $@
