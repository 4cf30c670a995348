# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# CPU build of PyTorch. On a machine with a GPU: make demo TORCH=torch
TORCH  ?= torch==2.13.0

.PHONY: demo test test-gpu lint install bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

install: $(VENV)/.installed

demo: install  ## train four model families on built-in phantoms, judge them, write one HTML report
	$(BIN)/verisim reproduce demo --scale smoke --out demo

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint  ## two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-gpu: install  ## what needs a GPU; 'make test' hides it
	VERISIM_TEST_GPU=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_gpu.py -n 4

bench: install  ## head-to-head against MONAI, diffusers and torchmetrics; writes results/benchmarks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	for b in benchmarks/*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$b || exit 1; done

clean:
	rm -rf $(VENV) demo runs build .pytest_cache .mypy_cache .ruff_cache
