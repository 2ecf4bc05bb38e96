# People and CI run the same commands. Everything is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CONSTRAINTS := infra/constraints-ci.txt
# Tests that share two cores: one thread per process keeps results and times steady.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup sweep test test-slow check format ui ci ci-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch torchvision
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $(STAMP)

sweep: $(STAMP)  ## the main job on embedded defaults
	$(BIN)/sharedenc sweep full-grid --preset demo

test: $(STAMP)  ## the fast suite
	$(PYTEST) -m "not slow and not gpu and not jetson"

test-slow: $(STAMP)  ## what takes minutes
	$(PYTEST) -m "slow and not gpu and not jetson"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(STAMP)
	$(BIN)/sharedenc ui

# What CI runs: Debian packages that tests need, so that nothing skips, then everything.
ci-packages:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; }

ci: ci-packages setup
	$(MAKE) check
	$(MAKE) test
	$(MAKE) test-slow

clean:
	rm -rf $(VENV) sharedenc-runs .mypy_cache .ruff_cache .pytest_cache
