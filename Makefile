# Everything that these targets make lies in .venv/ and build/. PYTHON=python3.12 chooses another one.
PYTHON ?= python3
PY := .venv/bin/python
MODELS := build/models
SOURCES := pyproject.toml $(wildcard setup.py kernels/cpu/*.cpp kernels/cpu/*.h)
NETWORK := { echo "make: the installation failed; see above. It needs the network once." >&2; exit 1; }
export PIP_NO_CACHE_DIR := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HOME := $(CURDIR)/build/huggingface
export MINIBERT_CACHE_DIR := $(CURDIR)/build/cache
export MPLCONFIGDIR := $(CURDIR)/build/matplotlib

# Parts of a target share .venv: one after the other, whatever -j says.
.NOTPARALLEL:
.PHONY: demo test bench gpu sanitize lint format model clean

demo: .venv/core.stamp
	@$(PY) -m minibert demo --models-folder $(MODELS)

test: lint model
	$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

sanitize: .venv/test.stamp
	PYTHON="$(CURDIR)/$(PY)" tests/kernels/cpu/sanitize.sh address,undefined
	PYTHON="$(CURDIR)/$(PY)" tests/kernels/cpu/sanitize.sh thread

# CUDA=12 is for a driver of CUDA 12. Where PYTHON already has CuPy (a GPU image without a network), it is used as it is.
CUDA ?= 13
GPU_PY = $(shell $(PYTHON) -c 'import cupy, tokenizers, safetensors' 2>/dev/null && echo $(PYTHON) || echo $(PY))
gpu:
	@test "$(GPU_PY)" != "$(PY)" || $(MAKE) --no-print-directory .venv/cuda$(CUDA).stamp
	@$(GPU_PY) -m benchmarks.gpu $(GPU)

# Options for a shorter or another run: make bench BENCH='--quick'
bench: .venv/bench.stamp
	@$(PY) -m benchmarks $(BENCH)

lint: .venv/test.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: .venv/test.stamp
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

model: .venv/core.stamp
	@$(PY) -m minibert.cli.fetch $(MODELS)

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: Python 3.10 or newer is needed, PYTHON=$(PYTHON) is not" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian, install python3-venv" >&2; exit 1; }
	@touch $@

.venv/core.stamp: .venv/python.stamp $(SOURCES)
	@echo "Installing minibert into .venv ..."
	@$(PY) -m pip install -qq --editable . || $(NETWORK)
	@touch $@

# Tests also run the paths in software, which no user needs.
.venv/test.stamp .venv/cuda$(CUDA).stamp: export MINIBERT_SOFTWARE_PATHS := 1
.venv/test.stamp: .venv/python.stamp $(SOURCES)
	@echo "Installing minibert and the test tools into .venv ..."
	@$(PY) -m pip install -qq --editable '.[test]' || $(NETWORK)
	@touch .venv/core.stamp $@

.venv/cuda$(CUDA).stamp: .venv/test.stamp
	@echo "Installing CuPy for CUDA $(CUDA) into .venv ..."
	@rm -f .venv/cuda*.stamp  # one CuPy at a time
	@$(PY) -m pip uninstall -qqy cupy-cuda12x cupy-cuda13x nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12
	@$(PY) -m pip install -qq --editable '.[cuda$(CUDA)]' || $(NETWORK)
	@touch $@

.venv/bench.stamp: .venv/core.stamp
	@echo "Installing matplotlib into .venv ..."
	@$(PY) -m pip install -qq 'matplotlib>=3.8' || $(NETWORK)
	@touch $@

clean:
	rm -rf kernels/cpu/_native*.so .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
