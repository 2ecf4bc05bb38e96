# People and CI run the same commands. Everything is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CONSTRAINTS := infra/constraints-ci.txt
# Tests that share two cores: one thread per process keeps results and times steady.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
HERE   := not gpu and not jetson

.PHONY: setup sweep test test-slow test-ci bench bench-gpu check format ui ci ci-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch torchvision
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	# For types alone: they require all of TensorRT, and five of their signatures are no Python.
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-deps --upgrade --target $(VENV)/stubs tensorrt-stubs
	sed -i -e 's/, in: /, in_: /' -e 's/channel_axis: int)/channel_axis: int = ...)/' $(VENV)/stubs/tensorrt_bindings/tensorrt.pyi
	touch $(STAMP)

sweep: $(STAMP)  ## the main job on embedded defaults
	$(BIN)/sharedenc sweep full-grid --preset demo

test: $(STAMP)  ## the fast suite
	$(PYTEST) -m "not slow and $(HERE)"

test-slow: test-ci  ## what takes minutes
	$(PYTEST) -o timeout=1200 -m "long and not alone and $(HERE)"
	# A process keeps how it last talked to a Ray: those that join one have a process of their own.
	$(BIN)/python -m pytest -o timeout=1200 -m "long and alone" tests/sweeps/test_launch_cluster.py
	$(BIN)/python -m pytest -o timeout=1200 -m "long and alone" --ignore tests/sweeps/test_launch_cluster.py

test-ci: $(STAMP)  ## the slow ones that CI has the time for
	$(PYTEST) -o timeout=1200 -m "slow and not long and not alone and $(HERE)"
	$(BIN)/python -m pytest -o timeout=1200 -m "slow and alone and not long"

bench: $(STAMP)  ## side-by-side ratios: a table, and bench.json
	$(BIN)/python -m benchmarks --json bench.json

bench-gpu: $(STAMP)  ## what pays on this machine's GPU, as changes to the table of numerics
	$(BIN)/python -m benchmarks.gpu

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(STAMP)
	$(BIN)/sharedenc ui

# What CI runs: Debian packages that tests need, so that nothing skips, then all but the longest.
ci-packages:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null; }
	command -v systemd-analyze >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends systemd >/dev/null; }
	# The report's LaTeX tables are compiled, with booktabs.
	kpsewhich booktabs.sty >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y --no-install-recommends texlive-latex-recommended >/dev/null; }
	# Only the programs: tests start a server of their own, so the package makes no cluster.
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf && apt-get update -qq && DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -qq -y --no-install-recommends postgresql >/dev/null; }

ci: ci-packages setup
	# NVIDIA's parser and builder; where they do not install, their test says so and skips.
	-$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[rtx]'
	$(MAKE) check
	$(MAKE) test
	$(MAKE) test-ci

clean:
	rm -rf $(VENV) sharedenc-runs .mypy_cache .ruff_cache .pytest_cache
