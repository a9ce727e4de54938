# Everything here sets up its environment on its own, and is quick the second time. Any Python from 3.10 on will do:
# `make test PYTHON=python3.13`. tensorflow-compression-ops has no release beyond Python 3.12, nor beside Linux on x86-64;
# there the tests of it, and of TensorFlow, are skipped by name, and eval.py codes with numba's range coder.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CKPT ?= checkpoints/nano
OUT ?= out/eval
WORKERS ?= 2
# A file of tests stays in one process, where its models are compiled once; files begin in the order of tests/conftest.py.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
RUN := .venv/bin/python
LATEST := .venv-latest/bin/python
TPU := .venv-tpu/bin/python
GPU := .venv-gpu/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: eval test test-random test-optimized test-slow test-latest test-tpu test-gpu test-package mutate docs wheel lint clean

eval: .venv/.runtime  ## rate-distortion table of CKPT on sample photographs, from real files
	$(RUN) eval.py --ckpt $(CKPT) --out $(OUT) --report-images 0

test: lint  ## the whole suite, in WORKERS processes of up to 5 GB
	$(RUN) -m pytest -q -rs $(PARALLEL)

test-random: .venv/.dev  ## the suite in random order: no test needs another one before it; the seed is printed
	$(RUN) -m pytest -rs -p randomly $(PARALLEL)

test-optimized: .venv/.dev  ## the suite compiled as for users, where `make test` compiles in a fraction of the time
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(RUN) -m pytest -q -rs $(PARALLEL)

test-slow: .venv/.dev  ## the long checks
	$(RUN) -m pytest -q -rs -m slow

test-package: .venv/.dev  ## a wheel, installed elsewhere: its programs, data and configurations
	$(RUN) -m pytest -q -m slow tests/test_package.py

test-latest:  ## the suite on the newest releases of everything, coding by numba, without TensorFlow
	test -x $(LATEST) || $(PYTHON) -m venv .venv-latest
	$(LATEST) $(PIP) --upgrade --upgrade-strategy eager -r requirements-latest.txt
	$(LATEST) -m pytest -rs --without-tensorflow $(PARALLEL)

test-tpu:  ## real programs through the compiler for TPUs, without a TPU; Linux on x86-64
	test -x $(TPU) || $(PYTHON) -m venv .venv-tpu
	$(TPU) $(PIP) --upgrade --upgrade-strategy eager -r requirements-tpu.txt
	JAX_PLATFORMS=cpu $(TPU) -m pytest -q -rs -m tpu --durations=0 tests/runtime/test_tpu_compiler.py

test-gpu:  ## real programs through the compiler for NVIDIA GPUs, without a GPU; Linux on x86-64, Python 3.12 or newer
	test -x $(GPU) || $(PYTHON) -m venv .venv-gpu
	$(GPU) $(PIP) --upgrade --upgrade-strategy eager -r requirements-gpu.txt
	JAX_PLATFORMS=cpu $(GPU) -m pytest -q -rs -m gpu --durations=0 tests/runtime/test_gpu_compiler.py

mutate: .venv/.dev  ## deliberate faults, each with the test that catches it; MUTATIONS="adam_eps muon_*" chooses
	$(RUN) tools/mutate.py $(MUTATIONS)

docs: .venv/.docs  ## the documentation site, out/docs/index.html; a warning or a broken link is an error
	rm -rf docs/api docs/project out/docs
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --jobs auto --builder html docs out/docs
	$(RUN) tools/check_links.py out/docs

wheel: .venv/.dev  ## the wheel and the source distribution, into out/dist
	$(RUN) -m build --outdir out/dist .

lint: .venv/.dev  ## style, and types
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/.runtime: requirements.txt $(wildcard requirements/*.txt)
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) $(PIP) --upgrade pip  # that of Python 3.10 finds no versions in ten minutes
	$(RUN) $(PIP) -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	$(RUN) $(PIP) -r requirements-dev.txt
	touch $@

.venv/.docs: requirements/docs.txt .venv/.runtime
	$(RUN) $(PIP) -r requirements/docs.txt
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-tpu .venv-gpu out docs/api docs/project
