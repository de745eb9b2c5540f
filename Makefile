# One word each; every command first sets up what it needs, under build/. `make help` lists them.

PYTHON  ?= python3
DATASET ?= digits
ARGS    ?=
JOBS    ?= $(shell nproc)

VENV := build/venv
BIN  := $(VENV)/bin
# The data sets beside a working copy, where there are any; BITFLEET_DATA=DIR names others.
BITFLEET_DATA ?= $(abspath $(wildcard ../shared/data))
ifneq ($(BITFLEET_DATA),)
export BITFLEET_DATA
endif

# Both, since pip before 25.3 applies the first to build requirements too and later ones want the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# What an install depends on; Python files do not count, since it is editable.
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(shell find bnncore/native -type f)
CPP_FILES = $(shell find bnncore/native tests benchmarks -name '*.cc' -o -name '*.h')

# Debian's name for what a Raspberry Pi runs, a Python of its version, and the processors to emulate: docs/arm.md.
SUITE      ?= bookworm
ARM_PYTHON ?= $(BIN)/python
CPUS       ?= cortex-a72
ARM        := build/arm-$(SUITE)
.PHONY: arm-wheel arm-client

.DEFAULT_GOAL := help
.PHONY: help demo test test-native test-arm torch fuzz lint format proto accuracy memory bench clean prerequisites

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.server  ## a coordinator and four devices learn together here (DATASET=digits or mnist)
	@$(BIN)/bitfleet-server demo --dataset $(DATASET) --json build/demo.json $(ARGS)

test: $(VENV)/.dev  ## the whole test suite (ARGS="-k word" for a part)
	$(BIN)/python -m pytest $(ARGS)

test-native: $(VENV)/.dev  ## the C++ tests, with address and undefined-behaviour sanitizers
	$(BIN)/cmake -S . -B build/native -DBITFLEET_TESTS=ON -DBITFLEET_SANITIZE=address,undefined
	$(BIN)/cmake --build build/native --parallel $(JOBS)
	$(BIN)/ctest --test-dir build/native --output-on-failure

test-arm: $(VENV)/.dev  ## the C++ tests as 64-bit ARM, emulating the processors of three Raspberry Pis
	@CMAKE=$(BIN)/cmake CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) .ci/arm

torch: $(VENV)/.torch  ## add PyTorch, whose tests `make test` leaves out otherwise

# Guided by coverage where there is a wheel of atheris for this machine, otherwise at random.
fuzz: $(VENV)/.dev  ## look for input that the readers of files and messages neither load nor refuse (SECONDS=60)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --only-binary :all: atheris || true
	$(BIN)/python tests/bnncore/fuzz_readers.py --seconds $(or $(SECONDS),60)

lint: $(VENV)/.dev  ## style, types and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/python proto/generate.py --check

format: $(VENV)/.dev  ## rewrite Python and C++ in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

proto: $(VENV)/.dev  ## generate the protocol's Python modules again
	$(BIN)/python proto/generate.py

accuracy: $(VENV)/.dev  ## the presets side by side on MNIST and CIFAR-10: hours; docs/results/ has the last outcome
	mkdir -p build/accuracy
	$(BIN)/python -m benchmarks.accuracy --model mlp --dataset mnist --epochs 24 --seeds 0,1,2 \
	  --json build/accuracy/mlp.json
	$(BIN)/python -m benchmarks.accuracy --model binarynet --dataset cifar10 --batch-size 40 --max-steps 200 \
	  --windows 10 --json build/accuracy/binarynet.json
	$(BIN)/python -m benchmarks.accuracy --model cnv --dataset cifar10 --epochs 3 --json build/accuracy/cnv.json

memory: $(VENV)/.dev  ## peak memory of every preset, measured beside its plan: minutes
	$(BIN)/python -m benchmarks.memory --json build/memory.json --plot build/memory.png

bench: $(VENV)/.torch  ## a training step beside PyTorch's and the published algorithms: half an hour, fills docs/performance.md
	$(BIN)/python -m benchmarks.performance --out build/bench --page docs/performance.md $(ARGS)

arm-wheel: $(ARM)/.wheel  ## the wheel for 64-bit ARM, cross-built for Debian's Python (SUITE=bookworm or trixie)

arm-client: $(ARM)/.wheel  ## two rounds on digits with emulated ARM devices: the same digest as here (CPUS=a,b)
	@PYTHON='$(ARM_PYTHON)' SUITE=$(SUITE) .ci/arm-root $(ARM) $(ARM)/dist/*.whl
	@$(BIN)/python -m benchmarks.arm_client --python $(ARM)/venv/bin/python3 --cpus $(CPUS) \
	  --json build/arm-client.json $(ARGS)

clean:  ## remove all that make made
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis

prerequisites:
	@PYTHON='$(PYTHON)' .ci/prerequisites

# The demo needs no development tools; the tests need both, and then the demo is set up too.
$(VENV)/.server: $(BUILT_FROM) | prerequisites
	@PYTHON='$(PYTHON)' .ci/install $(VENV) server
	@touch $@

$(VENV)/.dev: $(BUILT_FROM) | prerequisites
	@PYTHON='$(PYTHON)' .ci/install $(VENV) server,dev
	@touch $(VENV)/.server $@

# Named by its exact version: on x86 a plain `pip install torch` can bring the much larger build for GPUs.
$(VENV)/.torch: $(VENV)/.dev
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet torch==2.13.0
	@touch $@

# All that is in the wheel counts, Python files too.
$(ARM)/.wheel: $(BUILT_FROM) $(shell find bnncore edge_client server proto -name '*.py') | $(VENV)/.server
	@PYTHON='$(ARM_PYTHON)' SUITE=$(SUITE) .ci/arm-root $(ARM)
	@PYTHON='$(ARM_PYTHON)' .ci/arm-wheel $(ARM)
	@touch $@
