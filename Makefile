# Everything a developer types; `make help` lists it. Needs make and Python 3.11 or newer, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Debian's own python3 unless another is asked for: make test PYTHON=python3.13
PYTHON ?= python3
BIN := .venv/bin
SERVERS := $(PYTHON) dev/servers.py
SOURCES := contracts worker sql tests dev
UV_COMPILE = uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11

.PHONY: help up down venv test test-on check format lock schemas tables settings image demo bench bench-tables bench-console chaos corpus clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: venv ## send a delivery of N recipients (N=1000) on servers of its own, which end with it (PAGE=1: with the console)
	@$(SERVERS) run -- $(BIN)/python dev/demo.py --recipients $(or $(N),1000) $(if $(PAGE),--page)

# All tests are shared out between processes, each on servers of its own. What is asked for by ARGS is one process's.
JOBS := $(shell n=$$(nproc); echo $$((n < 2 ? 2 : n > 4 ? 4 : n)))
SHARED_OUT := --dist worksteal --tx '$(JOBS)*popen//python=$(SERVERS) run -- $(BIN)/python'

test: check ## check, then run every test on servers of its own (ARGS='-k name' goes to pytest)
	@$(SERVERS) install browser
	@$(if $(ARGS),$(SERVERS) run -- $(BIN)/pytest $(ARGS),$(BIN)/pytest $(SHARED_OUT))

# make test-on RELEASE=trixie, or as it is said: make test-on trixie
RELEASE ?= $(word 2,$(MAKECMDGOALS))

test-on: ## run the tests on another release of Debian, made by debootstrap: make test-on trixie (ARGS='tests/unit')
	@sh dev/other_debian.sh $(RELEASE) $(ARGS)

ifeq (test-on,$(firstword $(MAKECMDGOALS)))
$(wordlist 2,9,$(MAKECMDGOALS)):
	@:
.PHONY: $(wordlist 2,9,$(MAKECMDGOALS))
endif

check: venv ## check format, style, types, layers and the generated contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python dev/generate_contracts.py --check

format: venv ## format the code and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: venv ## start this checkout's RabbitMQ, Postgres and SMTP sink; use as: eval "$(make -s up)"
	@$(SERVERS) up

down: ## stop just those, and remove their data
	@$(SERVERS) down

schemas: venv ## write contracts/schemas and contracts/asyncapi.yaml from the models
	$(BIN)/python dev/generate_contracts.py

settings: venv ## write docs/settings.md from the model of the settings
	$(BIN)/python dev/draw_settings.py

tables: venv ## write the columns of the views into docs/tables.md from the comments of a database
	@$(SERVERS) run -- $(BIN)/python -m dev.draw_tables

bench: venv ## measure against other frameworks doing the same job (ARGS='--quick', ARGS='null peers')
	@$(SERVERS) run -- $(BIN)/python -m tests.bench $(ARGS)

# With a quarter of the machine's memory, as Postgres's manual recommends, and in large pages where root runs this; the
# other servers make do with less.
bench-tables: venv ## measure what dashboards ask of ten million recipients (ARGS='--rows 1000000')
	@SENDOFF_DEV_SHARED_MEGABYTES=$$(awk '/^MemTotal/ {print int($$2 / 4096)}' /proc/meminfo) \
	    $(SERVERS) run -- $(BIN)/python -m tests.bench.tables $(ARGS)

bench-console: venv ## measure first paints of a delivery of a million and what 500 open pages cost (ARGS='--rows 100000')
	@$(SERVERS) install browser
	@$(SERVERS) run -- $(BIN)/python -m tests.bench.console $(ARGS)

# What debootstrap fetches is kept in FOLDER; three minutes after that.
image: ## run the steps of the Dockerfile in a bare Debian, as root (FOLDER=/var/tmp/sendoff-image)
	@$(PYTHON) dev/image.py $(or $(FOLDER),/var/tmp/sendoff-image) -- --version

chaos: venv ## let random faults happen to running deliveries, and check what came of it (SEED=7 MINUTES=5)
	@$(SERVERS) run -- $(BIN)/python -m tests.faults.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

corpus: venv ## read a corpus of replies with the rules, and compare (DIR=/path, which holds expected.csv)
	@$(BIN)/python dev/corpus.py "$(DIR)"

venv: .venv/built ## build .venv from the hashed lock, if it is not there or is out of date

# Only a finished environment carries the mark, so that one that was interrupted is built again. A sound one is kept
# and brought up to date: made over by another Python, it would mix the two.
.venv/built: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'Sendoff needs Python 3.11 or newer; name one with make PYTHON=python3.12' >&2; exit 1; }
	@$(SERVERS) install
	@$(BIN)/python -c 'import pip, ssl' 2>/dev/null || $(PYTHON) -m venv --clear .venv >&2
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock >&2
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable . >&2
	@touch $@

lock: venv ## resolve requirements.lock and requirements-dev.lock anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/$(UV_COMPILE) pyproject.toml --output-file requirements.lock
	$(BIN)/$(UV_COMPILE) --group build --output-file requirements-build.lock
	$(BIN)/$(UV_COMPILE) pyproject.toml --group dev --output-file requirements-dev.lock
	$(BIN)/$(UV_COMPILE) tests/bench/peers/requirements.in --output-file tests/bench/peers/requirements.lock

clean: down ## stop the servers and remove everything that was built
	rm -rf .venv .venv-peers .dev build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
