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
# The tests start hundreds of Pythons: each compiles all of bitfleet anew where none may keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

# What an install depends on; Python files do not count, since it is editable.
BUILT_FROM := pyproject.toml constraints.txt CMakeLists.txt $(shell find bnncore/native -type f)
CPP_FILES = $(shell find bnncore/native tests benchmarks -name '*.cc' -o -name '*.h')

# Debian's name for what a Raspberry Pi runs, a Python of its version, and the processors to emulate: docs/arm.md.
SUITE      ?= bookworm
ARM_PYTHON ?= $(BIN)/python
CPUS       ?= cortex-a72
ARM        := build/arm-$(SUITE)
.PHONY: wheel arm-wheel arm-client

.DEFAULT_GOAL := help
.PHONY: help demo test test-native test-arm torch fuzz fuzz-api lint format proto docs accuracy memory faults bench clean
.PHONY: prerequisites

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.server  ## a coordinator and four devices learn together here (DATASET=digits or mnist)
	@$(BIN)/bitfleet-server demo --dataset $(DATASET) --json build/demo.json $(ARGS)

# Processes take tests from each other when they run out of their own; one is enough for a part.
test: $(VENV)/.dev  ## the whole test suite (ARGS="-k word" for a part)
	$(BIN)/python -m pytest $(if $(ARGS),,--numprocesses $(JOBS) --dist worksteal) $(ARGS)

test-native: $(VENV)/.dev  ## the C++ tests, with address and undefined-behaviour sanitizers
	$(BIN)/cmake -S . -B build/native -DBITFLEET_TESTS=ON -DBITFLEET_SANITIZE=address,undefined
	$(BIN)/cmake --build build/native --parallel $(JOBS)
	$(BIN)/ctest --test-dir build/native --output-on-failure

test-arm: $(VENV)/.dev  ## the C++ tests as 64-bit ARM, emulating the processors of three Raspberry Pis
	@CMAKE=$(BIN)/cmake CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) .ci/arm

torch: $(VENV)/.torch  ## add PyTorch, whose tests `make test` leaves out otherwise

# Guided by coverage where there is a wheel of atheris for this machine, otherwise at random.
fuzz: $(VENV)/.dev  ## look for input that a reader of foreign bytes neither loads nor refuses (SECONDS=60 or INPUTS=1000000)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --only-binary :all: atheris || true
	$(BIN)/python -m tests.fuzz $(if $(INPUTS),--inputs $(INPUTS),--seconds $(or $(SECONDS),60)) $(ARGS)

fuzz-api: $(VENV)/.dev  ## ask the REST API of a running coordinator whatever schemathesis thinks of (SECONDS=120)
	$(BIN)/python -m tests.server.fuzz_api --seconds $(or $(SECONDS),120)

lint: $(VENV)/.dev  ## style, types and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/python proto/generate.py --check
	$(BIN)/shellcheck docker/join.sh $(filter-out %.cmake,$(wildcard .ci/*))
	$(BIN)/yamllint --strict --config-file docker/.yamllint docker
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/*.yaml
	$(BIN)/kubernetes-validate --strict --quiet docker/kubernetes/[!k]*.yaml
	! command -v haproxy >/dev/null || haproxy -c -q -f docker/haproxy.cfg
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint docker/Dockerfile

format: $(VENV)/.dev  ## rewrite Python and C++ in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

proto: $(VENV)/.dev  ## generate the protocol's Python modules again
	$(BIN)/python proto/generate.py

docs: $(VENV)/.dev  ## the documentation as a site, under build/docs; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

accuracy: $(VENV)/.dev  ## the presets side by side on MNIST and CIFAR-10: hours, and goes on if stopped; docs/results/ has the last outcome
	mkdir -p build/accuracy
	$(BIN)/python -m benchmarks.accuracy --model mlp --dataset mnist --epochs 24 --seeds 0,1,2 \
	  --state build/accuracy --json build/accuracy/mlp.json
	$(BIN)/python -m benchmarks.accuracy --model binarynet --dataset cifar10 --batch-size 40 --max-steps 200 \
	  --windows 10 --state build/accuracy --json build/accuracy/binarynet.json
	$(BIN)/python -m benchmarks.accuracy --model cnv --dataset cifar10 --epochs 3 \
	  --state build/accuracy --json build/accuracy/cnv.json
	$(BIN)/python -m benchmarks.accuracy --model binarynet --dataset cifar10 --epochs 3 \
	  --state build/accuracy --json build/accuracy/binarynet-3.json

memory: $(VENV)/.dev  ## peak memory of every preset, measured beside its plan: minutes
	$(BIN)/python -m benchmarks.memory --json build/memory.json --plot build/memory.png

faults: $(VENV)/.dev  ## do faults to a real fleet, SIGKILL first of all: half an hour, fills docs/reliability.md (KILLS=220)
	$(BIN)/python -m benchmarks.faults kills --times $(or $(KILLS),220) --json build/kills.json --page docs/reliability.md
	$(BIN)/python -m benchmarks.faults around --times 3 --json build/around.json --page docs/reliability.md
	$(BIN)/python -m benchmarks.faults links --times 3 --json build/links.json --page docs/reliability.md

bench: $(VENV)/.torch  ## a training step beside PyTorch's and the published algorithms: half an hour, fills docs/performance.md
	$(BIN)/python -m benchmarks.performance --out build/bench --page docs/performance.md $(ARGS)

wheel: | $(VENV)/.server  ## the wheel for this machine, in build/dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/dist .
	@ls build/dist/*.whl

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
	@PYTHON='$(PYTHON)' .ci/install $(VENV) server,privacy,dev,docs
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
