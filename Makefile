# The two commands of the README are `make demo` and `make test`; both install first.

# The first interpreter that runs and is new enough; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests talk to no hub, take one thread each, and start Ray without extras.
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled RAY_DATA_DISABLE_PROGRESS_BARS=1 \
	RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2

.DEFAULT_GOAL := help
.PHONY: help install demo demo-tune test test-fast test-long lint check testbed clean

help:
	@echo "make install    pinned packages into $(VENV)"
	@echo "make demo       install, then one model update on the shipped testbed (minutes)"
	@echo "make demo-tune  install, then a search of the demo's settings (up to ten minutes)"
	@echo "make test       install, then all tests"
	@echo "make test-fast  install, then the tests that take seconds"
	@echo "make test-long  install, then the few tests that would make 'make test' too long"
	@echo "make lint       ruff"
	@echo "make check      ruff and mypy"
	@echo "make testbed    pre-train the shipped testbed models again"
	@echo "make clean      remove build files and caches (not $(VENV), not runs/)"

install: $(STAMP)

# The stamp is written last: an install that was interrupted starts again.
$(STAMP): requirements.lock pyproject.toml
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		p="$(PYTHON)"; p="$${p:-python3}"; \
		echo "muscle needs Python 3.11 or newer; '$$p' is: $$($$p --version 2>&1)" >&2; \
		echo "Install one, or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; fi
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	$(BIN)/muscle run jobs/experiments/demo.yaml --output runs/demo

demo-tune: install
	$(BIN)/muscle tune jobs/experiments/demo-tune.yaml --output runs/demo-tune

test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long" tests/unit tests/conformance tests/gpu tests/page
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long" tests/ray tests/cluster

test-long: install
	$(TEST_ENV) $(BIN)/python -m pytest -m long tests

test-fast: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

lint: install
	$(BIN)/ruff check .

check: lint
	$(BIN)/mypy

testbed: install
	$(BIN)/python jobs/pretrain_testbed.py --output muscle/testbed/models

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
