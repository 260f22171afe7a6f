# `make quickstart` and `make test` set up everything they need in .venv.
#
# Variables:
#   PYTHON           the Python (3.11 or newer) that .venv is made with
#   TORCH_INDEX_URL  package index to take torch from. Empty: the ordinary index, whose torch on Linux brings CUDA
#                    libraries along (some GB). For CPU only: TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX_URL ?=

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
TORCH_PIN := $(shell grep '^torch==' constraints.txt)
# Two test processes of one thread each: the tests are sized for 2 cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: venv quickstart lint test test-slow test-gpu fuzz bench readme clean

venv: $(STAMP)

# deepspeed's setup needs torch to be there already (hence no build isolation) and must not build its GPU kernels.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "albatross needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) setuptools wheel
ifneq ($(TORCH_INDEX_URL),)
	$(PIP) --no-deps --index-url $(TORCH_INDEX_URL) $(TORCH_PIN)
endif
	$(PIP) $(TORCH_PIN) numpy
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation --editable '.[eval,train,dev]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python -m launch.quickstart

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(PYTEST) -n 2

# The quickstart, which trains for a fixed time, has the machine to itself.
test-slow: $(STAMP)
	$(PYTEST) -m slow -n 2 --dist loadfile --ignore tests/launch/test_quickstart.py
	$(BIN)/python -m pytest -m slow tests/launch/test_quickstart.py

test-gpu: $(STAMP)
	$(PYTEST) -m gpu

fuzz: $(STAMP)
	$(PYTEST) -m fuzz

# The tables of the program itself, on what `make quickstart` left; the JSON files go to runs/bench/.
bench: $(STAMP)
	test -f runs/quickstart/report.json || $(MAKE) quickstart
	$(BIN)/python benchmarks/text.py --input runs/quickstart/text/train.jsonl --val-input runs/quickstart/text/val.jsonl \
		--tokenizer runs/quickstart/data/tokenizer.model --megabytes 2 --vocab-size 1024 --json runs/bench/text.json
	$(BIN)/python benchmarks/training.py tiny --data runs/quickstart/data --num-gpus 1 2 --json runs/bench/training.json
	$(BIN)/python benchmarks/artifact.py runs/quickstart --json runs/bench/artifact.json
	$(BIN)/python benchmarks/evaluation.py runs/quickstart/artifact.albatross --data runs/quickstart/data \
		--modes plain sliding "ttt, adapters" --json runs/bench/evaluation.json

readme: $(STAMP)
	$(BIN)/python -m tests.readme_tree

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
