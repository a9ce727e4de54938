# Every target sets up its environment on the first run. Any Python from 3.10 on works: `make test PYTHON=python3.13`.
# tensorflow-compression-ops has releases only for Linux on x86-64 and up to Python 3.12. Elsewhere the tests of the ops
# and of TensorFlow are skipped by name, and eval.py uses numba's range coder.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CKPT ?= checkpoints/nano
OUT ?= out/eval
WORKERS ?= 2
# A test file runs in one process, which compiles its models once. Files start in the order of tests/conftest.py.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The programs of the package restart themselves with huge pages. Tests, and the commands that they start, have them too.
HUGE_PAGES = GLIBC_TUNABLES=glibc.malloc.hugetlb=1
RUN := .venv/bin/python
LATEST := .venv-latest/bin/python
TPU := .venv-tpu/bin/python
GPU := .venv-gpu/bin/python
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: eval test test-random test-optimized test-slow test-latest test-tpu test-gpu test-package mutate docs wheel lint clean

eval: .venv/.runtime  ## rate-distortion table of CKPT on sample images, from complete files
	$(RUN) eval.py --ckpt $(CKPT) --out $(OUT) --report-images 0

test: lint  ## the whole suite, in WORKERS processes with up to 5 GB each
	$(HUGE_PAGES) $(RUN) -m pytest -q -rs $(PARALLEL)

test-random: .venv/.dev  ## the suite in random order, which finds tests that depend on others; prints the seed
	$(HUGE_PAGES) $(RUN) -m pytest -rs -p randomly $(PARALLEL)

test-optimized: .venv/.dev  ## the suite with full compiler optimizations, as for users; `make test` has few
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(HUGE_PAGES) $(RUN) -m pytest -q -rs $(PARALLEL)

test-slow: .venv/.dev  ## the long tests
	$(RUN) -m pytest -q -rs -m slow

test-package: .venv/.dev  ## builds a wheel, installs it elsewhere and tests its programs, data and configs
	$(RUN) -m pytest -q -m slow tests/test_package.py

test-latest:  ## the suite on the newest releases of all packages, without TensorFlow
	test -x $(LATEST) || $(PYTHON) -m venv .venv-latest
	$(LATEST) $(PIP) --upgrade --upgrade-strategy eager -r requirements-latest.txt
	$(HUGE_PAGES) $(LATEST) -m pytest -rs --without-tensorflow $(PARALLEL)

test-tpu:  ## compiles programs for TPUs without a TPU; Linux on x86-64
	test -x $(TPU) || $(PYTHON) -m venv .venv-tpu
	$(TPU) $(PIP) --upgrade --upgrade-strategy eager -r requirements-tpu.txt
	JAX_PLATFORMS=cpu $(TPU) -m pytest -q -rs -m tpu --durations=0 tests/runtime/test_tpu_compiler.py

test-gpu:  ## compiles programs for NVIDIA GPUs without a GPU; Linux on x86-64, Python 3.12 or newer
	test -x $(GPU) || $(PYTHON) -m venv .venv-gpu
	$(GPU) $(PIP) --upgrade --upgrade-strategy eager -r requirements-gpu.txt
	JAX_PLATFORMS=cpu $(GPU) -m pytest -q -rs -m gpu --durations=0 tests/runtime/test_gpu_compiler.py

mutate: .venv/.dev  ## injects faults and names the test that catches each; MUTATIONS="adam_eps muon_*" selects some
	$(RUN) tools/mutate.py $(MUTATIONS)

docs: .venv/.docs  ## builds the documentation site, out/docs/index.html; warnings and broken links are errors
	rm -rf docs/api docs/project out/docs
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --jobs auto --builder html docs out/docs
	$(RUN) tools/check_links.py out/docs

wheel: .venv/.dev  ## builds wheel and source distribution into out/dist
	$(RUN) -m build --outdir out/dist .

lint: .venv/.dev  ## checks style and types
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/.runtime: requirements.txt $(wildcard requirements/*.txt)
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) $(PIP) --upgrade pip  # pip of Python 3.10 does not resolve the versions within ten minutes
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
